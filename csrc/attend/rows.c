#include "attend/rows.h"

#include "attend/finite.h"
#include "base/parallel.h"

static const float *query_of(const ice_tile *tile, int lane) { return tile->query_rows + lane * tile->problem->dim; }

static int is_bf16(const ice_tile *tile, icecore_dtype dtype) {
    return tile->rounded_rows && dtype == ICECORE_BFLOAT16;
}

/* Adds keys of these scores, which are lost, to a row. */
static void add_values(ice_tile *tile, int lane, float *scores, const ice_numbers *values) {
    ice_state *state = &tile->state[lane];
    float correction;
    tile->kernels->row_softmax(scores, values->count, &state->maximum, &state->sum, &correction);
    tile->kernels->row_weighted_sum(scores, values->count, values->dtype, values->data, values->stride, values->dim,
                                    correction, state->accumulator);
}

/* ---- Runs ---- */

static void attend_in_bf16(ice_tile *tile, const ice_run *run) {
    const icecore_attention *p = tile->problem;
    const ice_bf16_rows rows = {.queries = tile->rounded_rows,
                                .dim = p->dim,
                                .value_dim = p->value_dim,
                                .key_stride = run->key_stride,
                                .value_stride = run->value_stride,
                                .scale = tile->scale,
                                .cap = tile->cap,
                                .state = tile->state,
                                .alibi = ice_tile_alibi_from(tile, run->first)};
    tile->kernels->bf16->rows_attend(&rows, run->lanes, run->keys, run->values, run->count, run->bias, 0);
}

/* Block by block, so that a block's rows stay in cache for all queries.  base: of each lane the score of what all keys
 * lack, which a cap has to see; NULL: 0. */
static void attend_in_float32(ice_tile *tile, const ice_run *run, const float *base) {
    const icecore_attention *p = tile->problem;
    const ice_kernels *kernels = tile->kernels;
    const int64_t size = (int64_t)ice_element_size(run->dtype);
    for (int64_t first = 0; first < run->count; first += ICE_KEY_BLOCK) {
        const int64_t count = ice_min(run->count - first, ICE_KEY_BLOCK);
        const char *keys = (const char *)run->keys + first * run->key_stride * size;
        const ice_numbers values = {run->dtype, (const char *)run->values + first * run->value_stride * size,
                                    run->value_stride, count, p->value_dim};
        for (uint64_t left = run->lanes; left; left &= left - 1) {
            const int lane = __builtin_ctzll(left);
            float scores[ICE_KEY_BLOCK];
            kernels->row_scores(query_of(tile, lane), p->dim, run->dtype, keys, run->key_stride, count, scores);
            for (int64_t j = 0; base && j < count; j++) scores[j] += base[lane];
            ice_tile_cap_row(tile, scores, count);
            ice_tile_alibi_row(tile, lane, run->first + first, count, scores);
            for (int64_t j = 0; run->bias && j < count; j++) scores[j] += run->bias[first + j];
            add_values(tile, lane, scores, &values);
        }
    }
}

/* Rows in halves that are made whole at a time. */
#define JOINED 16

static void attend_joined(ice_tile *tile, const ice_run *run) {
    const int64_t dim = tile->problem->dim, value_dim = tile->problem->value_dim;
    float keys[JOINED * ICECORE_MAX_DIM], values[JOINED * ICECORE_MAX_DIM];
    for (int64_t i = 0; i < run->count; i += JOINED) {
        const int64_t count = ice_min(run->count - i, JOINED);
        ice_run whole = ice_run_of(tile, ICECORE_FLOAT32, keys, values, count, run->lanes);
        whole.first = run->first + i;
        whole.bias = run->bias ? run->bias + i : NULL;
        tile->kernels->join((const uint16_t *)run->keys + i * dim, run->second_keys + i * dim, keys, count * dim);
        tile->kernels->join((const uint16_t *)run->values + i * value_dim, run->second_values + i * value_dim, values,
                            count * value_dim);
        attend_in_float32(tile, &whole, NULL);
    }
}

/* The score of what all keys lack is the same for all of them: a row's maximum is lowered by it meanwhile, unless there
 * is a cap.  Keys that lack something are never multiplied in bfloat16. */
static void attend_less_base(ice_tile *tile, const ice_run *run) {
    const int64_t dim = tile->problem->dim;
    const int is_capped = tile->cap > 0.0f;
    float score[ICE_PANEL];
    for (uint64_t left = run->lanes; left; left &= left - 1) {
        const int lane = __builtin_ctzll(left);
        tile->kernels->row_scores(query_of(tile, lane), dim, ICECORE_FLOAT32, run->base, dim, 1, &score[lane]);
        if (!is_capped) tile->state[lane].maximum -= score[lane];
    }
    attend_in_float32(tile, run, is_capped ? score : NULL);
    for (uint64_t left = is_capped ? 0 : run->lanes; left; left &= left - 1)
        tile->state[__builtin_ctzll(left)].maximum += score[__builtin_ctzll(left)];
}

void ice_rows_attend(ice_tile *tile, const ice_run *run) {
    if (run->second_keys) attend_joined(tile, run);
    else if (run->base) attend_less_base(tile, run);
    else if (is_bf16(tile, run->dtype)) attend_in_bf16(tile, run);
    else attend_in_float32(tile, run, NULL);
}

/* ---- Keys of the problem ---- */

/* Keys first .. first + count - 1, at most ICE_KEY_BLOCK, for one row under a mask. */
static void attend_masked(ice_tile *tile, const icecore_attention *source, int lane, int64_t first, int64_t count) {
    const icecore_attention *p = tile->problem;
    const icecore_dtype dtype = source->key_dtype;
    const void *keys = ice_address(&source->key, dtype, tile->batch, tile->key_head, first);
    const void *values = ice_address(&source->value, dtype, tile->batch, tile->key_head, first);
    const ice_numbers given = {dtype, values, source->value.row_stride, count, p->value_dim};
    ice_numbers rows = given;
    float scores[ICE_KEY_BLOCK];
    tile->kernels->row_scores(query_of(tile, lane), p->dim, dtype, keys, source->key.row_stride, count, scores);
    ice_tile_cap_row(tile, scores, count);
    ice_tile_alibi_row(tile, lane, first, count, scores);
    const int hidden = ice_add_mask(p, ice_tile_row(tile, lane), first, count, scores, 1);
    const int cleaned = ice_clean(&rows, hidden, tile->values);
    add_values(tile, lane, scores, &rows);
    if (cleaned) ice_add_nonfinite(&given, scores, 1, 1, tile->state[lane].accumulator);
}

static void attend_part(ice_tile *tile, const icecore_attention *source, uint64_t lanes, int64_t first, int64_t end) {
    if (tile->problem->mask_kind != ICECORE_MASK_NONE) {
        for (; lanes; lanes &= lanes - 1) attend_masked(tile, source, __builtin_ctzll(lanes), first, end - first);
        return;
    }
    const ice_run run = ice_run_of_keys(tile, source, first, end, lanes);
    ice_rows_attend(tile, &run);
}

/* Of a block, what one row sees: all rows that see all of it go together, others by themselves. */
static int sees_all(ice_tile *tile, const icecore_attention *source, int lane, int64_t block, int64_t end) {
    const ice_visible *row = &tile->visible[lane];
    const int64_t sink_begin = ice_max(row->sink_begin, block), sink_end = ice_min(row->sink_end, end);
    const int64_t low = ice_max(row->begin, block), high = ice_min(row->end, end);
    if (low == block && high == end) return 1;
    if (sink_begin < sink_end) attend_part(tile, source, (uint64_t)1 << lane, sink_begin, sink_end);
    if (low < high) attend_part(tile, source, (uint64_t)1 << lane, low, high);
    return 0;
}

/* Block by block, so that keys are read from memory once for all rows, and a row's sums do not depend on what others
 * see. */
void ice_rows_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end) {
    for (int64_t block = first, last; block < end && !ice_interrupted(); block = last) {
        uint64_t lanes = 0;
        last = block + ice_min(end - block, ICE_KEY_BLOCK);
        for (int lane = 0; lane < tile->lanes; lane++)
            lanes |= (uint64_t)sees_all(tile, source, lane, block, last) << lane;
        if (lanes) attend_part(tile, source, lanes, block, last);
    }
}

void ice_rows_attend_gathered(ice_tile *tile, uint64_t lanes, const void *const *keys, const void *const *values,
                              int64_t count) {
    const icecore_attention *p = tile->problem;
    const ice_kernels *kernels = tile->kernels;
    float scores[ICE_KEY_BLOCK];
    for (; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctzll(lanes);
        kernels->gathered_scores(query_of(tile, lane), p->dim, 0.0f, p->key_dtype, keys, count, scores);
        ice_tile_cap_row(tile, scores, count);
        ice_tile_add_gathered_means(tile, lane, scores, values, count);
    }
}

/* ---- Means ---- */

void ice_tile_score_row(const ice_tile *tile, int lane, icecore_dtype dtype, const void *means, int64_t count,
                        float *scores) {
    const int64_t dim = tile->problem->dim;
    if (is_bf16(tile, dtype))
        tile->kernels->bf16->row_scores(tile->rounded_rows + lane * dim, dim, tile->scale, means, dim, count, scores);
    else tile->kernels->row_scores(query_of(tile, lane), dim, dtype, means, ice_row_stride(dtype, dim), count, scores);
}

void ice_tile_add_means_to(ice_tile *tile, uint64_t lanes, icecore_dtype dtype, float *scores, int64_t stride,
                           const void *values, int64_t count) {
    const int64_t value_dim = tile->problem->value_dim;
    if (is_bf16(tile, dtype)) {
        const ice_bf16_rows rows = {.value_dim = value_dim, .value_stride = value_dim, .state = tile->state};
        tile->kernels->bf16->rows_attend(&rows, lanes, NULL, values, count, scores, stride);
        return;
    }
    const ice_numbers means = {dtype, values, ice_row_stride(dtype, value_dim), count, value_dim};
    for (; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctzll(lanes);
        add_values(tile, lane, scores + lane * stride, &means);
    }
}

void ice_tile_add_gathered_means(ice_tile *tile, int lane, float *scores, const void *const *values, int64_t count) {
    const icecore_attention *p = tile->problem;
    ice_state *state = &tile->state[lane];
    float correction;
    tile->kernels->row_softmax(scores, count, &state->maximum, &state->sum, &correction);
    tile->kernels->gathered_weighted_sum(scores, count, p->key_dtype, values, p->value_dim, correction,
                                         state->accumulator);
}
