#include "attend/rows.h"

#include "attend/finite.h"

void ice_row_attend(ice_state *state, const icecore_attention *p, const ice_kernels *kernels, ice_row row,
                    int64_t key_head, const float *query, int64_t first, int64_t end, void *cleaned_values) {
    float scores[ICE_KEY_BLOCK], correction;
    for (int64_t block = first; block < end; block += ICE_KEY_BLOCK) {
        int64_t count = end - block < ICE_KEY_BLOCK ? end - block : ICE_KEY_BLOCK;
        const void *keys = ice_address(&p->key, p->key_dtype, row.batch, key_head, block);
        const void *values = ice_address(&p->value, p->key_dtype, row.batch, key_head, block), *used = values;
        int64_t stride = p->value.row_stride;
        kernels->row_scores(query, p->dim, p->key_dtype, keys, p->key.row_stride, count, scores);
        int hidden = p->mask_kind != ICECORE_MASK_NONE && ice_add_mask(p, row, block, count, scores, 1);
        kernels->row_softmax(scores, count, &state->maximum, &state->sum, &correction);
        int cleaned = hidden && !ice_all_finite(p->key_dtype, values, stride, count, p->value_dim);
        if (cleaned) {
            ice_copy_finite(p->key_dtype, values, stride, count, p->value_dim, cleaned_values);
            used = cleaned_values;
            stride = p->value_dim;
        }
        kernels->row_weighted_sum(scores, count, p->key_dtype, used, stride, p->value_dim, correction,
                                  state->accumulator);
        if (cleaned)
            ice_add_nonfinite(p->key_dtype, values, p->value.row_stride, count, p->value_dim, scores, 1, 1,
                              state->accumulator);
    }
}

void ice_row_scores(const ice_kernels *kernels, const float *query, const uint16_t *rounded, float scale, int64_t dim,
                    icecore_dtype dtype, const void *keys, int64_t count, float *scores) {
    if (rounded && dtype == ICECORE_BFLOAT16) kernels->bf16->row_scores(rounded, dim, scale, keys, dim, count, scores);
    else kernels->row_scores(query, dim, dtype, keys, ice_row_stride(dtype, dim), count, scores);
}

void ice_rows_attend(ice_state *state, uint64_t lanes, const ice_kernels *kernels, const float *queries,
                     const uint16_t *rounded, float scale, int64_t dim, int64_t value_dim, icecore_dtype dtype,
                     const void *keys, const void *values, int64_t count, const float *bias) {
    const int64_t key_bytes = (int64_t)ice_row_bytes(dtype, dim),
                  value_bytes = (int64_t)ice_row_bytes(dtype, value_dim);
    const int64_t key_stride = ice_row_stride(dtype, dim), value_stride = ice_row_stride(dtype, value_dim);
    if (rounded && dtype == ICECORE_BFLOAT16) {
        kernels->bf16->rows_attend(rounded, dim, scale, keys, values, value_dim, count, bias, 0, lanes, state);
        return;
    }
    for (int64_t first = 0; first < count; first += ICE_KEY_BLOCK) {
        const int64_t n = count - first < ICE_KEY_BLOCK ? count - first : ICE_KEY_BLOCK;
        const char *key = (const char *)keys + first * key_bytes, *value = (const char *)values + first * value_bytes;
        for (uint64_t left = lanes; left; left &= left - 1) {
            const int lane = __builtin_ctzll(left);
            ice_state *row = &state[lane];
            float scores[ICE_KEY_BLOCK], correction;
            kernels->row_scores(queries + lane * dim, dim, dtype, key, key_stride, n, scores);
            for (int64_t j = 0; bias && j < n; j++) scores[j] += bias[first + j];
            kernels->row_softmax(scores, n, &row->maximum, &row->sum, &correction);
            kernels->row_weighted_sum(scores, n, dtype, value, value_stride, value_dim, correction, row->accumulator);
        }
    }
}

void ice_rows_add_means(ice_state *state, uint64_t lanes, const ice_kernels *kernels, int64_t value_dim,
                        icecore_dtype dtype, float *scores, int64_t stride, const void *values, int64_t count) {
    if (kernels->bf16 && dtype == ICECORE_BFLOAT16) {
        kernels->bf16->rows_attend(NULL, 0, 0.0f, NULL, values, value_dim, count, scores, stride, lanes, state);
        return;
    }
    for (; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctzll(lanes);
        ice_state *row = &state[lane];
        float correction;
        kernels->row_softmax(scores + lane * stride, count, &row->maximum, &row->sum, &correction);
        kernels->row_weighted_sum(scores + lane * stride, count, dtype, values, ice_row_stride(dtype, value_dim),
                                  value_dim, correction, row->accumulator);
    }
}

void ice_state_merge(ice_state *state, int64_t value_dim, float maximum, float sum, const float *accumulator) {
    if (sum == 0.0f) return; /* nothing was visible there */
    if (state->sum == 0.0f) {
        state->maximum = maximum;
        state->sum = sum;
        for (int64_t t = 0; t < value_dim; t++) state->accumulator[t] = accumulator[t];
        return;
    }
    float top = state->maximum > maximum ? state->maximum : maximum;
    float own = exp2f(state->maximum - top), other = exp2f(maximum - top);
    state->maximum = top;
    state->sum = state->sum * own + sum * other;
    for (int64_t t = 0; t < value_dim; t++)
        state->accumulator[t] = state->accumulator[t] * own + accumulator[t] * other;
}
