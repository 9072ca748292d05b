/* What the parts of the cache do for one another (contents.h). */
#ifndef ICE_CACHE_H
#define ICE_CACHE_H

#include "cache/queries.h"

/* Of options.block and options.sinks: so that sums of a few do not overflow. */
#define ICE_LARGEST_BLOCK ((int64_t)1 << 31)

/* The sinks are held, and the tokens from here on. */
static inline int64_t ice_cache_first_held(const icecore_cache *c) {
    const int64_t first = ice_cache_first_in_cells(c);
    return first < c->length ? first : c->length;
}

/* Tokens that are not forgotten. */
static inline int64_t ice_cache_held(const icecore_cache *c) {
    return ice_cache_sinks(c, c->length) + c->length - ice_cache_first_held(c);
}

/* ICECORE_ERROR_VALUE where they are out of range. */
icecore_status ice_cache_check_options(const icecore_cache_options *options);

/* Whether sealed rows lie in halves (segment.h), and means are bfloat16: float32 where a tolerance is measured, and
 * with it what the rounding takes. */
static inline int ice_is_in_halves(const icecore_cache_options *o) {
    return o->dtype == ICECORE_FLOAT32 && o->tolerance > 0.0f;
}

/* The dtype of means, of others than those that of what the instruction set in force multiplies. */
icecore_dtype ice_cache_means(const icecore_cache *cache);
/* Gives a head's segments means of that dtype: those from a file, or from before icecore_set_isa, may have others. */
icecore_status ice_cache_fit_means(icecore_cache *cache, int64_t head);

/* The type of open rows and sinks: that of storage or, where its rounding would take too much of the keys, float32. */
static inline icecore_dtype ice_open_dtype(const icecore_cache_options *o, ice_offset offset) {
    if (offset != ICE_OFFSET_SMALL) return ICECORE_FLOAT32;
    return ice_is_quantized(o->dtype) ? ICECORE_BFLOAT16 : o->dtype;
}

/* Room for so many tokens from `first` on and some more; NULL when out of memory. */
ice_open_rows *ice_cache_new_rows(const icecore_cache *cache, int64_t first, int64_t rows);

/* Blocks of the head that has sealed most. */
int64_t ice_cache_max_sealed(const icecore_cache *cache);

/* So many of the first tokens tell the offset, before any is sealed; until they are there rows are float32. */
static inline int64_t ice_cache_looked_at(const icecore_cache_options *o) { return o->block < 32 ? 2 * o->block : 64; }

/* What is known of the offset once these tokens are appended. */
ice_offset ice_cache_find_offset(const icecore_cache *cache, icecore_dtype dtype, icecore_tensor keys, int64_t count);
/* Another offset: open rows and sinks get the type that goes with it.  On failure nothing has changed. */
icecore_status ice_cache_set_offset(icecore_cache *cache, ice_offset offset);

/* Where a head's keys are for sealing, at present. */
ice_source ice_cache_source(const icecore_cache *cache, const ice_cache_metric *metric);

/* Lets go of the head's segments in the making that begin before `first` or end after `end`: with INT64_MAX and 0, of
 * all. */
void ice_cache_drop_pending(ice_cache_head *head, int64_t first, int64_t end);
/* Brings a head's stack to `blocks`, more than it has.  On failure nothing has changed. */
icecore_status ice_cache_seal(icecore_cache *cache, int64_t head, int64_t blocks);
/* Once every head has a stack of `blocks`: says so, and lets go of rows that are sealed when new ones need room. */
void ice_cache_sealed(icecore_cache *cache, int64_t blocks);
/* Goes on with the next stack of a head, so far that it is ready when the block of the last token ends. */
icecore_status ice_cache_prepare(icecore_cache *cache, int64_t head);

/* What is wrong, or NULL.  Of the parts of a cache, the insides of segments aside; no lock. */
const char *ice_cache_structure_fault(const icecore_cache *cache);
/* Of the inside of a segment: every key once, in cells under parents without gaps.  `seen`: room for its keys. */
const char *ice_cache_segment_fault(const icecore_segment *segment, uint8_t *seen);

#endif
