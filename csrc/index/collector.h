/* The best of many scores for each of many queries: buffers that are cut back to the best when they are full.
 *
 * Among equal scores the smaller number wins, so what is kept depends on the set of entries alone, not on their order.
 */
#ifndef ICE_COLLECTOR_H
#define ICE_COLLECTOR_H

#include <math.h>

#include "kernels/kernels.h"

typedef struct {
    const ice_kernels *kernels;
    int64_t keep, capacity; /* of each query */
    float *scores;          /* queries x capacity */
    int32_t *numbers;       /* what has these scores */
    int64_t *count;         /* queries */
    float *threshold;       /* queries: scores below are not wanted */
} ice_collector;

static inline void ice_collector_clear(ice_collector *c, int64_t queries, int64_t keep) {
    c->keep = keep;
    for (int64_t q = 0; q < queries; q++) {
        c->count[q] = 0;
        c->threshold[q] = -INFINITY;
    }
}

/* Cuts a query back to its best. */
static inline void ice_collector_cut(ice_collector *c, int64_t query) {
    if (c->count[query] <= c->keep) return;
    c->threshold[query] = c->kernels->keep_largest(c->scores + query * c->capacity, c->numbers + query * c->capacity,
                                                   c->count[query], c->keep);
    c->count[query] = c->keep;
}

static inline void ice_collector_add(ice_collector *c, int64_t query, float score, int32_t number) {
    if (!(score >= c->threshold[query])) return;
    if (c->count[query] == c->capacity) {
        ice_collector_cut(c, query);
        if (!(score >= c->threshold[query])) return;
    }
    int64_t place = query * c->capacity + c->count[query]++;
    c->scores[place] = score;
    c->numbers[place] = number;
}

#endif
