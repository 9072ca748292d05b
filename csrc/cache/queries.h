/* What a cache remembers of queries: the sums of q q^T that metrics are made of, a few of the newest queries, and how
 * far each query head opens.
 *
 * Sums are kept of each block that is not sealed yet, and then of each segment; merged segments add them up.  Of every
 * eighth position, as in attention/query_moments.h, so that a cache which saw the queries of a prompt makes the cells
 * that attention to the prompt makes. */
#ifndef ICE_CACHE_QUERIES_H
#define ICE_CACHE_QUERIES_H

#include "cache/contents.h"

/* Makes room for so many query heads per key head; when it was another number, all that was known of heads is
 * forgotten. */
icecore_status ice_queries_begin(icecore_cache *cache, int64_t group);
/* Remembers the queries of tokens first .. first + count - 1, unless they are known already. */
icecore_status ice_queries_note(icecore_cache *cache, icecore_dtype dtype, icecore_tensor queries, int64_t first,
                                int64_t count);
/* So many positions apart, those kept are spread over a block. */
int64_t ice_queries_spacing(const icecore_cache *cache);
/* A sum with these numbers; NULL when out of memory. */
ice_query_sum *ice_query_sum_of(const icecore_cache *cache, const float *numbers);
/* Forgets sums of blocks before `first`, and from `end` on. */
void ice_queries_forget(icecore_cache *cache, int64_t first, int64_t end);
/* Forgets kept queries from token `length` on, sums of blocks behind it, and that more was sealed when it was measured.
 */
void ice_queries_truncate(icecore_cache *cache, int64_t length);
void ice_queries_free(icecore_cache *cache);
/* Into a cache that remembers nothing. */
icecore_status ice_queries_copy(const icecore_cache *from, icecore_cache *to);
int64_t ice_queries_bytes(const icecore_cache *cache);

/* One head of a cache: context of what follows, for ice_source. */
typedef struct {
    const icecore_cache *cache;
    int64_t head;
} ice_cache_metric;
/* sum (ice_query_numbers) += the sums of keys first .. end - 1, as far as they are known. */
void ice_add_query_sums(const void *cache_metric, int64_t first, int64_t end, float *sum);
int ice_cache_moments(const void *cache_metric, int64_t first, int64_t end, float *moments);

#endif
