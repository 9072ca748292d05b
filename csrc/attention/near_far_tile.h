/* A tile of rows by near/far attention (icecore.h): exact keys, then the cells of a stack. */
#ifndef ICE_NEAR_FAR_TILE_H
#define ICE_NEAR_FAR_TILE_H

#include "select/selection.h"

/* Of a query head. */
static inline float ice_tolerance_of(const icecore_near_far *o, int64_t head) {
    return o->head_tolerance ? o->head_tolerance[head] : o->tolerance;
}
static inline int ice_is_measuring(const icecore_near_far *o) { return o->tolerance > 0.0f || o->head_tolerance; }
/* Whether thresholds say what is opened, not near_keys. */
static inline int ice_by_threshold(const icecore_near_far *o) { return ice_is_measuring(o) || o->head_threshold; }

/* A panel of a head's rows that has attended to what is exact for all, sinks and open blocks; the tile's panel holds
 * the result.  scratch: ice_selection_bytes. */
ice_selection *ice_near_far_begin(const ice_head_view *view, int64_t first_row, int64_t rows, void *scratch);

/* Attends and writes the panel of a head's rows that begins with first_row, up to end_row.  scratch:
 * ice_selection_bytes. */
void ice_near_far_attend(const ice_head_view *view, int64_t first_row, int64_t end_row, void *scratch);

/* ---- report.c ---- */

/* Where nothing is asked for. */
extern const icecore_report ice_no_report;

/* missed_bound: the most that the far field may stand for, once the cells are chosen and before their scores are lost.
 */
void ice_bound_far_field(ice_selection *t);
/* Writes a row that the tile has finished, and what is reported of it; rows of exact heads are not written here. */
void ice_report_row(ice_selection *t, int lane);

#endif
