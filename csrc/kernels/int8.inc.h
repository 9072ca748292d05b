/* Rows of ICECORE_INT8 (kernels.h), one query at a time: codes are widened in registers, and a group of them is a
 * vector, or a few, under one scale. */

static ALWAYS_INLINE vf int8_scale(const int8_t *row, int64_t dim, int64_t t) {
    return vf_set1_bf16(row + dim + t / ICE_INT8_GROUP * (int64_t)sizeof(uint16_t));
}

static void round_to_int8(const float *source, int8_t *row, int64_t dim) {
    for (int64_t first = 0; first < dim; first += ICE_INT8_GROUP) {
        const float *x = source + first;
        const int n = dim - first < ICE_INT8_GROUP ? (int)(dim - first) : ICE_INT8_GROUP;
        uint32_t largest = 0; /* magnitudes are ordered as their bits are, with inf and NaN above all numbers */
        for (int i = 0; i < n; i++) {
            uint32_t bits = ice_float_bits(x[i]) & 0x7FFFFFFFu;
            largest = bits > largest ? bits : largest;
        }
        uint16_t scale = largest < 0x7F800000u ? ice_float_to_bfloat16(ice_bits_float(largest) / 127.0f) : 0x7FC0u;
        if (scale < 0x80u) scale = 0; /* below the normal range */
        const float inverse = scale && scale != 0x7FC0u ? 1.0f / ice_bfloat16_to_float(scale) : 0.0f;
        for (int i = 0; i < n; i++) {
            /* within [-127.5, 127.5]; adding 1.5 * 2^23 rounds to an integer, whose two's complement the low bits then
             * hold */
            float rounded = (inverse > 0.0f ? x[i] * inverse : 0.0f) + 12582912.0f;
            row[first + i] = (int8_t)(uint8_t)ice_float_bits(rounded);
        }
        memcpy(row + dim + first / ICE_INT8_GROUP * (int64_t)sizeof scale, &scale, sizeof scale);
    }
}

static void widen_int8(const int8_t *row, float *target, int64_t dim) {
    for (int64_t t = 0; t < dim; t += VF_WIDTH) {
        vf scale = int8_scale(row, dim, t);
        if (dim - t >= VF_WIDTH) vf_store(target + t, vf_mul(vf_load_i8(row + t), scale));
        else vf_store_n(target + t, vf_mul(vf_load_i8_n(row + t, (int)(dim - t)), scale), (int)(dim - t));
    }
}

/* Scores of `rows` rows, a constant. */
static ALWAYS_INLINE void int8_scores_tile(const float *query, int64_t dim, const int8_t *keys, int64_t stride,
                                           float *out, const int rows) {
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int64_t t = 0;
    for (; t + VF_WIDTH <= dim; t += VF_WIDTH) {
        vf q = vf_load(query + t);
        UNROLL for (int u = 0; u < rows; u++) {
            const int8_t *row = keys + u * stride;
            sum[u] = vf_fma(vf_mul(q, vf_load_i8(row + t)), int8_scale(row, dim, t), sum[u]);
        }
    }
    if (t < dim) {
        const int rest = (int)(dim - t);
        vf q = vf_load_n(query + t, rest);
        UNROLL for (int u = 0; u < rows; u++) {
            const int8_t *row = keys + u * stride;
            sum[u] = vf_fma(vf_mul(q, vf_load_i8_n(row + t, rest)), int8_scale(row, dim, t), sum[u]);
        }
    }
    if (rows == 4) vf_reduce_add4(sum[0], sum[1], sum[2], sum[3], out);
    else out[0] = vf_reduce_add(sum[0]);
}

static void row_scores_int8(const float *query, int64_t dim, const int8_t *keys, int64_t stride, int64_t count,
                            float *out) {
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) int8_scores_tile(query, dim, keys + j * stride, stride, out + j, 4);
    for (; j < count; j++) int8_scores_tile(query, dim, keys + j * stride, stride, out + j, 1);
}

static void row_weighted_sum_int8(const float *weights, int64_t count, const int8_t *values, int64_t stride,
                                  int64_t value_dim, float correction, float *accumulator) {
    const vf change = vf_set1(correction);
    int64_t t = 0;
    for (; t + 4 * VF_WIDTH <= value_dim; t += 4 * VF_WIDTH) {
        vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        for (int64_t j = 0; j < count; j++) {
            const int8_t *row = values + j * stride;
            const vf weight = vf_set1(weights[j]);
            UNROLL for (int u = 0; u < 4; u++) {
                vf factor = vf_mul(weight, int8_scale(row, value_dim, t + u * VF_WIDTH));
                sum[u] = vf_fma(factor, vf_load_i8(row + t + u * VF_WIDTH), sum[u]);
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
            const int8_t *row = values + j * stride;
            sum = vf_fma(vf_mul(vf_set1(weights[j]), int8_scale(row, value_dim, t)), vf_load_i8_n(row + t, n), sum);
        }
        vf_store_n(accumulator + t, vf_fma(vf_load_n(accumulator + t, n), change, sum), n);
    }
}
