/* Keys that a row keeps, by number and score: what selectors that choose single keys have in common. */
#ifndef ICE_KEPT_H
#define ICE_KEPT_H

#include "attend/run.h"

typedef struct {
    float *score; /* in log2 units, not capped; inf also for NaN, so that the key is kept, and makes the row NaN */
    int32_t *number;
    int64_t count;
} ice_kept;

/* Finds the scores of the keys by their numbers. */
void ice_kept_score(const ice_tile *tile, int lane, ice_kept *kept);
/* Keeps the `wanted` keys with the largest scores, the smaller numbers among equals, in their order; returns a score
 * that all of them reach, -inf where there are not so many.  No NaN. */
float ice_kept_reduce(const ice_kernels *kernels, ice_kept *kept, int64_t wanted);
/* Attends one row to these keys by their scores, which are lost.  bias: of each key, added to its score after a cap;
 * NULL: 0. */
void ice_kept_attend(ice_tile *tile, int lane, ice_kept *kept, const float *bias);

#endif
