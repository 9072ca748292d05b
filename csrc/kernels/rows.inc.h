/* Row kernels: one query, lanes along the components.  For few queries, where a panel's lanes would stand empty, and
 * for near cells, which differ from query to query.  They are bound by reading keys and values once, so 16-bit types
 * are widened in registers. */

static ALWAYS_INLINE vf load_row(icecore_dtype dtype, const void *row, int64_t t, int n) {
    if (dtype == ICECORE_FLOAT32)
        return n == VF_WIDTH ? vf_load((const float *)row + t) : vf_load_n((const float *)row + t, n);
    const uint16_t *half = (const uint16_t *)row + t;
    if (dtype == ICECORE_BFLOAT16) return n == VF_WIDTH ? vf_load_bf16(half) : vf_load_bf16_n(half, n);
    return n == VF_WIDTH ? vf_load_f16(half) : vf_load_f16_n(half, n);
}

/* Calls CALL with the type as a constant; quantized rows have kernels of their own. */
#define BY_TYPE(dtype, CALL, INT8, INT4)                  \
    switch (dtype) {                                      \
    case ICECORE_FLOAT32: CALL(ICECORE_FLOAT32); break;   \
    case ICECORE_FLOAT16: CALL(ICECORE_FLOAT16); break;   \
    case ICECORE_BFLOAT16: CALL(ICECORE_BFLOAT16); break; \
    case ICECORE_INT8: INT8; break;                       \
    case ICECORE_INT4: INT4; break;                       \
    }

/* Rows that lie anywhere, or one behind another, `stride` bytes apart. */
typedef struct {
    const void *const *each;
    const void *first;
    int64_t stride;
} row_places;

/* The place of row j from component t on. */
static ALWAYS_INLINE const void *row_at(const row_places rows, const int anywhere, const icecore_dtype dtype, int64_t j,
                                        int64_t t) {
    const int64_t begin = t * (dtype == ICECORE_FLOAT32 ? 4 : 2);
    return (anywhere ? (const char *)rows.each[j] : (const char *)rows.first + j * rows.stride) + begin;
}

/* Four vectors of the accumulator, over all rows, in two sums each. */
static ALWAYS_INLINE void weighted_columns(const float *weights, int64_t count, const icecore_dtype dtype,
                                           const row_places rows, const int anywhere, int64_t t, vf scale,
                                           float *accumulator) {
    vf even[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}, odd[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
        const void *row0 = row_at(rows, anywhere, dtype, j, t), *row1 = row_at(rows, anywhere, dtype, j + 1, t);
        vf w0 = vf_set1(weights[j]), w1 = vf_set1(weights[j + 1]);
        UNROLL for (int u = 0; u < 4; u++) {
            even[u] = vf_fma(w0, load_row(dtype, row0, u * VF_WIDTH, VF_WIDTH), even[u]);
            odd[u] = vf_fma(w1, load_row(dtype, row1, u * VF_WIDTH, VF_WIDTH), odd[u]);
        }
    }
    if (j < count) {
        vf w = vf_set1(weights[j]);
        UNROLL for (int u = 0; u < 4; u++)
            even[u] = vf_fma(w, load_row(dtype, row_at(rows, anywhere, dtype, j, t), u * VF_WIDTH, VF_WIDTH), even[u]);
    }
    UNROLL for (int u = 0; u < 4; u++) {
        float *target = accumulator + t + u * VF_WIDTH;
        vf_store(target, vf_fma(vf_load(target), scale, vf_add(even[u], odd[u])));
    }
}

static ALWAYS_INLINE void weighted_rows(const float *weights, int64_t count, const icecore_dtype dtype,
                                        const row_places rows, const int anywhere, int64_t value_dim, float correction,
                                        float *accumulator) {
    const vf scale = vf_set1(correction);
    int64_t t = 0;
    for (; t + 4 * VF_WIDTH <= value_dim; t += 4 * VF_WIDTH)
        weighted_columns(weights, count, dtype, rows, anywhere, t, scale, accumulator);
    for (; t < value_dim; t += VF_WIDTH) {
        int n = value_dim - t < VF_WIDTH ? (int)(value_dim - t) : VF_WIDTH;
        vf sum[2] = {vf_zero(), vf_zero()}; /* as above: equal columns have equal sums */
        for (int64_t j = 0; j < count; j++)
            sum[j % 2] =
                vf_fma(vf_set1(weights[j]), load_row(dtype, row_at(rows, anywhere, dtype, j, t), 0, n), sum[j % 2]);
        vf_store_n(accumulator + t, vf_fma(vf_load_n(accumulator + t, n), scale, vf_add(sum[0], sum[1])), n);
    }
}

/* Defines the scores of a storage type T with loaders LOAD and LOAD_N. */
#define DEFINE_ROW_KERNELS(NAME, T, LOAD, LOAD_N)                                                                \
    static void row_scores_##NAME(const float *query, int64_t dim, const T *keys, int64_t stride, int64_t count, \
                                  float *out) {                                                                  \
        const int64_t whole = dim - dim % VF_WIDTH;                                                              \
        const int rest = (int)(dim - whole);                                                                     \
        int64_t j = 0;                                                                                           \
        for (; j + 4 <= count; j += 4) {                                                                         \
            const T *row = keys + j * stride;                                                                    \
            vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};                                            \
            for (int64_t t = 0; t < whole; t += VF_WIDTH) {                                                      \
                vf q = vf_load(query + t);                                                                       \
                UNROLL for (int u = 0; u < 4; u++)                                                               \
                    sum[u] = vf_fma(q, LOAD(row + u * stride + t), sum[u]);                                      \
            }                                                                                                    \
            if (rest) {                                                                                          \
                vf q = vf_load_n(query + whole, rest);                                                           \
                UNROLL for (int u = 0; u < 4; u++)                                                               \
                    sum[u] = vf_fma(q, LOAD_N(row + u * stride + whole, rest), sum[u]);                          \
            }                                                                                                    \
            vf_reduce_add4(sum[0], sum[1], sum[2], sum[3], out + j);                                             \
        }                                                                                                        \
        for (; j < count; j++) {                                                                                 \
            const T *row = keys + j * stride;                                                                    \
            vf sum = vf_zero();                                                                                  \
            for (int64_t t = 0; t < whole; t += VF_WIDTH) sum = vf_fma(vf_load(query + t), LOAD(row + t), sum);  \
            if (rest) sum = vf_fma(vf_load_n(query + whole, rest), LOAD_N(row + whole, rest), sum);              \
            out[j] = vf_reduce_add(sum);                                                                         \
        }                                                                                                        \
    }

DEFINE_ROW_KERNELS(f32, float, vf_load, vf_load_n)
DEFINE_ROW_KERNELS(f16, uint16_t, vf_load_f16, vf_load_f16_n)
DEFINE_ROW_KERNELS(bf16, uint16_t, vf_load_bf16, vf_load_bf16_n)
#undef DEFINE_ROW_KERNELS

static void row_scores(const float *query, int64_t dim, icecore_dtype dtype, const void *keys, int64_t stride,
                       int64_t count, float *out) {
    switch (dtype) {
    case ICECORE_FLOAT32: row_scores_f32(query, dim, keys, stride, count, out); break;
    case ICECORE_FLOAT16: row_scores_f16(query, dim, keys, stride, count, out); break;
    case ICECORE_BFLOAT16: row_scores_bf16(query, dim, keys, stride, count, out); break;
    case ICECORE_INT8: row_scores_quantized(ICECORE_INT8, query, dim, keys, stride, count, out); break;
    case ICECORE_INT4: row_scores_int4(query, dim, keys, stride, count, out); break;
    }
}

static void row_weighted_sum(const float *weights, int64_t count, icecore_dtype dtype, const void *values,
                             int64_t stride, int64_t value_dim, float correction, float *accumulator) {
#define SUM(TYPE)                                                                                                \
    weighted_rows(weights, count, TYPE, (row_places){NULL, values, stride * (int64_t)ice_element_size(TYPE)}, 0, \
                  value_dim, correction, accumulator)
    BY_TYPE(
        dtype, SUM,
        row_weighted_sum_quantized(ICECORE_INT8, weights, count, values, stride, value_dim, correction, accumulator),
        row_weighted_sum_int4(weights, count, values, stride, value_dim, correction, accumulator));
#undef SUM
}

static void row_softmax(float *row, int64_t count, float *maximum, float *sum, float *correction) {
    const int64_t whole = count - count % VF_WIDTH;
    float before = *maximum, after = before;
    if (whole) {
        vf top = vf_load(row);
        for (int64_t j = VF_WIDTH; j < whole; j += VF_WIDTH) top = vf_max(top, vf_load(row + j));
        float largest = vf_reduce_max(top);
        after = largest > after ? largest : after;
    }
    for (int64_t j = whole; j < count; j++) after = row[j] > after ? row[j] : after;
    const float reference = after == -INFINITY ? 0.0f : after;
    vf total = vf_zero();
    for (int64_t j = 0; j < count; j += VF_WIDTH) {
        int n = count - j < VF_WIDTH ? (int)(count - j) : VF_WIDTH;
        vf weight = vf_exp2(vf_sub(vf_load_n(row + j, n), vf_set1(reference)));
        if (n == VF_WIDTH) {
            vf_store(row + j, weight);
            total = vf_add(total, weight);
        } else {
            vf_store_n(row + j, weight, n);
            total = vf_add(total, vf_load_n(row + j, n)); /* reloaded, so that missing lanes are 0 */
        }
    }
    *correction = 1.0f;
    if (before > -INFINITY && before != after) {
        float lanes[VF_WIDTH];
        vf_store(lanes, vf_exp2(vf_set1(before - reference)));
        *correction = lanes[0];
    }
    *sum = *sum * *correction + vf_reduce_add(total);
    *maximum = after;
}
