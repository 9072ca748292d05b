/* Blocks of keys that lie anywhere, each for some rows of a panel.
 *
 * A cell holds few keys, too few for the panel kernels' tiles; so the keys of several cells are put together, copied
 * side by side unless they lie so already.  begin, then add any number of keys, then flush. */
#ifndef ICE_KEY_BLOCK_H
#define ICE_KEY_BLOCK_H

#include "attend/tile.h"

typedef struct {
    ice_tile *panel;
    const void *keys, *values; /* of the block, in ice_tile_dtype */
    int64_t count;
    int pieces; /* runs of keys with the same lanes */
    int64_t piece_count[ICE_KEY_BLOCK];
    uint64_t piece_lanes[ICE_KEY_BLOCK];
} ice_key_block;

/* The panel must not attend otherwise until the flush: the block uses its scores and its buffers. */
void ice_key_block_begin(ice_key_block *block, ice_tile *panel);

/* `count` keys and values, contiguous rows of `dtype`, for the rows in `lanes`.  base: NULL, or dim numbers that are
 * added to the keys. They must stay until the flush.  Hidden rows get the products with weight 0: keys and values must
 * be finite where some rows are left out. */
void ice_key_block_add(ice_key_block *block, icecore_dtype dtype, const void *keys, const float *base,
                       const void *values, int64_t count, uint64_t lanes);

void ice_key_block_flush(ice_key_block *block);

#endif
