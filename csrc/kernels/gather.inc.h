/* Row kernels over rows that lie anywhere: one query, lanes along the components.  Like rows.inc.h they are bound by
 * reading memory. */

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
#define SCORES(TYPE) gather_metric(query, dim, scale, TYPE, rows, count, out)
    BY_TYPE(dtype, SCORES, (void)0, (void)0);
#undef SCORES
}

static void gathered_weighted_sum(const float *weights, int64_t count, icecore_dtype dtype, const void *const *rows,
                                  int64_t value_dim, float correction, float *accumulator) {
#define SUM(TYPE) \
    weighted_rows(weights, count, TYPE, (row_places){rows, NULL, 0}, 1, value_dim, correction, accumulator)
    BY_TYPE(dtype, SUM, (void)0, (void)0);
#undef SUM
}
