/* The schedule of a near/far call: its queries in steps, what is sealed for each, and which rows are measured. */
#ifndef ICE_SCHEDULE_H
#define ICE_SCHEDULE_H

#include "attention/measure.h"
#include "attention/near_far_tile.h"

/* The queries of one block, which see the same sealed keys. */
typedef struct {
    int64_t first_query, end_query;
    int64_t blocks; /* sealed for them; -1: one segment over all keys */
    int is_first;   /* of all blocks: its rows see no key that another block's do not */
    ice_exact_keys exact;
    int64_t tiles;      /* panels of rows for each head */
    int64_t first_task; /* the caller's */
    int64_t measured;   /* queries of it that are measured, 0: none */
    int64_t stands_for; /* queries that they stand for: those since the last that were */
    int renews;         /* as in ice_sample */
} ice_step;

typedef struct {
    const icecore_attention *problem;
    int64_t block;
    int64_t panels;               /* of rows that are measured at once; 0: nothing is measured */
    int64_t query;                /* the next step's first */
    int64_t last, renewed, since; /* blocks when rows were measured, and thoroughly; queries since */
} ice_schedule;

/* Not longer than all that there is: the end of such a block cannot overflow. */
static inline int64_t ice_clipped_block(const icecore_attention *p, int64_t block) {
    return ice_min(block, p->keys + p->queries);
}

ice_schedule ice_schedule_begin(const icecore_attention *problem, const icecore_near_far *options);
/* The next step, all but first_task; 0 when there is none. */
int ice_schedule_next(ice_schedule *schedule, ice_step *step);
int64_t ice_count_steps(const icecore_attention *problem, const icecore_near_far *options);

#endif
