/* Row kernels over rows that lie anywhere: one query, lanes along the components.  Like rows.inc.h they are bound by
 * reading memory. */

static ALWAYS_INLINE vf load_row(icecore_dtype dtype, const void *row, int64_t t, int n) {
    if (dtype == ICECORE_FLOAT32)
        return n == VF_WIDTH ? vf_load((const float *)row + t) : vf_load_n((const float *)row + t, n);
    const uint16_t *half = (const uint16_t *)row + t;
    if (dtype == ICECORE_BFLOAT16) return n == VF_WIDTH ? vf_load_bf16(half) : vf_load_bf16_n(half, n);
    return n == VF_WIDTH ? vf_load_f16(half) : vf_load_f16_n(half, n);
}

static ALWAYS_INLINE void gather_add(vf q, int64_t t, int n, const int squared_distance, vf minus_scale,
                                     const icecore_dtype dtype, const void *const *rows, vf *sum, const int tile) {
    UNROLL for (int r = 0; r < tile; r++) {
        vf x = load_row(dtype, rows[r], t, n);
        if (squared_distance) {
            vf difference = vf_fma(x, minus_scale, q);
            sum[r] = vf_fma(difference, difference, sum[r]);
        } else {
            sum[r] = vf_fma(q, x, sum[r]);
        }
    }
}

static ALWAYS_INLINE void gather_tile(const float *query, int64_t dim, const int squared_distance, float scale,
                                      const icecore_dtype dtype, const void *const *rows, float *out, const int tile) {
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    const vf minus_scale = vf_set1(-scale);
    const int rest = (int)(dim % VF_WIDTH);
    int64_t t = 0;
    for (; t + VF_WIDTH <= dim; t += VF_WIDTH)
        gather_add(vf_load(query + t), t, VF_WIDTH, squared_distance, minus_scale, dtype, rows, sum, tile);
    if (rest) gather_add(vf_load_n(query + t, rest), t, rest, squared_distance, minus_scale, dtype, rows, sum, tile);
    float total[4];
    vf_reduce_add4(sum[0], sum[1], sum[2], sum[3], total);
    for (int r = 0; r < tile; r++) out[r] = squared_distance ? -0.5f * total[r] : total[r];
}

static ALWAYS_INLINE void gather_all(const float *query, int64_t dim, const int squared_distance, float scale,
                                     const icecore_dtype dtype, const void *const *rows, int64_t count, float *out) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) gather_tile(query, dim, squared_distance, scale, dtype, rows + i, out + i, 4);
    for (; i < count; i++) gather_tile(query, dim, squared_distance, scale, dtype, rows + i, out + i, 1);
}

static ALWAYS_INLINE void gather_metric(const float *query, int64_t dim, float scale, const icecore_dtype dtype,
                                        const void *const *rows, int64_t count, float *out) {
    if (scale != 0.0f) gather_all(query, dim, 1, scale, dtype, rows, count, out);
    else gather_all(query, dim, 0, 0.0f, dtype, rows, count, out);
}

static void gathered_scores(const float *query, int64_t dim, float scale, icecore_dtype dtype, const void *const *rows,
                            int64_t count, float *out) {
    switch (dtype) {
    case ICECORE_FLOAT32: gather_metric(query, dim, scale, ICECORE_FLOAT32, rows, count, out); break;
    case ICECORE_FLOAT16: gather_metric(query, dim, scale, ICECORE_FLOAT16, rows, count, out); break;
    case ICECORE_BFLOAT16: gather_metric(query, dim, scale, ICECORE_BFLOAT16, rows, count, out); break;
    case ICECORE_INT8: break;
    }
}

/* Four vectors of the accumulator, over all rows, in two sums each. */
static ALWAYS_INLINE void gathered_columns(const float *weights, int64_t count, const icecore_dtype dtype,
                                           const void *const *rows, int64_t t, vf scale, float *accumulator) {
    vf even[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}, odd[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
        vf w0 = vf_set1(weights[j]), w1 = vf_set1(weights[j + 1]);
        UNROLL for (int u = 0; u < 4; u++) {
            even[u] = vf_fma(w0, load_row(dtype, rows[j], t + u * VF_WIDTH, VF_WIDTH), even[u]);
            odd[u] = vf_fma(w1, load_row(dtype, rows[j + 1], t + u * VF_WIDTH, VF_WIDTH), odd[u]);
        }
    }
    if (j < count) {
        vf w = vf_set1(weights[j]);
        UNROLL for (int u = 0; u < 4; u++)
            even[u] = vf_fma(w, load_row(dtype, rows[j], t + u * VF_WIDTH, VF_WIDTH), even[u]);
    }
    UNROLL for (int u = 0; u < 4; u++) {
        float *target = accumulator + t + u * VF_WIDTH;
        vf_store(target, vf_fma(vf_load(target), scale, vf_add(even[u], odd[u])));
    }
}

static ALWAYS_INLINE void gathered_sum(const float *weights, int64_t count, const icecore_dtype dtype,
                                       const void *const *rows, int64_t value_dim, float correction,
                                       float *accumulator) {
    const vf scale = vf_set1(correction);
    int64_t t = 0;
    for (; t + 4 * VF_WIDTH <= value_dim; t += 4 * VF_WIDTH)
        gathered_columns(weights, count, dtype, rows, t, scale, accumulator);
    for (; t < value_dim; t += VF_WIDTH) {
        int n = value_dim - t < VF_WIDTH ? (int)(value_dim - t) : VF_WIDTH;
        vf sum = vf_zero();
        for (int64_t j = 0; j < count; j++) sum = vf_fma(vf_set1(weights[j]), load_row(dtype, rows[j], t, n), sum);
        vf_store_n(accumulator + t, vf_fma(vf_load_n(accumulator + t, n), scale, sum), n);
    }
}

static void gathered_weighted_sum(const float *weights, int64_t count, icecore_dtype dtype, const void *const *rows,
                                  int64_t value_dim, float correction, float *accumulator) {
    switch (dtype) {
    case ICECORE_FLOAT32:
        gathered_sum(weights, count, ICECORE_FLOAT32, rows, value_dim, correction, accumulator);
        break;
    case ICECORE_FLOAT16:
        gathered_sum(weights, count, ICECORE_FLOAT16, rows, value_dim, correction, accumulator);
        break;
    case ICECORE_BFLOAT16:
        gathered_sum(weights, count, ICECORE_BFLOAT16, rows, value_dim, correction, accumulator);
        break;
    case ICECORE_INT8: break;
    }
}
