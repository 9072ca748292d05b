/* A tile by the panel kernels: what run.h does where rows go side by side. */
#ifndef ICE_PANEL_H
#define ICE_PANEL_H

#include "attend/run.h"

/* Whether the bfloat16 kernels serve this problem: its keys and values have that dtype and widths they can do. */
int ice_panel_is_bf16(const icecore_attention *problem, const ice_kernels *kernels);

/* What panels multiply: bfloat16 where ice_panel_is_bf16, else float32. */
static inline icecore_dtype ice_panel_dtype(const icecore_attention *problem, const ice_kernels *kernels) {
    return ice_panel_is_bf16(problem, kernels) ? ICECORE_BFLOAT16 : ICECORE_FLOAT32;
}

void ice_panel_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end);
void ice_panel_attend_gathered(ice_tile *tile, const void *const *keys, const void *const *values, int64_t count);

/* Attends to at most ICE_KEY_BLOCK contiguous rows of ice_panel_dtype, finite where some are hidden.  bias: count x
 * ICE_PANEL, added to the scores (log2 units; -inf hides); NULL: 0. */
void ice_panel_attend_rows(ice_tile *tile, const void *keys, const void *values, int64_t count, const float *bias);

/* What is added to scores to hide a key from all lanes but these: 0 there, -inf elsewhere. */
void ice_panel_hiding(uint64_t lanes, float hiding[ICE_PANEL]);

#endif
