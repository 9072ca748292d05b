/* bfloat16 kernels on the dot product instruction of AVX512_BF16: two products a lane into a float32 sum.
 *
 * Same register tile as kernels/panel.inc.h, over pairs: a step covers two components (scores) or two keys (weighted
 * sum).  Keys are read where they lie, as broadcast 32-bit pairs.  Values are interleaved first, two keys at a time:
 * packed[(j / 2 * value_dim + t) * 2 + j % 2].  The instruction takes subnormal numbers as 0 and rounds to nearest
 * even. Earned by bench/bench_exact.py: see the bfloat16 rows of bench/README.md against ICECORE_ISA=avx512. */

/* Stores a tile of products as scores, capped. */
static ALWAYS_INLINE void store_capped(vf product[KEY_TILE][QUERY_VECTORS], float *out, const soft_cap *c,
                                       const int rows, const int vectors) {
    vf largest = vf_zero();
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int q = 0; q < vectors; q++) largest = vf_max(_mm512_abs_ps(product[r][q]), largest);
    const int near = all_near(vf_mul(largest, largest), c);
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int q = 0; q < vectors; q++) {
            const vf square = vf_mul(product[r][q], product[r][q]);
            vf_store(out + r * ICE_PANEL + q * VF_WIDTH, near ? capped_near(product[r][q], square, c) : product[r][q]);
        }
    if (!near) cap_rows(out, rows, vectors * VF_WIDTH, c);
}

/* sum over i < length of two products: a pairs at a[r * row_stride + i * step] (in 16-bit units), b pairs of all lanes.
 */
static ALWAYS_INLINE void pair_tile(const uint16_t *a, int64_t row_stride, int64_t step, const uint16_t *b,
                                    int64_t length, float *out, float scale, const soft_cap *cap,
                                    const float *correction, const int rows, const int vectors) {
    vf sum[KEY_TILE][QUERY_VECTORS];
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int q = 0; q < vectors; q++) sum[r][q] = vf_zero();
    for (int64_t i = 0; i < length; i++) {
        __m512bh column[QUERY_VECTORS];
        UNROLL for (int q = 0; q < vectors; q++)
            column[q] = (__m512bh)_mm512_loadu_si512(b + (i * ICE_PANEL + q * VF_WIDTH) * 2);
        UNROLL for (int r = 0; r < rows; r++) {
            int pair;
            memcpy(&pair, a + r * row_stride + i * step, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL for (int q = 0; q < vectors; q++)
                sum[r][q] = _mm512_dpbf16_ps(sum[r][q], x, column[q]);
        }
    }
    if (cap) {
        store_capped(sum, out, cap, rows, vectors);
        return;
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int q = 0; q < vectors; q++) {
            float *target = out + r * ICE_PANEL + q * VF_WIDTH;
            vf result = correction ? vf_fma(vf_load(target), vf_load(correction + q * VF_WIDTH), sum[r][q])
                                   : vf_mul(sum[r][q], vf_set1(scale));
            vf_store(target, result);
        }
}

static ALWAYS_INLINE void pair_column(const uint16_t *a, int64_t rows, int64_t row_stride, int64_t step,
                                      const uint16_t *b, int64_t length, float *out, float scale, const soft_cap *cap,
                                      const float *correction, const int vectors) {
    int64_t r = 0;
    for (; r + KEY_TILE <= rows; r += KEY_TILE)
        pair_tile(a + r * row_stride, row_stride, step, b, length, out + r * ICE_PANEL, scale, cap, correction,
                  KEY_TILE, vectors);
    for (; r < rows; r++)
        pair_tile(a + r * row_stride, row_stride, step, b, length, out + r * ICE_PANEL, scale, cap, correction, 1,
                  vectors);
}

static ALWAYS_INLINE void pair_product(const uint16_t *a, int64_t rows, int64_t row_stride, int64_t step,
                                       const uint16_t *b, int64_t length, int lanes, float *out, float scale,
                                       const soft_cap *cap, const float *correction) {
    int lane = 0;
    for (; lanes - lane > (QUERY_VECTORS - 1) * VF_WIDTH; lane += QUERY_VECTORS * VF_WIDTH)
        pair_column(a, rows, row_stride, step, b + 2 * lane, length, out + lane, scale, cap,
                    correction ? correction + lane : NULL, QUERY_VECTORS);
    for (; lane < lanes; lane += VF_WIDTH)
        pair_column(a, rows, row_stride, step, b + 2 * lane, length, out + lane, scale, cap,
                    correction ? correction + lane : NULL, 1);
}

static void dot_scores(const uint16_t *queries, int64_t dim, int lanes, float scale, const uint16_t *keys,
                       int64_t stride, int64_t count, float *out) {
    pair_product(keys, count, stride, 2, queries, dim / 2, lanes, out, scale, NULL, NULL);
}

static void dot_capped_scores(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride, int64_t count, float *out,
                              const soft_cap *cap) {
    pair_product(keys, count, stride, 2, p->queries, p->dim / 2, p->lanes, out, p->scale, cap, NULL);
}

/* Two float vectors as bfloat16, lane by lane side by side: the first in the low halves. */
static ALWAYS_INLINE __m512i interleave_bf16(vf low, vf high) {
    __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
    __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}

static void dot_pack_queries(const float *panel, int64_t dim, uint16_t *pairs) {
    for (int64_t t = 0; t < dim; t += 2)
        for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH) {
            vf low = vf_load(panel + t * ICE_PANEL + lane);
            vf high = t + 1 < dim ? vf_load(panel + (t + 1) * ICE_PANEL + lane) : vf_zero();
            _mm512_storeu_si512(pairs + (t * ICE_PANEL + 2 * lane), interleave_bf16(low, high));
        }
}

static void dot_pack_values(const uint16_t *values, int64_t stride, int64_t count, int64_t value_dim,
                            uint16_t *packed) {
    for (int64_t j = 0; j < count; j += 2)
        for (int64_t t = 0; t < value_dim; t += VF_WIDTH) {
            const uint16_t *row = values + j * stride + t;
            __mmask16 lanes = vf_first_lanes(value_dim - t < VF_WIDTH ? (int)(value_dim - t) : VF_WIDTH);
            __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, row));
            __m512i high = j + 1 < count ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, row + stride))
                                         : _mm512_setzero_si512();
            _mm512_mask_storeu_epi32(packed + (j * value_dim + 2 * t), lanes,
                                     _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

/* Hidden keys have a bias of -inf, whatever their score. */
static void dot_add_bias(float *block, int64_t count, int lanes, const float *bias) {
    const vf hidden = vf_set1(-INFINITY);
    for (int64_t j = 0; j < count; j++)
        for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
            float *score = block + j * ICE_PANEL + lane;
            const vf added = vf_load(bias + j * ICE_PANEL + lane);
            vf_store(score, vf_select(vf_ge(hidden, added), hidden, vf_add(vf_load(score), added)));
        }
}

/* Weights become bfloat16, and lse is of scores whose products were: degree 4 (relative error 2.8e-6) is enough,
 * minimax as in simd/exp2.h.  x is not above 0, or NaN. */
static ALWAYS_INLINE vf weight_of(vf x) {
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP2_MIN), _CMP_NLT_UQ);
    const vf n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = vf_sub(x, n);
    vf p = vf_fma(f, vf_set1(0.009582700602f), vf_set1(0.05590687666f));
    p = vf_fma(f, p, vf_set1(0.2402410417f));
    p = vf_fma(f, p, vf_set1(0.6931241066f));
    return _mm512_maskz_scalef_ps(kept, vf_fma(f, p, vf_set1(1.0f)), n);
}

/* As `softmax`, from scores to weights as pairs of keys: a pass over floats less. */
static ALWAYS_INLINE void dot_softmax(const float *scores, int64_t count, int lanes, float *maximum, float *sum,
                                      float *correction, uint16_t *weights) {
    const vf nothing = vf_set1(-INFINITY);
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        const float *column = scores + lane;
        uint16_t *pairs = weights + 2 * lane;
        const vf before = vf_load(maximum + lane);
        vf top[4] = {before, before, before, before}, total[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        int64_t j = 0;
        for (; j + 4 <= count; j += 4) UNROLL
            for (int u = 0; u < 4; u++) top[u] = vf_max(top[u], vf_load(column + (j + u) * ICE_PANEL));
        for (; j < count; j++) top[0] = vf_max(top[0], vf_load(column + j * ICE_PANEL));
        const vf after = vf_max(vf_max(top[0], top[1]), vf_max(top[2], top[3]));
        /* subtracting -inf from -inf would be NaN: with nothing visible subtract 0 */
        const vf reference = vf_select(vf_ge(nothing, after), vf_zero(), after);
        for (j = 0; j + 4 <= count; j += 4) UNROLL
            for (int u = 0; u < 4; u += 2) {
                const vf low = weight_of(vf_sub(vf_load(column + (j + u) * ICE_PANEL), reference));
                const vf high = weight_of(vf_sub(vf_load(column + (j + u + 1) * ICE_PANEL), reference));
                _mm512_storeu_si512(pairs + (j + u) * ICE_PANEL, interleave_bf16(low, high));
                total[u] = vf_add(total[u], low);
                total[u + 1] = vf_add(total[u + 1], high);
            }
        for (; j < count; j += 2) {
            const vf low = weight_of(vf_sub(vf_load(column + j * ICE_PANEL), reference));
            const vf high =
                j + 1 < count ? weight_of(vf_sub(vf_load(column + (j + 1) * ICE_PANEL), reference)) : vf_zero();
            _mm512_storeu_si512(pairs + j * ICE_PANEL, interleave_bf16(low, high));
            total[0] = vf_add(total[0], vf_add(low, high));
        }
        const vf change = vf_select(vf_gt(before, nothing), vf_exp2(vf_sub(before, reference)), vf_set1(1.0f));
        const vf added = vf_add(vf_add(total[0], total[1]), vf_add(total[2], total[3]));
        vf_store(maximum + lane, after);
        vf_store(sum + lane, vf_fma(vf_load(sum + lane), change, added));
        vf_store(correction + lane, change);
    }
}

static void dot_panel_attend(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride, const uint16_t *values,
                             int64_t count, const float *bias) {
    float block[ICE_KEY_BLOCK * ICE_PANEL], correction[ICE_PANEL];
    uint16_t weights[ICE_KEY_BLOCK * ICE_PANEL];
    const soft_cap cap = soft_cap_of(p->scale, p->cap > 0.0f ? p->cap : 1.0f);
    for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH) vf_store(p->correction + lane, vf_set1(1.0f));
    for (int64_t first = 0; first < count; first += ICE_KEY_BLOCK) {
        const int64_t n = count - first < ICE_KEY_BLOCK ? count - first : ICE_KEY_BLOCK;
        if (keys && p->cap > 0.0f) dot_capped_scores(p, keys + first * stride, stride, n, block, &cap);
        else if (keys) dot_scores(p->queries, p->dim, p->lanes, p->scale, keys + first * stride, stride, n, block);
        if (keys && p->alibi) alibi(block, first, n, p->lanes, p->alibi);
        if (keys && bias) dot_add_bias(block, n, p->lanes, bias + first * ICE_PANEL);
        dot_softmax(keys ? block : bias + first * ICE_PANEL, n, p->lanes, p->maximum, p->sum, correction, weights);
        pair_product(values + first * p->value_dim, p->value_dim, 2, 2 * p->value_dim, weights, (n + 1) / 2, p->lanes,
                     p->accumulator, 1.0f, NULL, correction);
        for (int lane = 0; lane < p->lanes; lane += VF_WIDTH)
            vf_store(p->correction + lane, vf_mul(vf_load(p->correction + lane), vf_load(correction + lane)));
    }
}

#include "isa/bf16_rows.inc.h"

static const ice_bf16_kernels bf16_dot __attribute__((unused)) = {
    .dim_multiple = 2,
    .value_dim_multiple = 1,
    .panel_lanes = 32, /* 24: 1 to 2 % slower at 8k, 40 and 48: 1 % slower at 32k */
    .pack_queries = dot_pack_queries,
    .scores = dot_scores,
    .pack_values = dot_pack_values,
    .panel_attend = dot_panel_attend,
    .row_scores = bf16_row_scores,
    .rows_attend = bf16_rows_attend,
};
