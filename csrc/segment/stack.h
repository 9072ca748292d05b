/* The sealed segments of one head: blocks in pairs, pairs in pairs, and so on to a largest size.
 *
 * A pair becomes one segment as soon as both halves are there, unless it is large and more than a quarter of all
 * blocks: then it waits until it is two sevenths.  What is held twice while a segment is made is thus never much.  15
 * blocks of 512 keys are segments of 4, 4, 4, 2 and 1; 63 are segments of 16, 16, 16, 8, 4, 2 and 1.  Which segments
 * exist, and what is in them, depends on the number of blocks alone, not on how it was reached.  A key is sealed a
 * bounded number of times. */
#ifndef ICE_STACK_H
#define ICE_STACK_H

#include "segment/build.h"
#include "segment/source.h"

/* Keys of the largest segments, unless a block has more.  The larger, the more alike are the keys of a cell: at 128k
 * one segment has 644 near keys at a tolerance of 0.1, segments of 32k have 801 in the same time, of 8k 1515.  The
 * smaller, the cheaper is sealing, and the less does a cache hold twice while it merges. */
#define ICE_LARGEST_SEGMENT 32768
/* Keys of pairs that never wait: the cells of small segments are poor (at 8k error is half again as large where pairs
 * of all sizes wait), and from 8k keys on these are a quarter at most. */
#define ICE_MERGED_AT_ONCE 2048

/* Blocks that are sealed for a query at `position`: its own and the one before are open. */
static inline int64_t ice_sealed_blocks(int64_t position, int64_t block) {
    return position < 2 * block ? 0 : position / block - 1;
}
/* Blocks of the segment that begins with block `first` in a stack of `blocks`. */
int64_t ice_stacked_blocks(int64_t first, int64_t blocks, int64_t block);

/* Immutable once made.  Stacks share segments; each owns its part. */
typedef struct {
    int64_t levels;
    int64_t parents, nodes, keys; /* of all segments; nodes: cells and parents */
    ice_stacked level[];
} ice_stack;

/* Whether rows of some segment may be read by their first halves alone. */
static inline int ice_has_halves(const ice_stack *stack) {
    int any = 0;
    for (int64_t i = 0; i < stack->levels; i++)
        any |= stack->level[i].segment && stack->level[i].segment->halves == ICE_HALVES;
    return any;
}

/* How a sealed range comes about in steps: what is read, and what is built from it. */
typedef struct {
    int64_t first, end;
    ice_source_rows rows;
    ice_builder builder;
    int64_t left; /* units of work, about (build.h) */
} ice_sealing;

/* A stack of the first `blocks` blocks.  Segments that `previous` (or NULL) or `ready` have are shared, the others are
 * built. */
icecore_status ice_stack_seal(const ice_source *source, int64_t blocks, const ice_stack *previous,
                              const ice_stacked *ready, int ready_count, ice_stack **result);
/* A stack of one segment over keys skip .. end - 1. */
icecore_status ice_stack_seal_all(const ice_source *source, int64_t end, ice_stack **result);
/* Another stack of the same segments. */
icecore_status ice_stack_share(const ice_stack *stack, ice_stack **result);
void ice_stack_free(ice_stack *stack);
/* Lets go of the segments that end at `end` or before. */
void ice_stack_drop(ice_stack *stack, int64_t end);
/* Where the last of them ends, 0 where there is none. */
int64_t ice_stack_droppable(const ice_stack *stack, int64_t end);

/* A stack of `blocks` blocks without its segments; how many it has. */
ice_stack *ice_stack_empty(int64_t blocks, int64_t block);
int64_t ice_stack_levels(int64_t blocks, int64_t block);
/* Once its segments are there: counts what is in them. */
void ice_stack_add_up(ice_stack *stack);

/* The ranges of the segments that a stack of `blocks` + 1 blocks has and one of `blocks` has not, at most
 * ICE_NEXT_RANGES: one that ends with the new block, the last, and before it perhaps a pair that waited.  Returns how
 * many. */
#define ICE_NEXT_RANGES 2
int ice_stack_next_ranges(int64_t blocks, int64_t block, ice_stacked range[ICE_NEXT_RANGES]);

/* Begins to seal keys first .. end - 1 of a source, of which some are past `skip`.  What it reads must stay as it is
 * until the end.  On failure there is nothing to end. */
icecore_status ice_sealing_begin(ice_sealing *sealing, const ice_source *source, int64_t first, int64_t end);
/* Goes on by about `work` units. */
icecore_status ice_sealing_step(ice_sealing *sealing, int64_t work);
void ice_sealing_end(ice_sealing *sealing);

/* No stack over `keys` keys in blocks of `block` has more levels; nor, of such cells, more nodes. */
int64_t ice_stack_max_levels(int64_t keys, int64_t block);
int64_t ice_stack_max_nodes(int64_t keys, int64_t cell_size);
/* Whether a segment of `count` keys may have so many cells and parents: ice_stack_max_nodes relies on it. */
int ice_stack_nodes_fit(int64_t count, int64_t cells, int64_t parents, int64_t cell_size);

#endif
