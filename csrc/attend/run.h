/* What a selector streams into a tile: runs of keys, and means that stand for several.
 *
 * The only place that picks kernels: by rows where few rows share keys, else by panel, in bfloat16 where keys and the
 * instruction set have it. */
#ifndef ICE_RUN_H
#define ICE_RUN_H

#include "attend/tile.h"

/* With at most so many rows most lanes of a panel would stand empty, and reading keys and values is all the work:
 * decode steps of the usual head groups, and lists of indices (bench_attend_indices.py --heads).  They go by rows. */
#define ICE_FEW_ROWS 8

/* Neighbouring keys for some rows of a tile. */
typedef struct {
    uint64_t lanes; /* the rows that attend */
    icecore_dtype dtype;
    const void *keys, *values; /* must stay until the tile is finished */
    int64_t key_stride, value_stride;
    int64_t count;
    const float *bias; /* of each key, added to its scores (log2 units); NULL: 0 */
    const float *base; /* dim numbers that all keys lack; NULL: 0 */
    int unchecked;     /* may hold NaN or inf and rows that must not see them */
} ice_run;

/* Rows without gaps. */
static inline ice_run ice_run_of(const ice_tile *tile, icecore_dtype dtype, const void *keys, const void *values,
                                 int64_t count, uint64_t lanes) {
    return (ice_run){.lanes = lanes,
                     .dtype = dtype,
                     .keys = keys,
                     .values = values,
                     .key_stride = ice_row_stride(dtype, tile->problem->dim),
                     .value_stride = ice_row_stride(dtype, tile->problem->value_dim),
                     .count = count};
}

/* Keys first .. end - 1 of `source` (see ice_tile_attend_keys). */
static inline ice_run ice_run_of_keys(const ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end,
                                      uint64_t lanes) {
    return (ice_run){.lanes = lanes,
                     .dtype = source->key_dtype,
                     .keys = ice_address(&source->key, source->key_dtype, tile->batch, tile->key_head, first),
                     .values = ice_address(&source->value, source->key_dtype, tile->batch, tile->key_head, first),
                     .key_stride = source->key.row_stride,
                     .value_stride = source->value.row_stride,
                     .count = end - first};
}

/* Attends to a run exactly. */
void ice_tile_attend(ice_tile *tile, const ice_run *run);

/* Attends to keys first .. end - 1 of `source`, each row to those it may see: windows, sinks, causality, mask.  source:
 * the tile's problem, or one like it whose keys and values lie elsewhere. */
void ice_tile_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end);

/* Short runs wait for one another: afterwards the tile's sums are of all that it has attended to. */
void ice_tile_flush(ice_tile *tile);

/* Attends all rows to at most ICE_KEY_BLOCK keys that lie anywhere, all visible. */
void ice_tile_attend_gathered(ice_tile *tile, const void *const *keys, const void *const *values, int64_t count);

/* ---- By panel, of ice_panel_dtype ---- */

/* The scores of neighbouring means: count x ICE_PANEL, in log2 units. */
void ice_tile_score(ice_tile *tile, const void *means, int64_t count, float *scores);
/* Adds at most ICE_KEY_BLOCK neighbouring means by their scores, which are lost: a mean that stands for n keys has
 * log2(n) in its score.  The tile's correction is what older sums were multiplied by. */
void ice_tile_add_means(ice_tile *tile, float *scores, int64_t count, const void *values);

/* ---- By rows ---- */

/* The scores of neighbouring rows of `dtype` with one lane's query: count. */
void ice_tile_score_row(const ice_tile *tile, int lane, icecore_dtype dtype, const void *means, int64_t count,
                        float *scores);
/* Adds means to the rows in `lanes`, by scores + lane * stride, which are lost. */
void ice_tile_add_means_to(ice_tile *tile, uint64_t lanes, icecore_dtype dtype, float *scores, int64_t stride,
                           const void *values, int64_t count);

/* So many rows that open the same run are faster together, the others hidden, than one by one. */
int ice_tile_shared_lanes(const ice_tile *tile, icecore_dtype dtype);

#endif
