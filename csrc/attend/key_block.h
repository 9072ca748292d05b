/* Short runs for the panel kernels.
 *
 * A cell holds few keys, too few for the panel kernels' tiles; so the keys of several runs are put together, copied
 * side by side unless they lie so already. */
#ifndef ICE_KEY_BLOCK_H
#define ICE_KEY_BLOCK_H

#include "attend/tile.h"

/* Contiguous rows; hidden lanes get the products with weight 0, so that keys and values must be finite where some lanes
 * are left out.  Uses the tile's buffers until the flush. */
void ice_key_block_add(ice_tile *tile, const ice_run *run);

/* Attends to the keys that wait: afterwards the tile's sums are of all that it has attended to. */
void ice_tile_flush(ice_tile *tile);

#endif
