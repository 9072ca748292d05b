/* What a selector streams into a tile: runs of keys, and means that stand for several.
 *
 * Kernels are picked here: by rows where few rows share keys, else by panel, in bfloat16 where keys and the instruction
 * set have it.  Who knows that rows go one by one calls rows.h. */
#ifndef ICE_RUN_H
#define ICE_RUN_H

#include "attend/panel.h"
#include "attend/rows.h"

/* With at most so many rows most lanes of a panel would stand empty, and reading keys and values is all the work:
 * decode steps of the usual head groups, and lists of indices (bench_attend_indices.py --heads).  They go by rows. */
#define ICE_FEW_ROWS 8

/* Attends to a run exactly. */
void ice_tile_attend(ice_tile *tile, const ice_run *run);

/* Attends to keys first .. end - 1 of `source`, each row to those it may see: windows, sinks, causality, mask.  Where
 * there is a window, either sinks (of ice_tile_visible) or keys behind them.  source: the tile's problem, or one like
 * it whose keys and values lie elsewhere. */
void ice_tile_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end);

/* Attends all rows to at most ICE_KEY_BLOCK keys that lie anywhere, all visible. */
void ice_tile_attend_gathered(ice_tile *tile, const void *const *keys, const void *const *values, int64_t count);

/* Adds at most ICE_KEY_BLOCK neighbouring means, of ice_panel_dtype or bfloat16, by their scores, which are lost: a
 * mean that stands for n keys has log2(n) in its score.  The tile's correction is what older sums were multiplied by.
 */
void ice_tile_add_means(ice_tile *tile, float *scores, int64_t count, icecore_dtype dtype, const void *values);

/* So many rows that open the same run are faster together, the others hidden, than one by one. */
int ice_tile_shared_lanes(const ice_tile *tile, icecore_dtype dtype);

/* Merges the panel's state into the rows' states, which then are the rows' results. */
void ice_tile_finish(ice_tile *tile);
/* Finishes and writes all rows. */
void ice_tile_write(ice_tile *tile);

#endif
