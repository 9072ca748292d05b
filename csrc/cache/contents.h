/* The cache's parts; its meaning is in icecore.h.
 *
 * Of each head: the first keys (sinks) and the newest (open rows) as they came, all between in a stack of sealed
 * segments (stack.h).  With `sealed` blocks in the stack, open rows begin at sealed * block.  The stack that the next
 * block's queries will need is built a little at each call (pending.h), from parts that do not change meanwhile. */
#ifndef ICE_CACHE_CONTENTS_H
#define ICE_CACHE_CONTENTS_H

#include <stdatomic.h>

#include "attention/measure.h"
#include "base/lock.h"
#include "cache/open_rows.h"
#include "cache/pending.h"
#include "segment/stack.h"

/* ---- Queries (queries.h) ---- */

/* Of one block: for each head the lower triangle of the sum, row by row, and the number of queries.  Shared by forks,
 * copied before it grows. */
typedef struct {
    atomic_int owners;
    float number[];
} ice_query_sum;

typedef struct {
    int64_t group;          /* query heads of a key head; 0: no query has been seen */
    int64_t noted;          /* queries of tokens before this one are in what follows */
    int64_t first, sums;    /* blocks first .. first + sums - 1 */
    ice_query_sum **sum;    /* NULL: none of a block's queries */
    int64_t kept, capacity; /* the newest of the sampled queries */
    int64_t unmeasured; /* sampled queries since some were measured; no longer kept, they are counted all the same */
    int64_t *position;  /* kept, ascending */
    float *query;       /* kept x query heads x dim */
    ice_rule *rule, *applied; /* query heads: as measured; as attended: a head that is exact opens all */
    ice_measured *measured;
    int known;             /* whether the rules come from a measurement, or from the caller */
    int64_t last, renewed; /* sealed blocks when rows were measured, and when they were measured thoroughly */
} ice_cache_queries;

/* Numbers of one head in a sum. */
static inline int64_t ice_query_numbers(int64_t dim) { return dim * (dim + 1) / 2 + 1; }

/* ---- The cache ---- */

/* One key head. */
typedef struct {
    ice_stack *stack; /* of cache->sealed blocks, or one step further after a failure */
    int64_t sealed;   /* blocks of its stack */
    ice_pending *
        pending[ICE_NEXT_RANGES]; /* what the stack of one block more will need; NULL: not begun, or nothing to build */
} ice_cache_head;

/* Whether keys differ little from one another for their size (offset.c): ICE_OFFSET_SMALL also where rows are float32
 * anyway. */
typedef enum { ICE_OFFSET_UNKNOWN, ICE_OFFSET_SMALL, ICE_OFFSET_LARGE } ice_offset;

/* Second moments that the caller gave, shared by forks. */
typedef struct {
    atomic_int owners;
    float number[]; /* heads x dim x dim */
} ice_given_moments;

struct icecore_cache {
    ice_lock lock; /* one call at a time */
    icecore_cache_options options;
    int64_t length, evicted;     /* tokens; those forgotten at the front, sinks aside */
    int64_t sealed;              /* blocks in every head's stack */
    ice_offset offset;           /* of any head's keys */
    ice_open_rows *sinks, *open; /* NULL before the first token */
    ice_cache_head *head;        /* options.heads */
    ice_given_moments *moments;  /* NULL: those of the queries seen */
    ice_cache_queries queries;
};

/* Of `length` tokens those that are sinks. */
static inline int64_t ice_cache_sinks(const icecore_cache *c, int64_t length) {
    return c->options.sinks < length ? c->options.sinks : length;
}
/* The first token that may be in cells. */
static inline int64_t ice_cache_first_in_cells(const icecore_cache *c) {
    return c->evicted > c->options.sinks ? c->evicted : c->options.sinks;
}

#endif
