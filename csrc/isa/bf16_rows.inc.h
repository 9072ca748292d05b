/* Row kernels for bfloat16: one query or several, each with its own sums, lanes along the components.  All rows take
 * each step before any takes the next, so that none waits for its own numbers, and ROWS_AT_ONCE of them share what is
 * read of keys and values.
 *
 * KERNEL_BF16_ROWS multiplies: ROWS_AT_ONCE, bf16_products_of_four and bf16_add_64. */

/* How far above the maximum (log2 units) scores may rise before the sums are rescaled: weights stay below 2^LAZY. */
#define LAZY 16.0f

/* Where the sum of a lane's weights is above this, a score of the run is not more than 34 (log2 units) below the
 * maximum. */
#define NEAR 0x1p-32f

/* Rows that go through the keys together. */
#define MAX_ROWS 32

/* What a row needs while it goes through a run of keys. */
#define KEYS_AT_ONCE 64
typedef struct {
    float products[KEYS_AT_ONCE], weights[KEYS_AT_ONCE]; /* weights: 0 behind the last */
    vf sum;                                              /* of the weights, over lanes */
    float correction;
} bf16_row;

#include KERNEL_BF16_ROWS

/* Writes as many products a row as `count` rounded up to four. */
static ALWAYS_INLINE void bf16_products_of_some(const uint16_t *const *query, const int rows, const int64_t dim,
                                                const uint16_t *keys, int64_t stride, int64_t count,
                                                float *const *out) {
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) bf16_products_of_four(query, rows, dim, keys + j * stride, stride, 4, out, j);
    if (j < count) bf16_products_of_four(query, rows, dim, keys + j * stride, stride, count - j, out, j);
}

static ALWAYS_INLINE void bf16_products_of_rows(const uint16_t *const *query, int rows, const int64_t dim,
                                                const uint16_t *keys, int64_t stride, int64_t count,
                                                float *const *out) {
    int r = 0;
    for (; r + ROWS_AT_ONCE <= rows; r += ROWS_AT_ONCE)
        bf16_products_of_some(query + r, ROWS_AT_ONCE, dim, keys, stride, count, out + r);
    for (; r + 2 <= rows; r += 2) bf16_products_of_some(query + r, 2, dim, keys, stride, count, out + r);
    if (r < rows) bf16_products_of_some(query + r, 1, dim, keys, stride, count, out + r);
}

static void bf16_products(const uint16_t *const *query, int rows, int64_t dim, const uint16_t *keys, int64_t stride,
                          int64_t count, float *const *out) {
    if (dim == 64) bf16_products_of_rows(query, rows, 64, keys, stride, count, out);
    else bf16_products_of_rows(query, rows, dim, keys, stride, count, out);
}

static void bf16_row_scores(const uint16_t *query, int64_t dim, float scale, const uint16_t *keys, int64_t stride,
                            int64_t count, float *out) {
    const int64_t whole = count - count % 4;
    float last[4], *end = last;
    bf16_products(&query, 1, dim, keys, stride, whole, &out);
    if (whole < count) {
        bf16_products(&query, 1, dim, keys + whole * stride, stride, count - whole, &end);
        memcpy(out + whole, last, (size_t)(count - whole) * sizeof *out);
    }
    for (int64_t j = 0; j < count; j++) out[j] *= scale;
}

/* What a run's scores are made of: products times scale plus bias, either of which may be missing, and of ALiBi with
 * all keys to one side slope * (offset + j). */
typedef struct {
    const float *products, *bias;
    float scale, slope, offset;
    int64_t count; /* <= KEYS_AT_ONCE */
} bf16_scores;

/* The scores j .. j + 15; -inf behind the last.  sloped: whether there is a slope, a compile-time constant. */
static ALWAYS_INLINE vf bf16_score(const bf16_scores *x, int64_t j, const int sloped) {
    const __mmask16 present = vf_first_lanes(x->count - j < 16 ? (int)(x->count - j) : 16);
    vf score = vf_zero();
    if (x->products) {
        const vf own = _mm512_maskz_loadu_ps(present, x->products + j), scale = vf_set1(x->scale);
        score = sloped ? vf_fma(own, scale, vf_mul(vf_set1(x->slope), counted_from(x->offset + (float)j)))
                       : vf_mul(own, scale);
    }
    if (x->bias) {
        const vf added = _mm512_maskz_loadu_ps(present, x->bias + j);
        score = x->products ? vf_add(score, added) : added;
    }
    return _mm512_mask_mov_ps(vf_set1(-INFINITY), present, score);
}

/* Weights of the scores, 0 behind the last, relative to the maximum; returns whether some score is far above that. */
static ALWAYS_INLINE int bf16_row_weights(bf16_row *row, const bf16_scores *x, float maximum, const int sloped) {
    const vf limit = vf_set1(maximum + LAZY), reference = vf_set1(maximum == -INFINITY ? 0.0f : maximum);
    vf total = vf_zero();
    __mmask16 above = 0;
    for (int64_t j = 0; j < x->count; j += 16) {
        const vf score = bf16_score(x, j, sloped);
        const vf weight = vf_exp2(vf_sub(score, reference));
        above |= _mm512_cmp_ps_mask(score, limit, _CMP_GT_OQ);
        total = vf_add(total, weight);
        vf_store(row->weights + j, weight);
    }
    row->sum = total;
    return above != 0;
}

/* The largest number; a NaN is left out, and shows in the sum. */
static float bf16_largest(const bf16_scores *x, const int sloped) {
    vf largest = vf_set1(-INFINITY);
    for (int64_t j = 0; j < x->count; j += 16) {
        const vf score = bf16_score(x, j, sloped);
        largest = _mm512_mask_max_ps(largest, _mm512_cmp_ps_mask(score, score, _CMP_EQ_OQ), largest, score);
    }
    return vf_reduce_max(largest);
}

/* Another maximum: what was summed is lowered to it. */
static ALWAYS_INLINE void bf16_move_maximum(bf16_row *row, ice_state *state, float maximum) {
    if (state->maximum > -INFINITY) {
        float power[16];
        vf_store(power, vf_exp2(vf_set1(state->maximum - maximum)));
        state->sum *= row->correction = power[0];
    }
    state->maximum = maximum;
}

/* As bf16_row_weights; the maximum moves only when a score is far above it.  With a slope, scores of this run are
 * expected to be above those of the last: they are tried against a maximum that has risen with them, which holds if one
 * of them is near it. */
static ALWAYS_INLINE void bf16_row_softmax(bf16_row *row, const bf16_scores *x, ice_state *state, const int sloped) {
    const float rise = sloped ? x->slope * KEYS_AT_ONCE : 0.0f;
    row->correction = 1.0f;
    if (rise > 1.0f && state->maximum > -INFINITY) {
        const float risen = state->maximum + rise;
        if (!bf16_row_weights(row, x, risen, sloped) && vm_bits(vf_gt(row->sum, vf_set1(NEAR)))) {
            bf16_move_maximum(row, state, risen);
            return;
        }
    }
    if (!bf16_row_weights(row, x, state->maximum, sloped) && state->maximum > -INFINITY) return;
    const float largest = bf16_largest(x, sloped);
    if (!(largest > state->maximum)) return;
    bf16_move_maximum(row, state, largest);
    bf16_row_weights(row, x, largest, sloped);
}

/* Rows that go through keys together. */
typedef struct {
    const uint16_t *query[MAX_ROWS];
    const float *bias[MAX_ROWS];
    ice_state *state[MAX_ROWS];
    int lane[MAX_ROWS];
    int rows;
    soft_cap cap; /* if there is one */
} bf16_group;

/* The scores of one row. */
static ALWAYS_INLINE bf16_scores bf16_scores_of(const bf16_group *group, int r, const ice_bf16_rows *all,
                                                float *products, int64_t first, int64_t count) {
    bf16_scores x = {.products = products, .bias = group->bias[r], .scale = all->scale, .count = count};
    if (products && all->cap > 0.0f) {
        cap_rows(products, 1, count, &group->cap);
        x.scale = 1.0f;
    }
    if (products && all->alibi) {
        x.slope = all->alibi->slope[group->lane[r]];
        x.offset = all->alibi->offset[group->lane[r]] + (float)first;
    }
    return x;
}

/* Where keys lie to both sides of a row: products become scores, less ALiBi's. */
static void bf16_lower(bf16_scores *x, float *products) {
    for (int64_t j = 0; j < x->count; j++) products[j] *= x->scale;
    row_alibi(products, x->count, x->slope, x->offset);
    x->scale = 1.0f, x->slope = 0.0f;
}

static void bf16_attend_run(const bf16_group *group, const ice_bf16_rows *all, const uint16_t *keys,
                            const uint16_t *values, int64_t first, int64_t count) {
    const int rows = group->rows;
    const int64_t value_dim = all->value_dim, value_stride = all->value_stride;
    ice_state *const *state = group->state;
    bf16_row row[MAX_ROWS];
    float *products[MAX_ROWS];
    for (int r = 0; r < rows; r++) products[r] = row[r].products;
    if (keys) bf16_products(group->query, rows, all->dim, keys, all->key_stride, count, products);
    for (int r = 0; r < rows; r++) {
        bf16_scores x = bf16_scores_of(group, r, all, keys ? products[r] : NULL, first, count);
        if (x.slope > 0.0f && x.offset + (float)count > 1.0f) bf16_lower(&x, products[r]);
        if (x.slope > 0.0f) bf16_row_softmax(&row[r], &x, state[r], 1);
        else bf16_row_softmax(&row[r], &x, state[r], 0);
    }
    for (int r = 0; r < rows; r += 4) {
        const bf16_row *last = &row[rows - 1];
        float sum[4];
        vf_reduce_add4(row[r].sum, (r + 1 < rows ? &row[r + 1] : last)->sum, (r + 2 < rows ? &row[r + 2] : last)->sum,
                       (r + 3 < rows ? &row[r + 3] : last)->sum, sum);
        for (int i = 0; i < 4 && r + i < rows; i++) state[r + i]->sum += sum[i];
    }
    int64_t t = 0;
    for (; t + 64 <= value_dim; t += 64) {
        int r = 0;
        for (; r + ROWS_AT_ONCE <= rows; r += ROWS_AT_ONCE)
            bf16_add_64(row + r, state + r, ROWS_AT_ONCE, count, values, value_stride, t);
        for (; r + 2 <= rows; r += 2) bf16_add_64(row + r, state + r, 2, count, values, value_stride, t);
        if (r < rows) bf16_add_64(row + r, state + r, 1, count, values, value_stride, t);
    }
    for (int r = 0; t < value_dim && r < rows; r++)
        row_weighted_sum(row[r].weights, count, ICECORE_BFLOAT16, values + t, value_stride, value_dim - t,
                         row[r].correction, state[r]->accumulator + t);
}

static void bf16_rows_attend(const ice_bf16_rows *all, uint64_t lanes, const uint16_t *keys, const uint16_t *values,
                             int64_t count, const float *bias, int64_t bias_stride) {
    while (lanes) {
        bf16_group group;
        group.rows = 0;
        if (all->cap > 0.0f) group.cap = soft_cap_of(all->scale, all->cap);
        for (; lanes && group.rows < MAX_ROWS; lanes &= lanes - 1, group.rows++) {
            const int lane = __builtin_ctzll(lanes);
            group.query[group.rows] = keys ? all->queries + lane * all->dim : NULL;
            group.bias[group.rows] = bias ? bias + lane * bias_stride : NULL;
            group.state[group.rows] = all->state + lane;
            group.lane[group.rows] = lane;
        }
        for (int64_t first = 0; first < count; first += KEYS_AT_ONCE) {
            bf16_attend_run(&group, all, keys ? keys + first * all->key_stride : NULL,
                            values + first * all->value_stride, first,
                            count - first < KEYS_AT_ONCE ? count - first : KEYS_AT_ONCE);
            for (int r = 0; bias && r < group.rows; r++) group.bias[r] += KEYS_AT_ONCE;
        }
    }
}
