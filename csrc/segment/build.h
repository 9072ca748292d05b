/* Building a segment for attention, in steps: keys in cells, cells under parents, then rows in that order with their
 * summaries.
 *
 * All at once for prefill; for a cache a little at each token, so that no merge shows as a pause. */
#ifndef ICE_BUILD_H
#define ICE_BUILD_H

#include "segment/groups.h"
#include "segment/segment.h"

typedef struct {
    const ice_kernels *kernels;
    ice_rows keys, values;
    icecore_dtype storage, means;
    float metric[ICECORE_MAX_DIM]; /* spreads and radii are those of keys times this */
    float *projection;     /* and cells are found among the images of keys under this; NULL: times the metric, too */
    double mass_weight;    /* the mass counts as one more component of the values, of this square */
    int relative;          /* as in the segment; may be set once the builder has begun, with float32 means */
    int halves;            /* float32 rows are stored in halves; may be set once the builder has begun */
    int64_t query_numbers; /* to be kept in the segment; may be set once the builder has begun */
    float *query_sum;      /* the builder's */
    ice_groups groups;
    icecore_segment *segment; /* once all keys are in cells */
    int64_t next;             /* parent to be stored */
} ice_builder;

/* What a segment is made of, and how. */
typedef struct {
    const ice_kernels *kernels;
    ice_rows keys, values; /* must go on giving the same until the end */
    icecore_dtype storage, means;
    const float *moments; /* dim x dim, of the queries (metric.h); NULL: not known */
    int64_t cell_size;
    uint64_t seed;
} ice_builder_plan;

/* The builder must stay where it is.  On failure there is nothing to end. */
icecore_status ice_builder_begin(ice_builder *builder, const ice_builder_plan *plan);
/* Serial.  Goes on by about `work` units, of which the whole takes about ice_builder_work; *work becomes what is left
 * of it, 0 or less where there is more to do.  When the status is not ICECORE_OK nothing is lost: call again, or end.
 */
icecore_status ice_builder_step(ice_builder *builder, int64_t *work);
int64_t ice_builder_work(int64_t rows, int64_t cell_size);
int ice_builder_done(const ice_builder *builder);
/* The finished segment, which is the caller's; ends the builder. */
icecore_segment *ice_builder_take(ice_builder *builder);
void ice_builder_end(ice_builder *builder);

#endif
