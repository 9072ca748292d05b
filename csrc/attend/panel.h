/* A tile by the panel kernels: what run.h does where rows go side by side. */
#ifndef ICE_PANEL_H
#define ICE_PANEL_H

#include "attend/tile.h"

/* The panel has begun, and no short runs wait (run.c). */
void ice_panel_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end);
void ice_panel_attend_gathered(ice_tile *tile, const void *const *keys, const void *const *values, int64_t count);

/* Attends to at most ICE_KEY_BLOCK contiguous rows of ice_panel_dtype, finite where some are hidden.  bias: count x
 * ICE_PANEL, added to the scores (log2 units; -inf hides); NULL: 0.  keys NULL: the bias is the scores, and is lost. */
void ice_panel_attend_rows(ice_tile *tile, const void *keys, const void *values, int64_t count, float *bias);

/* Rows `first`.. of a tensor of `source` as float32: where they lie, or widened into `buffer`. */
const float *ice_float_rows(const ice_tile *tile, const icecore_attention *source, const icecore_tensor *tensor,
                            int64_t width, int64_t first, int64_t count, float *buffer, int64_t *stride);

/* What is added to scores to hide a key from all lanes but these: 0 there, -inf elsewhere. */
void ice_panel_hiding(uint64_t lanes, float hiding[ICE_PANEL]);

/* Contiguous means as the panel multiplies them, of ice_panel_dtype: where they lie, or bfloat16 ones as float32 in a
 * buffer. */
const void *ice_panel_rows(const ice_tile *tile, icecore_dtype dtype, const void *rows, int64_t count, int64_t width,
                           float *buffer);
/* The scores of neighbouring means: count x ICE_PANEL, in log2 units.  No short runs wait. */
void ice_tile_score(ice_tile *tile, icecore_dtype dtype, const void *means, int64_t count, float *scores);

/* ---- key_block.c ---- */

/* Puts a short run of contiguous rows to those that wait.  Hidden lanes get the products with weight 0, so that keys
 * and values must be finite where some lanes are left out.  Uses the tile's buffers until the flush. */
void ice_key_block_add(ice_tile *tile, const ice_run *run);
/* Attends to the keys that wait: afterwards the tile's sums are of all that it has attended to. */
void ice_tile_flush(ice_tile *tile);

#endif
