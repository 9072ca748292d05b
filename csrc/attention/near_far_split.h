/* A tile of few rows in parts: a decode step has fewer tiles than threads, and not a whole number of them for each.
 *
 * begin attends to the exact keys and chooses parents; the parts share the cells of those that are expanded, in any
 * order and on any threads.  The part that is finished last merges all in order and writes the rows. */
#ifndef ICE_NEAR_FAR_SPLIT_H
#define ICE_NEAR_FAR_SPLIT_H

#include <stdatomic.h>

#include "attention/near_far_tile.h"

typedef struct {
    int64_t rows, parts;
    char *memory; /* ice_split_bytes, of all that follows */
    int begun;
    atomic_int settled;   /* begun, or never to be */
    ice_selection chosen; /* what the exact keys and the parents led to; its tile is gone */
    ice_state *state;     /* of each row for the exact keys and the means of parents, then for each part */
    float *accumulators;  /* of these */
    atomic_llong left;    /* parts that are not finished */
} ice_split;

/* Parts worth having of so many rows of each key head over the cells of a stack; 1: they do not go in parts.  They
 * depend on the shapes alone, so results do not depend on the threads. */
int64_t ice_split_parts(const icecore_attention *problem, const icecore_report *report, const ice_stack *stack,
                        int64_t rows);
/* Memory of a split, which stays until it is finished. */
size_t ice_split_bytes(const ice_head_view *view, int64_t rows, int64_t parts);
void ice_split_place(ice_split *split, int64_t rows, int64_t parts, char *memory);
/* By thresholds, without masks.  scratch, here and below: ice_selection_bytes. */
void ice_split_begin(ice_split *split, const ice_head_view *view, int64_t first_row, void *scratch);
/* One part, once the split has settled; nothing where it has not begun. */
void ice_split_attend(ice_split *split, int64_t part, void *scratch);

#endif
