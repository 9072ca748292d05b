/* The best of many scores for each of many queries: buffers that are cut back to the best when they are full.
 *
 * Among equal scores the smaller id wins, where the numbers are slots, else the smaller number: what is kept depends on
 * the set of entries alone, not on their order.
 */
#ifndef ICE_COLLECTOR_H
#define ICE_COLLECTOR_H

#include <math.h>

#include "index/slots.h"
#include "kernels/kernels.h"

typedef struct {
    const ice_kernels *kernels;
    int64_t keep, capacity; /* of each query */
    float *scores;          /* queries x capacity */
    int32_t *numbers;       /* what has these scores */
    int64_t *count;         /* queries */
    float *threshold;       /* queries: scores below are not wanted */
    const ice_slots *slots; /* of which the numbers are; NULL: of nodes */
    uint64_t *spare;        /* capacity */
} ice_collector;

static inline void ice_collector_clear(ice_collector *c, int64_t queries, int64_t keep, const ice_slots *slots) {
    c->keep = keep;
    c->slots = slots;
    for (int64_t q = 0; q < queries; q++) {
        c->count[q] = 0;
        c->threshold[q] = -INFINITY;
    }
}

/* Of `count` entries that reach the bound, more than are kept, leaves those above it and the smallest ids of those that
 * equal it. */
void ice_collector_cut_ties(const ice_collector *c, float *scores, int32_t *numbers, int64_t count, float bound);

/* Cuts a query back to its best. */
static inline void ice_collector_cut(ice_collector *c, int64_t query) {
    if (c->count[query] <= c->keep) return;
    float *scores = c->scores + query * c->capacity;
    int32_t *numbers = c->numbers + query * c->capacity;
    if (c->slots) {
        const int64_t reach =
            c->kernels->keep_reaching(scores, numbers, c->count[query], c->keep, &c->threshold[query]);
        if (reach > c->keep) ice_collector_cut_ties(c, scores, numbers, reach, c->threshold[query]);
    } else {
        c->threshold[query] = c->kernels->keep_largest(scores, numbers, c->count[query], c->keep);
    }
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
