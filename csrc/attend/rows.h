/* A tile by the row kernels: what run.h does where rows go one by one. */
#ifndef ICE_ATTEND_ROWS_H
#define ICE_ATTEND_ROWS_H

#include "attend/tile.h"

void ice_rows_attend(ice_tile *tile, const ice_run *run);
void ice_rows_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end);
/* Attends the rows in `lanes` to at most ICE_KEY_BLOCK keys that lie anywhere, all visible. */
void ice_rows_attend_gathered(ice_tile *tile, uint64_t lanes, const void *const *keys, const void *const *values,
                              int64_t count);

/* The scores of neighbouring rows of `dtype` with one lane's query: count. */
void ice_tile_score_row(const ice_tile *tile, int lane, icecore_dtype dtype, const void *means, int64_t count,
                        float *scores);
/* Adds means to the rows in `lanes`, by scores + lane * stride, which are lost. */
void ice_tile_add_means_to(ice_tile *tile, uint64_t lanes, icecore_dtype dtype, float *scores, int64_t stride,
                           const void *values, int64_t count);
/* Adds means or values that lie anywhere, of the problem's key_dtype, to one row, by their scores, which are lost. */
void ice_tile_add_gathered_means(ice_tile *tile, int lane, float *scores, const void *const *values, int64_t count);

#endif
