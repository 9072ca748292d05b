/* The sealed segments of one head: a binary counter of blocks that stops at a largest size.
 *
 * m sealed blocks are held as segments of the largest size, and the rest as one segment for each 1 in its binary form, the larger first:
 * if 4 is the largest, 15 blocks are segments of 4, 4, 4, 2 and 1.  Which segments exist, and what is in them, depends on m alone, not on
 * how the counter got there.  A key is thus sealed a bounded number of times. */
#ifndef ICE_STACK_H
#define ICE_STACK_H

#include "segment/segment.h"

/* Keys of the largest segments, unless a block has more.  The larger, the more alike are the keys of a cell: at 128k one segment has 644
 * near keys at a tolerance of 0.1, segments of 32k have 801 in the same time, of 8k 1515.  The smaller, the cheaper is sealing, and the less
 * does a cache hold twice while it merges. */
#define ICE_LARGEST_SEGMENT 32768

typedef struct {
    int64_t first, end;                 /* keys of the segment */
    icecore_segment *segment;           /* NULL where the range is empty */
} ice_stacked;

/* Immutable once made.  Stacks share segments; each owns its part. */
typedef struct {
    int64_t levels;
    int64_t nodes, keys;                /* of all segments; nodes: cells and parents */
    ice_stacked level[];
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

/* No stack over `keys` keys in blocks of `block` has more nodes than this. */
int64_t ice_stack_most_nodes(int64_t keys, int64_t block, int64_t cell_size);

#endif
