/* Some caches as named arrays: layout shared by writing and mapping.
 *
 * Each array holds one part of everything, one after the other, so that their number does not depend on that of
 * segments:
 *   header           l   ICE_CACHE_HEADER numbers, as listed below
 *   sequence         l   of each cache: the numbers listed below
 *   head             l   of each cache's heads: sealed blocks of its stack
 *   level            i   of each cache's heads' stack's levels: the number of its segment, or -1
 *   segment          l   of each segment: keys, cells, parents, whether keys are less the means of cells, ice_halves
 *   rule             f   of each cache's query heads: threshold, log2_mass, all_cells, exact, max_squared, halves
 *                        (select/selection.h)
 *   open.query_sum   f   of each cache's blocks from the sealed ones on: the sums of all heads (cache/queries.h)
 *   query.position   l   of each cache's kept queries
 *   query            f   of each cache's kept queries: query heads x dim
 *   sinks.keys ...       of each cache: heads x rows x dim, and values; the same of open rows
 *   order, keys ...      of each segment: its arrays (segment/fields.h) */
#ifndef ICE_CACHE_FILE_H
#define ICE_CACHE_FILE_H

#include "cache/cache.h"
#include "segment/fields.h"

/* Of "header": what decides which segments a stack has, the dtype of their means, and the offset (ice_offset) of all
 * caches' keys. */
enum {
    ICE_HEADER_LARGEST_SEGMENT,
    ICE_HEADER_BLOCK,
    ICE_HEADER_CELL_SIZE,
    ICE_HEADER_MEANS,
    ICE_HEADER_OFFSET,
    ICE_CACHE_HEADER
};
/* Numbers of a cache in "sequence", of a segment in "segment". */
enum {
    ICE_SEQUENCE_LENGTH,
    ICE_SEQUENCE_EVICTED,
    ICE_SEQUENCE_SEALED,
    ICE_SEQUENCE_GROUP,
    ICE_SEQUENCE_KNOWN,
    ICE_SEQUENCE_LAST,
    ICE_SEQUENCE_RENEWED,
    ICE_SEQUENCE_KEPT,
    ICE_SEQUENCE_UNMEASURED, /* of ice_cache_queries */
    ICE_SEQUENCE_SUMS,       /* blocks in open.query_sum */
    ICE_SEQUENCE_NUMBERS
};
/* Numbers of a query head in "rule". */
#define ICE_RULE_NUMBERS 6
#define ICE_SEGMENT_NUMBERS 5

/* Parts that are rows as they came. */
enum { ICE_SINK_KEYS, ICE_SINK_VALUES, ICE_OPEN_KEYS, ICE_OPEN_VALUES, ICE_ROW_PARTS };
static const char *const ice_row_part_names[ICE_ROW_PARTS] = {"sinks.keys", "sinks.values", "open.keys", "open.values"};

/* Rows that a cache has as sinks or as open ones, from row *first on. */
static inline int64_t ice_rows_of(const icecore_cache *c, int part, int64_t *first) {
    const int64_t sinks = ice_cache_sinks(c, c->length);
    *first = part < ICE_OPEN_KEYS ? 0 : c->sealed * c->options.block;
    return part < ICE_OPEN_KEYS ? sinks : c->length - *first;
}
static inline int64_t ice_part_width(const icecore_cache_options *o, int part) {
    return part == ICE_SINK_KEYS || part == ICE_OPEN_KEYS ? o->dim : o->value_dim;
}

#endif
