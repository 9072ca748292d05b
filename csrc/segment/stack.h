/* The sealed segments of one head: a binary counter of blocks.
 *
 * m sealed blocks are held as one segment for each 1 in the binary form of m, the largest first: 6 blocks are a segment of 4 and a segment
 * of 2.  Which segments exist, and what is in them, depends on m alone, not on how the counter got there. */
#ifndef ICE_STACK_H
#define ICE_STACK_H

#include "segment/segment.h"

#define ICE_STACK_LEVELS 48

typedef struct {
    int64_t first, end;                 /* keys of the segment */
    icecore_segment *segment;           /* NULL where the range is empty */
} ice_stacked;

/* Immutable once made.  Stacks share segments; each owns its part. */
typedef struct {
    ice_stacked level[ICE_STACK_LEVELS];
    int levels;
    int64_t nodes, keys;                /* of all segments; nodes: cells and parents */
} ice_stack;

/* Where a head's keys and values lie, and how they are sealed. */
typedef struct {
    icecore_dtype dtype, storage;       /* of keys and values; of their copies in segments */
    const void *keys, *values;
    int64_t key_stride, value_stride, dim, value_dim;
    int64_t skip;                       /* keys before this one stay outside all segments (the sinks) */
    int64_t block, cell_size;
    uint64_t seed;
} ice_source;

/* A stack of the first `blocks` blocks.  Segments that `previous` (or NULL) has are shared, the others built. */
icecore_status ice_stack_seal(const ice_source *source, int64_t blocks, const ice_stack *previous, ice_stack **result);
/* A stack of one segment over keys skip .. end - 1. */
icecore_status ice_stack_seal_all(const ice_source *source, int64_t end, ice_stack **result);
void ice_stack_free(ice_stack *stack);

/* No stack over `keys` keys has more nodes than this. */
int64_t ice_stack_most_nodes(int64_t keys, int64_t cell_size);

#endif
