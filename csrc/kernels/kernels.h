/* The table of kernels: one per instruction set, all with the same meaning.
 *
 * Kernels do not allocate, start threads or fail.  They read and write exactly the elements named here.  Like all
 * functions they take at most eight arguments; only helpers that are inlined always take more, as these cost nothing.
 *
 * A panel holds up to ICE_PANEL queries side by side, transposed: panel[t * ICE_PANEL + lane] is component t of the
 * query in `lane`.  Scores, weights and accumulators are laid out the same way, one row of ICE_PANEL lanes per key or
 * per component. With queries in lanes, keys and values are read as they lie (broadcast), and the softmax needs no sums
 * across lanes.  Kernels work on whole vectors: lanes from `lanes` up to the next multiple of the vector width are
 * computed too and must hold numbers.
 *
 * Scores are in units of log 2: the panel carries scale * log2(e), so that exp is exp2.
 */
#ifndef ICE_KERNELS_H
#define ICE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "icecore.h"

/* Whether rows are codes under scales (icecore.h). */
static inline int ice_is_quantized(icecore_dtype dtype) { return dtype >= ICECORE_INT8; }

/* Bytes of a number; of quantized rows 1, the unit of their strides. */
static inline size_t ice_element_size(icecore_dtype dtype) {
    if (dtype == ICECORE_FLOAT32) return 4;
    return ice_is_quantized(dtype) ? 1 : 2;
}

/* Numbers of a quantized row under one scale.  A row holds its codes, then the scales, as bfloat16 at any address.
 * Codes of ICECORE_INT8 are bytes, `dim` of them.  Those of ICECORE_INT4 are whole groups: byte i of a group's 8
 * holds code i in its low half and code i + 8 in its high half. */
#define ICE_CODE_GROUP 16
static inline int64_t ice_code_groups(int64_t dim) { return (dim + ICE_CODE_GROUP - 1) / ICE_CODE_GROUP; }
static inline int64_t ice_code_bytes(icecore_dtype dtype, int64_t dim) {
    return dtype == ICECORE_INT4 ? ice_code_groups(dim) * (ICE_CODE_GROUP / 2) : dim;
}

/* Bytes of a row, and the stride of rows without gaps: in numbers, of quantized rows in bytes. */
static inline size_t ice_row_bytes(icecore_dtype dtype, int64_t dim) {
    if (!ice_is_quantized(dtype)) return (size_t)dim * ice_element_size(dtype);
    return (size_t)ice_code_bytes(dtype, dim) + (size_t)ice_code_groups(dim) * sizeof(uint16_t);
}
static inline int64_t ice_row_stride(icecore_dtype dtype, int64_t dim) {
    return ice_is_quantized(dtype) ? (int64_t)ice_row_bytes(dtype, dim) : dim;
}
static inline const void *ice_row_of(icecore_dtype dtype, const void *rows, int64_t row, int64_t dim) {
    return (const char *)rows + (size_t)row * ice_row_bytes(dtype, dim);
}

/* Queries in a panel: a multiple of 3 vectors of 16 lanes (the register tile) and of the usual 3 heads a key head. */
#define ICE_PANEL 48
/* Keys scored at once: scores of a block (24 KB), the panel and the accumulators stay in a level-2 cache. */
#define ICE_KEY_BLOCK 128

/* One row on its way through the keys: the online softmax for a single query. */
typedef struct {
    float maximum, sum; /* log2 units; -inf and 0 at the start */
    float *accumulator; /* value_dim, zero at the start */
} ice_state;

/* What risks are made of: of nodes (icecore_nodes_view), and of rows, a number per lane.  Logarithms are to base 2. */
typedef struct {
    const float *variance, *radius, *log2_count;
    const float *log2_weight; /* of keys times the spread of values; NaN: always opened */
    const float *half_log2_variance;
} ice_node_facts;
typedef struct {
    const float *variance;  /* of scores against keys of variance 1 per dimension, in natural units */
    const float *half_log2; /* of it */
    const float *norm;      /* how much the score of a key at distance 1 from a mean may exceed the mean's */
} ice_spreads;

/* What ALiBi takes off the score of a call's key j in a lane: slope (log2 units) * |offset + j|. */
typedef struct {
    float slope[ICE_PANEL], offset[ICE_PANEL];
} ice_alibi;

/* Rows of values that kernels pack together. */
#define ICE_PACKED 32

/* A panel on its way through keys of bfloat16, or of float32 in thirds. */
typedef struct {
    const uint16_t *queries; /* pairs, as pack_queries makes them */
    int64_t dim, value_dim;
    int lanes;
    float scale, cap;                  /* cap: of the keys' scores, as of `softcap` below; 0: none */
    float *maximum, *sum, *correction; /* as in `softmax` below; the correction of all keys of the call together */
    float *accumulator;                /* value_dim x ICE_PANEL */
    const ice_alibi *alibi;            /* of the keys' scores, once they are capped; NULL: none */
} ice_bf16_panel;

/* Single rows on their way through keys of bfloat16, by lane. */
typedef struct {
    const uint16_t *queries; /* a row's: queries + lane * dim */
    int64_t dim, value_dim, key_stride, value_stride;
    float scale, cap;       /* as of ice_bf16_panel */
    ice_state *state;       /* a row's: state[lane] */
    const ice_alibi *alibi; /* as of ice_bf16_panel */
} ice_bf16_rows;

/* Panel kernels on bfloat16 storage, for machines that multiply it natively.  Pairs are two consecutive components
 * (queries) or keys (weights) of one lane side by side: pairs[(i / 2 * ICE_PANEL + lane) * 2 + i % 2]; a missing last
 * one is 0.  All lanes of a panel may be written, whatever `lanes` says. */
typedef struct {
    int dim_multiple, value_dim_multiple; /* widths this set can do; for others the float32 kernels serve */
    int panel_lanes; /* so many rows with one run of keys are faster in a panel than by rows_attend */
    /* Rounds to bfloat16.  panel: dim x ICE_PANEL. */
    void (*pack_queries)(const float *panel, int64_t dim, uint16_t *pairs);
    /* scores[j][lane] = scale * sum_t keys[j * stride + t] query[t][lane]. */
    void (*scores)(const uint16_t *queries, int64_t dim, int lanes, float scale, const uint16_t *keys, int64_t stride,
                   int64_t count, float *scores);
    /* Values in this set's own order; room for `count` rounded up to ICE_PACKED rows of value_dim, and what follows a
     * multiple of ICE_PACKED rows begins so many times value_dim numbers further on. */
    void (*pack_values)(const uint16_t *values, int64_t stride, int64_t count, int64_t value_dim, uint16_t *packed);
    /* `scores`, capped, less ALiBi's, plus bias (NULL: 0; count x ICE_PANEL), softmax and weighted_sum in one, over any
     * number of keys.  keys = NULL: the scores are the bias.  A bias of -inf hides a key whatever its score.  The
     * maximum need not be the largest score, but no score is above it by more than 16; weights are rounded to bfloat16
     * for the products. */
    void (*panel_attend)(const ice_bf16_panel *panel, const uint16_t *keys, int64_t stride,
                         const uint16_t *packed_values, int64_t count, const float *bias);
    /* As row_scores below, times scale; query: dim bfloat16 numbers. */
    void (*row_scores)(const uint16_t *query, int64_t dim, float scale, const uint16_t *keys, int64_t stride,
                       int64_t count, float *scores);
    /* For the rows that `lanes` has a bit for, each with bias + lane * bias_stride:
     * row_scores (keys = NULL: 0), capped, less ALiBi's, plus bias (NULL: 0), row_softmax and row_weighted_sum in one.
     * The maximum need not be the largest score, but no score is above it by more than 16; with ALiBi it may be above
     * all of them by up to 34.  Weights may be rounded to bfloat16 for the products.  What becomes of a row does not
     * depend on the others. */
    void (*rows_attend)(const ice_bf16_rows *rows, uint64_t lanes, const uint16_t *keys, const uint16_t *values,
                        int64_t count, const float *bias, int64_t bias_stride);
} ice_bf16_kernels;

/* Bfloat16 numbers that make one of float32. */
#define ICE_THIRDS 3

/* Panel kernels on float32 numbers in thirds, three bfloat16 numbers whose sum each is, for machines that multiply
 * bfloat16 many times faster.  What packs says whether thirds hold the numbers; where some are not finite or above
 * 2^60, or all of them below 2^-60, they do not, and what was packed is not to be used. */
typedef struct {
    int dim_multiple, value_dim_multiple; /* widths this set can do */
    /* panel: dim x ICE_PANEL; pairs: three times as many, pairs as of ice_bf16_kernels for each third. */
    int (*pack_queries)(const float *panel, int64_t dim, uint16_t *pairs);
    /* Room for 3 x `count` rounded up to ICE_PACKED rows; what follows a multiple of ICE_PACKED rows begins so many
     * times three rows further on. */
    int (*pack_keys)(const float *keys, int64_t stride, int64_t count, int64_t dim, uint16_t *packed);
    int (*pack_values)(const float *values, int64_t stride, int64_t count, int64_t value_dim, uint16_t *packed);
    /* As that of ice_bf16_kernels, but that weights are not rounded; what it sums is as near as float32's own sums. */
    void (*panel_attend)(const ice_bf16_panel *panel, const uint16_t *packed_keys, const uint16_t *packed_values,
                         int64_t count, const float *bias);
} ice_thirds_kernels;

/* Queries of a search in 8-bit codes, side by side.  Their bytes lie in fours: quads[(t / 4 * ICE_PANEL + lane) * 4 + t
 * % 4], within [-127, 127]; missing ones are 0. */
typedef struct {
    const int8_t *quads;
    int lanes;
    const float *base, *scale;
    const int32_t *offset; /* -128 sum_t query[t][lane] */
} ice_code_panel;

typedef struct {
    const char *isa;
    int width;                        /* floats in a vector */
    const ice_bf16_kernels *bf16;     /* NULL where bfloat16 is widened to float32 instead */
    const ice_thirds_kernels *thirds; /* NULL where float32 is multiplied as it is */

    /* ---- kernels/convert.inc.h ---- */

    /* `count` contiguous numbers; of a quantized type one row of as many.  Rounds to nearest, ties to even; the same
     * bits on every instruction set. */
    void (*to_float32)(icecore_dtype dtype, const void *source, float *target, int64_t count);
    void (*from_float32)(icecore_dtype dtype, const float *source, void *target, int64_t count);
    /* Numbers in halves: `high` is a number rounded to bfloat16, ties away from 0, and `low` what makes it whole again,
     * bit for bit; of a NaN some NaN.  split returns whether a finite number's first half is infinite. */
    int (*split)(const float *source, uint16_t *high, uint16_t *low, int64_t count);
    void (*join)(const uint16_t *high, const uint16_t *low, float *target, int64_t count);
    /* product[i] = x[i] * factor[i]; x may be the product. */
    void (*multiply)(const float *x, const float *factor, int64_t count, float *product);

    /* ---- kernels/softcap.inc.h ---- */

    /* scores[j][lane] = cap tanh(scores[j][lane] / cap), for `lanes` lanes and no more: of a panel, or with count = 1
     * of one query as many as it has keys.  cap: from 1e-30 to 2e30.  Within 3e-7 of the smaller of |score| and cap.
     * inf gives cap, -inf -cap, NaN stays. */
    void (*softcap)(float *scores, int64_t count, int64_t lanes, float cap);

    /* ---- kernels/alibi.inc.h ---- */

    /* scores[j][lane] -= slope[lane] * |offset[lane] + first + j|, of a panel. */
    void (*alibi)(float *scores, int64_t first, int64_t count, int lanes, const ice_alibi *alibi);
    /* scores[j] -= slope * |offset + j|, of one query. */
    void (*row_alibi)(float *scores, int64_t count, float slope, float offset);

    /* ---- kernels/panel.inc.h ---- */

    /* panel[t][lane] = rows[lane][t], for all lanes; and back, rows[lane * dim + t]. */
    void (*to_panel)(const float *const *rows, int64_t dim, float *panel);
    void (*from_panel)(const float *panel, int64_t dim, float *rows);
    /* scores[j][lane] = sum_t keys[j * stride + t] panel[t][lane]  for j < count, t < dim. */
    void (*scores)(const float *panel, int64_t dim, int lanes, const float *keys, int64_t stride, int64_t count,
                   float *scores);
    /* scores[j][lane] = -inf unless lower[lane] <= j < upper[lane]. */
    void (*mask_range)(float *scores, int64_t count, int lanes, const float *lower, const float *upper);
    /* One step of the online softmax.  new = max(maximum, max_j scores[j]); scores[j] becomes 2^(scores[j] - new);
     * correction = 2^(maximum - new); sum = sum * correction + sum_j scores[j]; maximum = new.
     * While nothing was visible the maximum stays -inf, weights are 0 and the correction is 1. */
    void (*softmax)(float *scores, int64_t count, int lanes, float *maximum, float *sum, float *correction);
    /* accumulator[t][lane] = accumulator[t][lane] * correction[lane] + sum_j weights[j][lane] values[j * stride + t].
     */
    void (*weighted_sum)(const float *weights, int64_t count, int lanes, const float *values, int64_t stride,
                         int64_t value_dim, const float *correction, float *accumulator);

    /* sums[j] += sum_lane weights[lane] * max(scores[j][lane], 0), of `lanes` lanes and no more; a NaN stays. */
    void (*relu_sum)(const float *scores, int64_t count, int lanes, const float *weights, float *sums);

    /* ---- kernels/rows.inc.h and quantized.inc.h: one query at a time, lanes along the components; strides as
     * ice_row_stride has them ---- */

    /* scores[j] = sum_t query[t] keys[j * stride + t]. */
    void (*row_scores)(const float *query, int64_t dim, icecore_dtype dtype, const void *keys, int64_t stride,
                       int64_t count, float *scores);
    /* As softmax, for one query. */
    void (*row_softmax)(float *scores, int64_t count, float *maximum, float *sum, float *correction);
    /* accumulator[t] = accumulator[t] * correction + sum_j weights[j] values[j * stride + t]. */
    void (*row_weighted_sum)(const float *weights, int64_t count, icecore_dtype dtype, const void *values,
                             int64_t stride, int64_t value_dim, float correction, float *accumulator);

    /* ---- kernels/gather.inc.h: the same over rows that lie anywhere, but no quantized ones ---- */

    /* scores[i] = query . row i with scale = 0, else -|query - scale row i|^2 / 2.  rows[i]: dim contiguous numbers of
     * `dtype`. */
    void (*gathered_scores)(const float *query, int64_t dim, float scale, icecore_dtype dtype, const void *const *rows,
                            int64_t count, float *scores);
    /* accumulator[t] = accumulator[t] * correction + sum_i weights[i] row_i[t].  rows[i]: value_dim contiguous numbers
     * of `dtype`. */
    void (*gathered_weighted_sum)(const float *weights, int64_t count, icecore_dtype dtype, const void *const *rows,
                                  int64_t value_dim, float correction, float *accumulator);

    /* ---- kernels/cells.inc.h ---- */

    /* Keeps, per lane, the largest scores[j] + bias[j] seen and its index first + j (as a float, exact below 2^24); the
     * smaller index among equals. */
    void (*nearest)(const float *scores, int64_t count, int lanes, const float *bias, int64_t first, float *best,
                    float *best_index);
    /* scores[c][lane] += hidden[lane] (0, or -inf for lanes that have nothing to do with these cells; NULL: none), then
     * risk[c][lane] = scores[c][lane] + log2_weight[c] + min(F(x, n), norm[lane] * radius[c]),
     *   x = spread * variance[lane] * variance[c]
     *   F = log2(sqrt(x)) + log2(e) x / 4 (1 + x / (12 + x))   where x <= 2 ln n: log2(sqrt(exp(x) - 1)) within 5 %
     *   F = log2(e) sqrt(2 x ln n) - log2(n)   beyond: n samples of a normal distribution reach no further */
    void (*cell_risk)(float *scores, int64_t cells, int lanes, const ice_node_facts *cell, const ice_spreads *rows,
                      const float *hidden, float *risk);
    /* keys[lane], opened[lane] = how many keys, how many cells have not (risk < threshold[lane]); `count` holds the
     * cells' sizes. A NaN risk is thus always opened. */
    void (*count_at_least)(const float *risk, int64_t cells, int lanes, const float *count, const float *threshold,
                           float *keys, float *opened);
    /* Opens the cells that count_at_least counts: bit `lane` of open[c] is set and the score becomes -inf; others grow
     * by log2_count[c]. */
    void (*open_cells)(float *scores, const float *risk, int64_t cells, int lanes, const float *threshold,
                       const float *log2_count, uint64_t *open);

    /* cell_risk and open_cells for one row and at most 64 cells: scores become what open_cells makes of them; returns
     * the opened cells, a bit each. */
    uint64_t (*row_open_cells)(float *scores, int64_t cells, const ice_node_facts *cell, const ice_spreads *row,
                               float threshold);

    /* ---- kernels/codes.inc.h: 8-bit codes, and what a k-NN search does with scores ---- */

    /* scores[j][lane] = base[lane] + panel->scale[lane] * scale[j] * sum_t (codes[j * stride + t] - 128)
     * query[t][lane] + bias[j], the sum in integers.  `stride` is the width rounded up to a multiple of 4, at most
     * 65536.  bias: NULL for 0. */
    void (*code_scores)(const ice_code_panel *panel, const uint8_t *codes, int64_t stride, const float *scale,
                        const float *bias, int64_t count, float *scores);
    /* The places j * ICE_PANEL + lane, ascending, of scores that are at least threshold[lane]; returns how many.  A NaN
     * is not. */
    int64_t (*find_at_least)(const float *scores, int64_t count, int lanes, const float *threshold, int32_t *places);
    /* threshold[lane] = a number that at least `wanted` <= count of the lane's scores reach; exactly so many unless
     * scores tie, to the precision of 32 halvings of the range of the best.  Depends on the lane's scores alone.  No
     * NaN. */
    void (*nth_largest)(const float *scores, int64_t count, int lanes, int64_t wanted, float *threshold);
    /* Keeps the entries whose scores reach *bound, in their order, and returns how many: `keep` < count, or more where
     * scores tie with the keep-th largest, which the bound is then.  No NaN. */
    int64_t (*keep_reaching)(float *scores, int32_t *numbers, int64_t count, int64_t keep, float *bound);
    /* Keeps the `keep` < count entries with the largest scores, the smaller numbers among equals, in their order;
     * returns a bound that all of them reach and that no score left out exceeds.  No NaN. */
    float (*keep_largest)(float *scores, int32_t *numbers, int64_t count, int64_t keep);
    /* rank[i] = how many scores are larger, or equal and earlier: a permutation.  Quadratic, for up to a few hundred.
     * No NaN. */
    void (*rank)(const float *scores, int64_t count, int32_t *rank);
    /* code[t] = (x[t] - center[t]) / scale to the nearest integer, halves away from 0, within [-127, 127]; scale such
     * that the largest magnitude becomes 127, or all 0 where that is below 127 / FLT_MAX; the last bytes up to `stride`
     * are 0.  Returns the scale.  center: NULL for 0. */
    float (*encode)(const float *x, const float *center, int64_t dim, int64_t stride, int8_t *code);
    /* A query less a mean in one lane of an ice_code_panel: query - scale center, in codes as of `encode`, four at
     * every 4 ICE_PANEL bytes from `quads` on, up to the width rounded up to a multiple of 4; *offset as in the panel;
     * *score =
     * -|query - scale center|^2 / 2.  scale: a power of two.  Returns the codes' scale. */
    float (*encode_lane)(const float *query, const float *center, float scale, int64_t dim, int8_t *quads,
                         int32_t *offset, float *score);
    /* scores[j][lane] = -|query[lane] - scale keys[j]|^2 / 2, from the differences; the panel and the rows as in
     * `scores`. */
    void (*squared_distances)(const float *panel, int64_t dim, int lanes, float scale, const float *keys,
                              int64_t stride, int64_t count, float *scores);
    /* distance[i] = max over j < simples of |projection[j * stride + i] - query[j]|. */
    void (*chebyshev)(const float *projection, int64_t stride, int simples, const float *query, int64_t count,
                      float *distance);
} ice_kernels;

/* The table in force (isa/dispatch.c); NULL when ICECORE_ISA asks for what is not usable. */
const ice_kernels *ice_active_kernels(void);
/* The table of one usable instruction set, or NULL. */
const ice_kernels *ice_find_kernels(const char *isa);

#endif
