/* What a cache remembers of queries: the sums of q q^T that metrics are made of, a few of the newest queries, and how
 * far each query head opens.
 *
 * Sums are kept of each block that is not sealed yet, and then of each segment; merged segments add them up.  Of every
 * eighth position, as in attention/query_moments.h, so that a cache which saw the queries of a prompt makes the cells
 * that attention to the prompt makes. */
#ifndef ICE_CACHE_QUERIES_H
#define ICE_CACHE_QUERIES_H

#include <stdatomic.h>

#include "attention/measure.h"

/* Of one block: for each head the lower triangle of the sum, row by row, and the number of queries.  Shared by forks,
 * copied before it grows. */
typedef struct {
    atomic_int owners;
    float number[];
} ice_query_sum;

typedef struct {
    int64_t group;            /* query heads of a key head; 0: no query has been seen */
    int64_t noted;            /* queries of tokens before this one are in what follows */
    int64_t first, sums;      /* blocks first .. first + sums - 1 */
    ice_query_sum **sum;      /* NULL: none of a block's queries */
    int64_t kept, capacity;   /* the newest of the sampled queries */
    int64_t unmeasured;       /* of these, so many of the newest */
    int64_t *position;        /* kept, ascending */
    float *query;             /* kept x query heads x dim */
    ice_rule *rule, *applied; /* query heads: as measured; as attended: a head that is exact opens all */
    ice_measured *measured;
    int known;             /* whether the rules come from a measurement, or from the caller */
    int64_t last, renewed; /* sealed blocks when rows were measured, and when they were measured thoroughly */
} ice_cache_queries;

/* Numbers of one head in a sum. */
static inline int64_t ice_query_numbers(int64_t dim) { return dim * (dim + 1) / 2 + 1; }

struct icecore_cache;

/* Makes room for so many query heads per key head; when it was another number, all that was known of heads is
 * forgotten. */
icecore_status ice_queries_begin(struct icecore_cache *cache, int64_t group);
/* Remembers the queries of tokens first .. first + count - 1, unless they are known already. */
icecore_status ice_queries_note(struct icecore_cache *cache, icecore_dtype dtype, icecore_tensor queries, int64_t first,
                                int64_t count);
/* A sum with these numbers; NULL when out of memory. */
ice_query_sum *ice_query_sum_of(const struct icecore_cache *cache, const float *numbers);
/* Forgets sums of blocks before `first`, and from `end` on. */
void ice_queries_forget(struct icecore_cache *cache, int64_t first, int64_t end);
/* Forgets kept queries from token `length` on, sums of blocks behind it, and that more was sealed when it was measured.
 */
void ice_queries_truncate(struct icecore_cache *cache, int64_t length);
void ice_queries_free(struct icecore_cache *cache);
/* Into a cache that remembers nothing. */
icecore_status ice_queries_copy(const struct icecore_cache *from, struct icecore_cache *to);
int64_t ice_queries_bytes(const struct icecore_cache *cache);

/* One head of a cache: context of what follows, for ice_source. */
typedef struct {
    const struct icecore_cache *cache;
    int64_t head;
} ice_cache_metric;
/* sum (ice_query_numbers) += the sums of keys first .. end - 1, as far as they are known. */
void ice_add_query_sums(const void *cache_metric, int64_t first, int64_t end, float *sum);
int ice_cache_moments(const void *cache_metric, int64_t first, int64_t end, float *moments);

#endif
