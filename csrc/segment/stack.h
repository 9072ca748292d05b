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

typedef struct {
    ice_stacked level[ICE_STACK_LEVELS];
    int levels;
} ice_stack;

/* Where a head's keys and values lie, and how they are sealed. */
typedef struct {
    icecore_dtype dtype;
    const void *keys, *values;
    int64_t key_stride, value_stride, dim, value_dim;
    int64_t skip;                       /* keys before this one stay outside all segments (the sinks) */
    int64_t block, cell_size;
    uint64_t seed;
} ice_source;

/* Makes the stack hold the first `blocks` blocks: keeps the segments that stay, frees and builds the others.  On failure the
 * stack is valid but incomplete. */
icecore_status ice_stack_seal(ice_stack *stack, const ice_source *source, int64_t blocks);
/* The stack with one segment over keys skip .. end - 1. */
icecore_status ice_stack_seal_all(ice_stack *stack, const ice_source *source, int64_t end);
void ice_stack_clear(ice_stack *stack);

#endif
