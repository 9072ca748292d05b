/* Rows of ICECORE_INT8 and ICECORE_INT4 (kernels.h), one query at a time: codes are widened in registers, and a group
 * of them is a vector, or a few, under one scale.  The type is a constant wherever it matters.
 *
 * Codes of 4 bits are of a group's Hadamard transform, y = H x / 16, x = H y: a large number among small ones, as keys
 * of language models have them in some components, then takes no digits from its neighbours (QuaRot, arXiv 2404.00456).
 * Products need no widened rows: q . x = (H q) . y, and sum w x = H sum w y. */

#define GROUP ICE_CODE_GROUP

/* The codes of the `n` numbers from number t on. */
static ALWAYS_INLINE vf load_codes(const icecore_dtype dtype, const uint8_t *row, int64_t t, int n) {
    const int8_t *byte = (const int8_t *)row + t;
    if (dtype == ICECORE_INT4) return vf_load_i4(row + t / GROUP * (GROUP / 2), (int)(t % GROUP));
    return n == VF_WIDTH ? vf_load_i8(byte) : vf_load_i8_n(byte, n);
}

static ALWAYS_INLINE vf load_scale(const icecore_dtype dtype, const uint8_t *row, int64_t dim, int64_t t) {
    return vf_set1_bf16(row + ice_code_bytes(dtype, dim) + t / GROUP * (int64_t)sizeof(uint16_t));
}

/* x = H x, of GROUP numbers; the same bits for any width of vectors. */
static ALWAYS_INLINE void hadamard(float *x) {
    enum { VECTORS = GROUP / VF_WIDTH };
    vf v[VECTORS];
    UNROLL for (int i = 0; i < VECTORS; i++) {
        v[i] = vf_load(x + i * VF_WIDTH);
        UNROLL for (int half = 1; half < VF_WIDTH; half *= 2)
            v[i] = vf_butterfly(v[i], half);
    }
    UNROLL for (int half = 1; half < VECTORS; half *= 2) {
        UNROLL for (int i = 0; i < VECTORS; i++) {
            if (i & half) continue;
            const vf first = v[i], second = v[i + half];
            v[i] = vf_add(first, second);
            v[i + half] = vf_sub(first, second);
        }
    }
    UNROLL for (int i = 0; i < VECTORS; i++)
        vf_store(x + i * VF_WIDTH, v[i]);
}

/* Codes of GROUP numbers; returns their scale. */
static uint16_t quantize_group(const float *x, float largest_code, int8_t *code) {
    uint32_t largest = 0; /* magnitudes are ordered as their bits are, with inf and NaN above all numbers */
    for (int i = 0; i < GROUP; i++) {
        uint32_t bits = ice_float_bits(x[i]) & 0x7FFFFFFFu;
        largest = bits > largest ? bits : largest;
    }
    uint16_t scale = largest < 0x7F800000u ? ice_float_to_bfloat16(ice_bits_float(largest) / largest_code) : 0x7FC0u;
    if (scale < 0x80u) scale = 0; /* below the normal range */
    const float step = scale != 0x7FC0u ? ice_bfloat16_to_float(scale) : 0.0f;
    for (int i = 0; i < GROUP; i++) {
        /* at most half beyond the largest code; adding 1.5 * 2^23 rounds to an integer, whose two's complement the low
         * bits then hold */
        float rounded = (step > 0.0f ? x[i] / step : 0.0f) + 12582912.0f;
        code[i] = (int8_t)(uint8_t)ice_float_bits(rounded);
    }
    return scale;
}

static void quantize_row(icecore_dtype dtype, const float *source, uint8_t *row, int64_t dim) {
    uint8_t *scales = row + ice_code_bytes(dtype, dim);
    for (int64_t first = 0; first < dim; first += GROUP, scales += sizeof(uint16_t)) {
        const size_t n = dim - first < GROUP ? (size_t)(dim - first) : GROUP;
        float x[GROUP] = {0};
        int8_t code[GROUP];
        memcpy(x, source + first, n * sizeof *x);
        if (dtype == ICECORE_INT4) {
            for (int i = 0; i < GROUP; i++) x[i] /= GROUP;
            hadamard(x);
        }
        const uint16_t scale = quantize_group(x, dtype == ICECORE_INT4 ? 7.0f : 127.0f, code);
        if (dtype == ICECORE_INT8) memcpy(row + first, code, n);
        for (int i = 0; dtype == ICECORE_INT4 && i < GROUP / 2; i++)
            row[first / 2 + i] = (uint8_t)((code[i] & 15) | (code[GROUP / 2 + i] & 15) << 4);
        memcpy(scales, &scale, sizeof scale);
    }
}

static ALWAYS_INLINE void widen_codes(const icecore_dtype dtype, const uint8_t *row, float *target, int64_t dim) {
    for (int64_t t = 0; t < dim; t += VF_WIDTH) {
        const int n = dim - t < VF_WIDTH ? (int)(dim - t) : VF_WIDTH;
        const vf number = vf_mul(load_codes(dtype, row, t, n), load_scale(dtype, row, dim, t));
        if (n == VF_WIDTH) vf_store(target + t, number);
        else vf_store_n(target + t, number, n);
    }
}

/* The numbers of whole groups. */
static int64_t whole_groups(int64_t dim) { return ice_code_groups(dim) * GROUP; }

static void dequantize_row(icecore_dtype dtype, const uint8_t *row, float *target, int64_t dim) {
    if (dtype == ICECORE_INT8) {
        widen_codes(ICECORE_INT8, row, target, dim);
        return;
    }
    float x[ICECORE_MAX_DIM];
    widen_codes(ICECORE_INT4, row, x, whole_groups(dim));
    for (int64_t first = 0; first < dim; first += GROUP) hadamard(x + first);
    memcpy(target, x, (size_t)dim * sizeof *x);
}

/* Adds to the sums of `rows` rows, a constant, the products of the `n` numbers from number t on. */
static ALWAYS_INLINE void add_products(const icecore_dtype dtype, vf q, int64_t t, int n, int64_t dim,
                                       const uint8_t *keys, int64_t stride, vf sum[4], const int rows) {
    UNROLL for (int u = 0; u < rows; u++) {
        const uint8_t *row = keys + u * stride;
        sum[u] = vf_fma(vf_mul(q, load_codes(dtype, row, t, n)), load_scale(dtype, row, dim, t), sum[u]);
    }
}

static ALWAYS_INLINE void quantized_scores_tile(const icecore_dtype dtype, const float *query, int64_t dim,
                                                const uint8_t *keys, int64_t stride, float *out, const int rows) {
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int64_t t = 0;
    for (; t + VF_WIDTH <= dim; t += VF_WIDTH)
        add_products(dtype, vf_load(query + t), t, VF_WIDTH, dim, keys, stride, sum, rows);
    if (t < dim) {
        const int n = (int)(dim - t);
        add_products(dtype, vf_load_n(query + t, n), t, n, dim, keys, stride, sum, rows);
    }
    if (rows == 4) vf_reduce_add4(sum[0], sum[1], sum[2], sum[3], out);
    else out[0] = vf_reduce_add(sum[0]);
}

static ALWAYS_INLINE void row_scores_quantized(const icecore_dtype dtype, const float *query, int64_t dim,
                                               const uint8_t *keys, int64_t stride, int64_t count, float *out) {
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) quantized_scores_tile(dtype, query, dim, keys + j * stride, stride, out + j, 4);
    for (; j < count; j++) quantized_scores_tile(dtype, query, dim, keys + j * stride, stride, out + j, 1);
}

static ALWAYS_INLINE void row_weighted_sum_quantized(const icecore_dtype dtype, const float *weights, int64_t count,
                                                     const uint8_t *values, int64_t stride, int64_t value_dim,
                                                     float correction, float *accumulator) {
    const vf change = vf_set1(correction);
    int64_t t = 0;
    for (; t + 4 * VF_WIDTH <= value_dim; t += 4 * VF_WIDTH) {
        vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        for (int64_t j = 0; j < count; j++) {
            const uint8_t *row = values + j * stride;
            const vf weight = vf_set1(weights[j]);
            UNROLL for (int u = 0; u < 4; u++) {
                vf factor = vf_mul(weight, load_scale(dtype, row, value_dim, t + u * VF_WIDTH));
                sum[u] = vf_fma(factor, load_codes(dtype, row, t + u * VF_WIDTH, VF_WIDTH), sum[u]);
            }
        }
        UNROLL for (int u = 0; u < 4; u++) {
            float *target = accumulator + t + u * VF_WIDTH;
            vf_store(target, vf_fma(vf_load(target), change, sum[u]));
        }
    }
    for (; t < value_dim; t += VF_WIDTH) {
        int n = value_dim - t < VF_WIDTH ? (int)(value_dim - t) : VF_WIDTH;
        vf sum = vf_zero();
        for (int64_t j = 0; j < count; j++) {
            const uint8_t *row = values + j * stride;
            const vf factor = vf_mul(vf_set1(weights[j]), load_scale(dtype, row, value_dim, t));
            sum = vf_fma(factor, load_codes(dtype, row, t, n), sum);
        }
        vf_store_n(accumulator + t, vf_fma(vf_load_n(accumulator + t, n), change, sum), n);
    }
}

static void row_scores_int4(const float *query, int64_t dim, const uint8_t *keys, int64_t stride, int64_t count,
                            float *out) {
    float transformed[ICECORE_MAX_DIM];
    const int64_t whole = whole_groups(dim);
    memcpy(transformed, query, (size_t)dim * sizeof *query);
    for (int64_t t = dim; t < whole; t++) transformed[t] = 0.0f;
    for (int64_t t = 0; t < dim; t += GROUP) hadamard(transformed + t);
    row_scores_quantized(ICECORE_INT4, transformed, whole, keys, stride, count, out);
}

static void row_weighted_sum_int4(const float *weights, int64_t count, const uint8_t *values, int64_t stride,
                                  int64_t value_dim, float correction, float *accumulator) {
    float sum[ICECORE_MAX_DIM];
    const int64_t whole = whole_groups(value_dim);
    memset(sum, 0, (size_t)whole * sizeof *sum);
    row_weighted_sum_quantized(ICECORE_INT4, weights, count, values, stride, whole, 1.0f, sum);
    for (int64_t t = 0; t < value_dim; t += GROUP) hadamard(sum + t);
    for (int64_t t = 0; t < value_dim; t++) accumulator[t] = accumulator[t] * correction + sum[t];
}

#undef GROUP
