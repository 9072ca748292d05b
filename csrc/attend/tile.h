/* A panel of up to ICE_PANEL rows on its way through the keys: the state of the online softmax.
 *
 * begin, then any number of attend_* in any order over disjoint keys, then read the rows out.  Memory comes from the
 * caller's scratch: ice_tile_bytes(problem), aligned to ICE_ALIGNMENT. */
#ifndef ICE_TILE_H
#define ICE_TILE_H

#include "attend/request.h"

typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    int64_t batch, key_head, first_row;
    int lanes;
    float scale;          /* scale * log2(e) */
    float *queries;       /* dim x ICE_PANEL, times scale * log2(e) */
    float *query_rows;    /* the same, lanes x dim */
    float *accumulator;   /* value_dim x ICE_PANEL */
    float *scores, *bias; /* ICE_KEY_BLOCK x ICE_PANEL */
    float *keys,
        *values; /* ICE_KEY_BLOCK rows each: widened to float32, cleaned of NaN and inf, or copied side by side */
    uint16_t *query_pairs, *packed_values; /* for the bfloat16 kernels; NULL: everything in float32 */
    const uint16_t
        *packed; /* all values of the key head as these kernels pack them, if a call has packed them once; else NULL */
    uint16_t *rounded_rows;            /* with these: lanes x dim, not scaled */
    float *maximum, *sum, *correction; /* ICE_PANEL each */
    ice_visible visible[ICE_PANEL];
} ice_tile;

/* Whether the bfloat16 kernels serve this problem: its keys and values have that dtype and widths they can do. */
int ice_tile_is_bf16(const icecore_attention *problem, const ice_kernels *kernels);

/* What ice_tile_scores and ice_tile_add want rows to be: bfloat16 where ice_tile_is_bf16, else float32. */
static inline icecore_dtype ice_tile_dtype(const icecore_attention *problem, const ice_kernels *kernels) {
    return ice_tile_is_bf16(problem, kernels) ? ICECORE_BFLOAT16 : ICECORE_FLOAT32;
}

size_t ice_tile_bytes(const icecore_attention *problem);

/* Loads rows first_row .. first_row + lanes - 1 of a key head; spare lanes repeat the last row. */
void ice_tile_begin(ice_tile *panel, const icecore_attention *problem, const ice_kernels *kernels, int64_t batch,
                    int64_t key_head, int64_t first_row, int lanes, void *scratch);

/* The keys that any row of the panel may see: the union of the rows' ranges. */
ice_visible ice_tile_visible(const ice_tile *panel);

/* Attends to the keys first .. end - 1 exactly, each row to those it may see. */
void ice_tile_attend(ice_tile *panel, int64_t first, int64_t end);

/* Attends to at most ICE_KEY_BLOCK keys that lie anywhere: contiguous rows of ice_tile_dtype, finite where some are
 * hidden.  bias: count x ICE_PANEL, added to the scores (log2 units; -inf hides); NULL: 0. */
void ice_tile_attend_rows(ice_tile *panel, const void *keys, const void *values, int64_t count, const float *bias);

/* Rows that stand for keys, of ice_tile_dtype.  scores: count x ICE_PANEL. */
void ice_tile_scores(ice_tile *panel, const void *keys, int64_t stride, int64_t count, float *scores);
/* Adds at most ICE_KEY_BLOCK of them, given their scores (which are lost) and contiguous values.  The panel's
 * correction is what older sums and accumulators were multiplied by. */
void ice_tile_add(ice_tile *panel, float *scores, int64_t count, const void *values);

/* What is added to scores to hide a key from all rows but `lanes`: 0 there, -inf elsewhere. */
void ice_tile_hiding(uint64_t lanes, float hiding[ICE_PANEL]);

/* *lse grows by the score of `centre`, which was taken off all keys, with a lane's query. */
void ice_add_centre(const ice_tile *panel, int lane, const float *centre, float *lse);

/* The accumulators once more, ICE_PANEL x value_dim, in the place of `values`. */
float *ice_tile_rows(ice_tile *panel);

#endif
