/* Row kernels on the dot product instruction of AVX512_BF16: one query or several, each with its own sums, lanes along
 * the components.  All rows take each step before any takes the next, so that none waits for its own numbers, and two
 * at a time share what is read of keys and values. */

/* How far above the maximum (log2 units) scores may rise before the sums are rescaled: weights stay below 2^LAZY. */
#define LAZY 16.0f

/* Rows that go through the keys together, and those whose products share a register tile. */
#define MAX_ROWS 32
#define ROWS_AT_ONCE 2

/* Products of up to four keys (those missing are read as the last one) with `rows` queries, a compile-time constant. */
static ALWAYS_INLINE void dot_four(const uint16_t *const *query, const int rows, const int64_t dim,
                                   const uint16_t *keys, int64_t stride, int64_t count, float *const *out, int64_t at) {
    __m512 sum[ROWS_AT_ONCE][4];
    const __mmask32 rest = (__mmask32)(((uint64_t)1 << dim % 32) - 1);
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int k = 0; k < 4; k++) sum[r][k] = _mm512_setzero_ps();
    int64_t t = 0;
    for (; t + 32 <= dim; t += 32) UNROLL
        for (int k = 0; k < 4; k++) {
            const __m512bh key = (__m512bh)_mm512_loadu_si512(keys + (k < count ? k : count - 1) * stride + t);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][k] = _mm512_dpbf16_ps(sum[r][k], key, (__m512bh)_mm512_loadu_si512(query[r] + t));
        }
    if (t < dim) UNROLL
        for (int k = 0; k < 4; k++) {
            const __m512bh key =
                (__m512bh)_mm512_maskz_loadu_epi16(rest, keys + (k < count ? k : count - 1) * stride + t);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][k] = _mm512_dpbf16_ps(sum[r][k], key, (__m512bh)_mm512_maskz_loadu_epi16(rest, query[r] + t));
        }
    UNROLL for (int r = 0; r < rows; r++)
        vf_reduce_add4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], out[r] + at);
}

/* Writes as many products a row as `count` rounded up to four. */
static ALWAYS_INLINE void dot_fours(const uint16_t *const *query, const int rows, const int64_t dim,
                                    const uint16_t *keys, int64_t stride, int64_t count, float *const *out) {
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) dot_four(query, rows, dim, keys + j * stride, stride, 4, out, j);
    if (j < count) dot_four(query, rows, dim, keys + j * stride, stride, count - j, out, j);
}

static ALWAYS_INLINE void dot_rows(const uint16_t *const *query, int rows, const int64_t dim, const uint16_t *keys,
                                   int64_t stride, int64_t count, float *const *out) {
    int r = 0;
    for (; r + ROWS_AT_ONCE <= rows; r += ROWS_AT_ONCE)
        dot_fours(query + r, ROWS_AT_ONCE, dim, keys, stride, count, out + r);
    for (; r < rows; r++) dot_fours(query + r, 1, dim, keys, stride, count, out + r);
}

static void dot_products(const uint16_t *const *query, int rows, int64_t dim, const uint16_t *keys, int64_t stride,
                         int64_t count, float *const *out) {
    if (dim == 64) dot_rows(query, rows, 64, keys, stride, count, out);
    else dot_rows(query, rows, dim, keys, stride, count, out);
}

static void dot_row_scores(const uint16_t *query, int64_t dim, float scale, const uint16_t *keys, int64_t stride,
                           int64_t count, float *out) {
    const int64_t whole = count - count % 4;
    float last[4], *end = last;
    dot_products(&query, 1, dim, keys, stride, whole, &out);
    if (whole < count) {
        dot_products(&query, 1, dim, keys + whole * stride, stride, count - whole, &end);
        memcpy(out + whole, last, (size_t)(count - whole) * sizeof *out);
    }
    for (int64_t j = 0; j < count; j++) out[j] *= scale;
}

/* What a row needs while it goes through a run of keys. */
#define KEYS_AT_ONCE 64
typedef struct {
    float products[KEYS_AT_ONCE], weights[KEYS_AT_ONCE];
    uint16_t rounded[KEYS_AT_ONCE]; /* weights, 0 behind the last */
    vf sum;                         /* of the weights, over lanes */
    float correction;
} dot_row;

/* The scores: products times scale plus bias, either of which may be missing; -inf behind the last. */
static ALWAYS_INLINE vf dot_score(const float *products, float scale, const float *bias, int64_t j, int64_t count) {
    const __mmask16 present = vf_first_lanes(count - j < 16 ? (int)(count - j) : 16);
    const vf own = products ? vf_mul(_mm512_maskz_loadu_ps(present, products + j), vf_set1(scale)) : vf_zero();
    vf score = own;
    if (bias) {
        const vf added = _mm512_maskz_loadu_ps(present, bias + j);
        score = products ? vf_add(own, added) : added;
    }
    return _mm512_mask_mov_ps(vf_set1(-INFINITY), present, score);
}

/* Weights of `count` <= KEYS_AT_ONCE scores, 0 behind the last, relative to the maximum; returns whether some score is
 * far above that. */
static ALWAYS_INLINE int dot_row_weights(dot_row *row, int64_t count, const float *products, float scale,
                                         const float *bias, float maximum) {
    const vf limit = vf_set1(maximum + LAZY), reference = vf_set1(maximum == -INFINITY ? 0.0f : maximum);
    vf total = vf_zero();
    __mmask16 above = 0;
    for (int64_t j = 0; j < count; j += 16) {
        const vf score = dot_score(products, scale, bias, j, count);
        const vf weight = vf_exp2(vf_sub(score, reference));
        above |= _mm512_cmp_ps_mask(score, limit, _CMP_GT_OQ);
        total = vf_add(total, weight);
        vf_store(row->weights + j, weight);
        _mm256_storeu_si256((__m256i *)(row->rounded + j), (__m256i)_mm512_cvtneps_pbh(weight));
    }
    row->sum = total;
    return above != 0;
}

/* The largest number; a NaN is left out, and shows in the sum. */
static float dot_largest(int64_t count, const float *products, float scale, const float *bias) {
    vf largest = vf_set1(-INFINITY);
    for (int64_t j = 0; j < count; j += 16) {
        const vf score = dot_score(products, scale, bias, j, count);
        largest = _mm512_mask_max_ps(largest, _mm512_cmp_ps_mask(score, score, _CMP_EQ_OQ), largest, score);
    }
    return vf_reduce_max(largest);
}

/* As dot_row_weights; the maximum moves only when a score is far above it. */
static ALWAYS_INLINE void dot_row_softmax(dot_row *row, int64_t count, const float *products, float scale,
                                          const float *bias, ice_state *state) {
    row->correction = 1.0f;
    if (!dot_row_weights(row, count, products, scale, bias, state->maximum) && state->maximum > -INFINITY) return;
    const float largest = dot_largest(count, products, scale, bias);
    if (!(largest > state->maximum)) return;
    if (state->maximum > -INFINITY) {
        float power[16];
        vf_store(power, vf_exp2(vf_set1(state->maximum - largest)));
        state->sum *= row->correction = power[0];
    }
    state->maximum = largest;
    dot_row_weights(row, count, products, scale, bias, largest);
}

/* accumulator + t = that times correction + weights * values for 64 components of `rows` rows, a compile-time constant;
 * two keys at a time. */
static ALWAYS_INLINE void dot_add_64(const dot_row *row, ice_state *const *state, const int rows, int64_t count,
                                     const uint16_t *values, int64_t stride, int64_t t) {
    /* the numbers of two keys side by side, 32 of each in two vectors */
    const __m512i low_pairs = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38,
                                               6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high_pairs = _mm512_add_epi16(low_pairs, _mm512_set1_epi16(16));
    vf sum[ROWS_AT_ONCE][4];
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int u = 0; u < 4; u++)
            sum[r][u] = vf_mul(vf_load(state[r]->accumulator + t + 16 * u), vf_set1(row[r].correction));
    for (int64_t j = 0; j < count; j += 2) {
        const uint16_t *value = values + j * stride + t;
        const int both = j + 1 < count;
        __m512bh w[ROWS_AT_ONCE];
        UNROLL for (int r = 0; r < rows; r++) {
            int pair;
            memcpy(&pair, row[r].rounded + j, sizeof pair);
            w[r] = (__m512bh)_mm512_set1_epi32(pair);
        }
        UNROLL for (int u = 0; u < 2; u++) {
            const __m512i one = _mm512_loadu_si512(value + 32 * u);
            const __m512i two = both ? _mm512_loadu_si512(value + stride + 32 * u) : _mm512_setzero_si512();
            const __m512bh low = (__m512bh)_mm512_permutex2var_epi16(one, low_pairs, two);
            const __m512bh high = (__m512bh)_mm512_permutex2var_epi16(one, high_pairs, two);
            UNROLL for (int r = 0; r < rows; r++) {
                sum[r][2 * u] = _mm512_dpbf16_ps(sum[r][2 * u], low, w[r]);
                sum[r][2 * u + 1] = _mm512_dpbf16_ps(sum[r][2 * u + 1], high, w[r]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int u = 0; u < 4; u++) vf_store(state[r]->accumulator + t + 16 * u, sum[r][u]);
}

/* Rows that go through keys together. */
typedef struct {
    const uint16_t *query[MAX_ROWS];
    const float *bias[MAX_ROWS];
    ice_state *state[MAX_ROWS];
    int rows;
} dot_group;

static void dot_attend_run(const dot_group *group, const ice_bf16_rows *all, const uint16_t *keys,
                           const uint16_t *values, int64_t count) {
    const int rows = group->rows;
    const int64_t dim = all->dim, value_dim = all->value_dim;
    ice_state *const *state = group->state;
    dot_row row[MAX_ROWS];
    float *products[MAX_ROWS];
    for (int r = 0; r < rows; r++) products[r] = row[r].products;
    if (keys) dot_products(group->query, rows, dim, keys, dim, count, products);
    for (int r = 0; r < rows; r++)
        dot_row_softmax(&row[r], count, keys ? products[r] : NULL, all->scale, group->bias[r], state[r]);
    for (int r = 0; r < rows; r += 4) {
        const dot_row *last = &row[rows - 1];
        float sum[4];
        vf_reduce_add4(row[r].sum, (r + 1 < rows ? &row[r + 1] : last)->sum, (r + 2 < rows ? &row[r + 2] : last)->sum,
                       (r + 3 < rows ? &row[r + 3] : last)->sum, sum);
        for (int i = 0; i < 4 && r + i < rows; i++) state[r + i]->sum += sum[i];
    }
    int64_t t = 0;
    for (; t + 64 <= value_dim; t += 64) {
        int r = 0;
        for (; r + ROWS_AT_ONCE <= rows; r += ROWS_AT_ONCE)
            dot_add_64(row + r, state + r, ROWS_AT_ONCE, count, values, value_dim, t);
        for (; r < rows; r++) dot_add_64(row + r, state + r, 1, count, values, value_dim, t);
    }
    for (int r = 0; t < value_dim && r < rows; r++)
        row_weighted_sum_bf16(row[r].weights, count, values + t, value_dim, value_dim - t, row[r].correction,
                              state[r]->accumulator + t);
}

static void dot_rows_attend(const ice_bf16_rows *all, uint64_t lanes, const uint16_t *keys, const uint16_t *values,
                            int64_t count, const float *bias, int64_t bias_stride) {
    const int64_t dim = all->dim, value_dim = all->value_dim;
    while (lanes) {
        dot_group group;
        group.rows = 0;
        for (; lanes && group.rows < MAX_ROWS; lanes &= lanes - 1, group.rows++) {
            const int lane = __builtin_ctzll(lanes);
            group.query[group.rows] = keys ? all->queries + lane * dim : NULL;
            group.bias[group.rows] = bias ? bias + lane * bias_stride : NULL;
            group.state[group.rows] = all->state + lane;
        }
        for (int64_t first = 0; first < count; first += KEYS_AT_ONCE) {
            dot_attend_run(&group, all, keys ? keys + first * dim : NULL, values + first * value_dim,
                           count - first < KEYS_AT_ONCE ? count - first : KEYS_AT_ONCE);
            for (int r = 0; bias && r < group.rows; r++) group.bias[r] += KEYS_AT_ONCE;
        }
    }
}
