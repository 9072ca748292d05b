/* bfloat16 kernels on the dot product instruction of AVX512_BF16: two products a lane into a float32 sum.
 *
 * Same register tile as kernels/panel.inc.h, over pairs: a step covers two components (scores) or two keys (weighted sum).  Keys are
 * read where they lie, as broadcast 32-bit pairs.  Values are interleaved first, two keys at a time: packed[(j / 2 * value_dim + t) * 2 +
 * j % 2].  The instruction takes subnormal numbers as 0 and rounds to nearest even.
 * Earned by bench/bench_exact.py: see the bfloat16 rows of bench/README.md against ICECORE_ISA=avx512. */

/* sum over i < length of two products: a pairs at a[r * row_stride + i * step] (in 16-bit units), b pairs of all lanes. */
static ALWAYS_INLINE void pair_tile(const uint16_t *a, int64_t row_stride, int64_t step, const uint16_t *b, int64_t length,
                                    float *out, float scale, const float *correction, const int rows, const int vectors) {
    vf sum[KEY_TILE][QUERY_VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int q = 0; q < vectors; q++) sum[r][q] = vf_zero();
    for (int64_t i = 0; i < length; i++) {
        __m512bh column[QUERY_VECTORS];
        UNROLL for (int q = 0; q < vectors; q++)
            column[q] = (__m512bh)_mm512_loadu_si512(b + (i * ICE_PANEL + q * VF_WIDTH) * 2);
        UNROLL for (int r = 0; r < rows; r++) {
            int pair;
            memcpy(&pair, a + r * row_stride + i * step, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL for (int q = 0; q < vectors; q++) sum[r][q] = _mm512_dpbf16_ps(sum[r][q], x, column[q]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int q = 0; q < vectors; q++) {
            float *target = out + r * ICE_PANEL + q * VF_WIDTH;
            vf result = correction ? vf_fma(vf_load(target), vf_load(correction + q * VF_WIDTH), sum[r][q])
                                   : vf_mul(sum[r][q], vf_set1(scale));
            vf_store(target, result);
        }
}

static ALWAYS_INLINE void pair_column(const uint16_t *a, int64_t rows, int64_t row_stride, int64_t step, const uint16_t *b,
                                      int64_t length, float *out, float scale, const float *correction, const int vectors) {
    int64_t r = 0;
    for (; r + KEY_TILE <= rows; r += KEY_TILE)
        pair_tile(a + r * row_stride, row_stride, step, b, length, out + r * ICE_PANEL, scale, correction, KEY_TILE, vectors);
    for (; r < rows; r++)
        pair_tile(a + r * row_stride, row_stride, step, b, length, out + r * ICE_PANEL, scale, correction, 1, vectors);
}

static ALWAYS_INLINE void pair_product(const uint16_t *a, int64_t rows, int64_t row_stride, int64_t step, const uint16_t *b,
                                       int64_t length, int lanes, float *out, float scale, const float *correction) {
    int lane = 0;
    for (; lanes - lane > (QUERY_VECTORS - 1) * VF_WIDTH; lane += QUERY_VECTORS * VF_WIDTH)
        pair_column(a, rows, row_stride, step, b + 2 * lane, length, out + lane, scale, correction ? correction + lane : NULL,
                    QUERY_VECTORS);
    for (; lane < lanes; lane += VF_WIDTH)
        pair_column(a, rows, row_stride, step, b + 2 * lane, length, out + lane, scale, correction ? correction + lane : NULL, 1);
}

static void dot_scores(const uint16_t *queries, int64_t dim, int lanes, float scale, const uint16_t *keys, int64_t stride,
                       int64_t count, float *out) {
    pair_product(keys, count, stride, 2, queries, dim / 2, lanes, out, scale, NULL);
}

static void dot_weighted_sum(const uint16_t *weights, int64_t count, int lanes, const uint16_t *values, int64_t value_dim,
                             const float *correction, float *accumulator) {
    pair_product(values, value_dim, 2, 2 * value_dim, weights, (count + 1) / 2, lanes, accumulator, 1.0f, correction);
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

static void dot_pack_values(const uint16_t *values, int64_t stride, int64_t count, int64_t value_dim, uint16_t *packed) {
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

/* How far above the maximum (log2 units) scores may rise before the sums are rescaled: weights stay below 2^LAZY. */
#define LAZY 16.0f

/* Numbers of one lane after the other of 16 vectors, added up: lane i of the result is the sum of sum[i]. */
static ALWAYS_INLINE __m512 add_across(const __m512 *sum) {
    __m512 two[8], four[4], eight[2];
    UNROLL for (int i = 0; i < 8; i++)
        two[i] = _mm512_add_ps(_mm512_unpacklo_ps(sum[2 * i], sum[2 * i + 1]), _mm512_unpackhi_ps(sum[2 * i], sum[2 * i + 1]));
    UNROLL for (int i = 0; i < 4; i++) {
        __m512d low = _mm512_castps_pd(two[2 * i]), high = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    }
    UNROLL for (int i = 0; i < 2; i++)
        eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                                 _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xDD));
    return _mm512_add_ps(_mm512_shuffle_f32x4(eight[0], eight[1], 0x88), _mm512_shuffle_f32x4(eight[0], eight[1], 0xDD));
}

/* Up to 16 keys; those missing are read as the last one. */
static ALWAYS_INLINE __m512 dot_row_block(const uint16_t *query, int64_t dim, const uint16_t *keys, int64_t stride, int64_t count) {
    __m512 sum[16];
    const __mmask32 rest = dim % 32 ? (__mmask32)(((uint64_t)1 << dim % 32) - 1) : (__mmask32)~0u;
    UNROLL for (int r = 0; r < 16; r++) {
        const uint16_t *row = keys + (r < count ? r : count - 1) * stride;
        sum[r] = _mm512_setzero_ps();
        int64_t t = 0;
        for (; t + 32 <= dim; t += 32)
            sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)_mm512_loadu_si512(query + t), (__m512bh)_mm512_loadu_si512(row + t));
        if (t < dim)
            sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)_mm512_maskz_loadu_epi16(rest, query + t),
                                      (__m512bh)_mm512_maskz_loadu_epi16(rest, row + t));
    }
    return add_across(sum);
}

static ALWAYS_INLINE vf dot_row_16(const uint16_t *query, int64_t dim, float scale, const uint16_t *keys, int64_t stride, int64_t count) {
    vf sums = dim == 64 ? dot_row_block(query, 64, keys, stride, count) : dot_row_block(query, dim, keys, stride, count);
    return vf_mul(sums, vf_set1(scale));
}

static void dot_row_scores(const uint16_t *query, int64_t dim, float scale, const uint16_t *keys, int64_t stride, int64_t count,
                           float *out) {
    for (int64_t j = 0; j < count; j += 16) {
        int n = count - j < 16 ? (int)(count - j) : 16;
        vf_store_n(out + j, dot_row_16(query, dim, scale, keys + j * stride, stride, n), n);
    }
}

/* accumulator += weights * values for at most 16 rows, two rows at a time; `rounded`: 16 weights, 0 for rows that are missing. */
static ALWAYS_INLINE void dot_add_rows(const uint16_t *rounded, const float *weights, int count, const uint16_t *values, int64_t stride,
                                       int64_t value_dim, float correction, float *accumulator) {
    /* the numbers of two rows side by side, 32 of each in two vectors */
    const __m512i low_pairs = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                               35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high_pairs = _mm512_add_epi16(low_pairs, _mm512_set1_epi16(16));
    const vf change = vf_set1(correction);
    int64_t t = 0;
    for (; t + 64 <= value_dim; t += 64) {
        vf sum[4];
        UNROLL for (int u = 0; u < 4; u++) sum[u] = vf_mul(vf_load(accumulator + t + 16 * u), change);
        for (int j = 0; j < count; j += 2) {
            const uint16_t *row = values + j * stride + t;
            const int both = j + 1 < count;
            int pair;
            memcpy(&pair, rounded + j, sizeof pair);
            __m512bh w = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL for (int u = 0; u < 2; u++) {
                __m512i one = _mm512_loadu_si512(row + 32 * u);
                __m512i two = both ? _mm512_loadu_si512(row + stride + 32 * u) : _mm512_setzero_si512();
                sum[2 * u] = _mm512_dpbf16_ps(sum[2 * u], w, (__m512bh)_mm512_permutex2var_epi16(one, low_pairs, two));
                sum[2 * u + 1] = _mm512_dpbf16_ps(sum[2 * u + 1], w, (__m512bh)_mm512_permutex2var_epi16(one, high_pairs, two));
            }
        }
        UNROLL for (int u = 0; u < 4; u++) vf_store(accumulator + t + 16 * u, sum[u]);
    }
    if (t < value_dim) row_weighted_sum_bf16(weights, count, values + t, stride, value_dim - t, correction, accumulator + t);
}

/* Scores, weights and values of 16 keys at a time, the scores in a register.  The maximum moves only when a score is far above it. */
static void dot_row_attend(const uint16_t *query, int64_t dim, float scale, const uint16_t *keys, const uint16_t *values,
                           int64_t value_dim, int64_t count, const float *bias, float *maximum, float *sum, float *accumulator) {
    const vf nothing = vf_set1(-INFINITY);
    float top = *maximum;
    vf total = vf_zero();
    for (int64_t j = 0; j < count; j += 16) {
        const int n = count - j < 16 ? (int)(count - j) : 16;
        const __mmask16 present = vf_first_lanes(n);
        vf z = keys ? dot_row_16(query, dim, scale, keys + j * dim, dim, n) : vf_zero();
        float correction = 1.0f;
        if (bias) z = vf_add(z, vf_load_n(bias + j, n));
        z = _mm512_mask_mov_ps(nothing, present, z);
        /* a NaN leaves the maximum alone and shows in the sum */
        if (_mm512_cmp_ps_mask(z, vf_set1(top + LAZY), _CMP_GT_OQ) || top == -INFINITY) {
            float largest = vf_reduce_max(_mm512_mask_mov_ps(nothing, _mm512_cmp_ps_mask(z, z, _CMP_EQ_OQ), z));
            if (largest > top) {
                if (top > -INFINITY) {
                    float power[16];
                    vf_store(power, vf_exp2(vf_set1(top - largest)));
                    correction = power[0];
                    total = vf_mul(total, vf_set1(correction));
                    *sum *= correction;
                }
                top = largest;
            }
        }
        vf weight = _mm512_maskz_mov_ps(present, vf_exp2(vf_sub(z, vf_set1(top == -INFINITY ? 0.0f : top))));
        uint16_t rounded[16];
        float weights[16];
        total = vf_add(total, weight);
        _mm256_storeu_si256((__m256i *)rounded, (__m256i)_mm512_cvtneps_pbh(weight));
        if (value_dim % 64) vf_store(weights, weight);
        dot_add_rows(rounded, weights, n, values + j * value_dim, value_dim, value_dim, correction, accumulator);
    }
    *maximum = top;
    *sum += vf_reduce_add(total);
}

static const ice_bf16_kernels bf16_dot __attribute__((unused)) = {
    .dim_multiple = 2,
    .value_dim_multiple = 1,
    .pack_queries = dot_pack_queries,
    .scores = dot_scores,
    .pack_weights = dot_pack_queries,
    .pack_values = dot_pack_values,
    .weighted_sum = dot_weighted_sum,
    .row_scores = dot_row_scores,
    .row_attend = dot_row_attend,
};
