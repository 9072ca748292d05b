#include "attend/tile.h"

#include <string.h>

#include "attend/finite.h"
#include "base/memory.h"
#include "base/parallel.h"

static float *take_floats(char **scratch, int64_t count) { return ice_take(scratch, (size_t)count * sizeof(float)); }
static uint16_t *take_halves(char **scratch, int64_t count) {
    return ice_take(scratch, (size_t)count * sizeof(uint16_t));
}

int ice_tile_is_bf16(const icecore_attention *p, const ice_kernels *kernels) {
    const ice_bf16_kernels *bf16 = kernels->bf16;
    return bf16 && p->key_dtype == ICECORE_BFLOAT16 && p->dim % bf16->dim_multiple == 0 &&
           p->value_dim % bf16->value_dim_multiple == 0;
}

size_t ice_tile_bytes(const icecore_attention *p) {
    int64_t rows = 2 * p->dim + p->value_dim + 2 * ICE_KEY_BLOCK + 3;
    int64_t widened = ICE_KEY_BLOCK * (p->dim + p->value_dim);
    int64_t pairs = p->key_dtype != ICECORE_BFLOAT16 ? 0 : (2 * p->dim + 1) * ICE_PANEL + ICE_KEY_BLOCK * p->value_dim;
    return (size_t)(rows * ICE_PANEL + widened) * sizeof(float) + (size_t)pairs * sizeof(uint16_t) + 14 * ICE_ALIGNMENT;
}

void ice_tile_begin(ice_tile *panel, const icecore_attention *p, const ice_kernels *kernels, int64_t batch,
                    int64_t key_head, int64_t first_row, int lanes, void *scratch) {
    char *free_space = scratch;
    *panel = (ice_tile){
        .problem = p, .kernels = kernels, .batch = batch, .key_head = key_head, .first_row = first_row, .lanes = lanes};
    panel->queries = take_floats(&free_space, p->dim * ICE_PANEL);
    panel->query_rows = take_floats(&free_space, p->dim * ICE_PANEL);
    panel->accumulator = take_floats(&free_space, p->value_dim * ICE_PANEL);
    panel->scores = take_floats(&free_space, ICE_KEY_BLOCK * ICE_PANEL);
    panel->bias = take_floats(&free_space, ICE_KEY_BLOCK * ICE_PANEL);
    panel->maximum = take_floats(&free_space, ICE_PANEL);
    panel->sum = take_floats(&free_space, ICE_PANEL);
    panel->correction = take_floats(&free_space, ICE_PANEL);
    panel->keys = take_floats(&free_space, ICE_KEY_BLOCK * p->dim);
    panel->values = take_floats(&free_space, ICE_KEY_BLOCK * p->value_dim);
    if (ice_tile_is_bf16(p, kernels)) {
        panel->rounded_rows = take_halves(&free_space, p->dim * ICE_PANEL);
        panel->query_pairs = take_halves(&free_space, (p->dim + 1) * ICE_PANEL);
        panel->packed_values = take_halves(&free_space, ICE_KEY_BLOCK * p->value_dim);
    }
    const float *query[ICE_PANEL];
    for (int lane = 0; lane < lanes; lane++) {
        const ice_row row = ice_row_at(p, batch, key_head, first_row + lane);
        float *target = panel->query_rows + lane * p->dim;
        panel->visible[lane] = ice_visible_keys(p, row.query);
        ice_load_query(p, kernels, row, 1.0f, target);
        query[lane] = target;
    }
    for (int lane = lanes; lane < ICE_PANEL; lane++) {
        panel->visible[lane] = panel->visible[lanes - 1];
        query[lane] = query[lanes - 1];
    }
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        panel->maximum[lane] = -INFINITY;
        panel->sum[lane] = 0.0f;
    }
    kernels->to_panel(query, p->dim, panel->queries);
    /* rounded before scaling: a bfloat16 query goes in as it is */
    if (panel->query_pairs) {
        kernels->bf16->pack_queries(panel->queries, p->dim, panel->query_pairs);
        kernels->from_float32(ICECORE_BFLOAT16, panel->query_rows, panel->rounded_rows, p->dim * lanes);
        for (int64_t t = 0; t < p->dim;
             t++) { /* so that what is multiplied in float32 agrees; `correction` is free yet */
            uint16_t *rounded = (uint16_t *)panel->correction;
            kernels->from_float32(ICECORE_BFLOAT16, panel->queries + t * ICE_PANEL, rounded, ICE_PANEL);
            kernels->to_float32(ICECORE_BFLOAT16, rounded, panel->queries + t * ICE_PANEL, ICE_PANEL);
        }
    }
    panel->scale = (float)(p->scale * ICE_LOG2_E);
    for (int64_t i = 0; i < p->dim * ICE_PANEL; i++) panel->queries[i] *= panel->scale;
    for (int64_t i = 0; i < p->dim * lanes; i++) panel->query_rows[i] *= panel->scale;
    memset(panel->accumulator, 0, (size_t)(p->value_dim * ICE_PANEL) * sizeof(float));
}

ice_visible ice_tile_visible(const ice_tile *panel) {
    ice_visible all = panel->visible[0];
    for (int lane = 1; lane < panel->lanes; lane++) {
        const ice_visible *row = &panel->visible[lane];
        if (row->sink_end > all.sink_end) all.sink_end = row->sink_end;
        if (row->begin < all.begin) all.begin = row->begin;
        if (row->end > all.end) all.end = row->end;
    }
    if (all.begin < all.sink_end) all.begin = all.sink_end;
    if (all.end < all.begin) all.end = all.begin;
    return all;
}

/* The keys that all rows of the panel see, but for a mask: [begin, end). */
static void find_seen_by_all(const ice_tile *panel, int64_t *begin, int64_t *end) {
    *begin = panel->visible[0].begin;
    *end = panel->visible[0].end;
    for (int lane = 1; lane < panel->lanes; lane++) {
        if (panel->visible[lane].begin > *begin) *begin = panel->visible[lane].begin;
        if (panel->visible[lane].end < *end) *end = panel->visible[lane].end;
    }
}

/* What hides of keys first .. first + count - 1 those that a row may not see and those outside [from, to), and what a
 * mask adds to their scores: the panel's bias, or NULL where that is nothing.  *hidden: whether some key is hidden from
 * some row. */
static const float *find_bias(ice_tile *panel, int64_t first, int64_t count, int64_t from, int64_t to, int *hidden) {
    const icecore_attention *p = panel->problem;
    float lower[ICE_PANEL], upper[ICE_PANEL], sink_upper[ICE_PANEL];
    int64_t sinks = p->window < 0 ? 0 : p->sinks - first;
    int partial = 0;
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        /* relative to the block and clipped to it, so that floats hold them exactly */
        const ice_visible *row = &panel->visible[lane];
        int64_t low = (row->begin > from ? row->begin : from) - first, high = (row->end < to ? row->end : to) - first;
        int64_t sink_high = (from > 0 ? 0 : row->sink_end < to ? row->sink_end : to) - first;
        /* a begin that only says "after the sinks" hides nothing by itself */
        lower[lane] = (float)(low < 0 ? 0 : low > count ? count : low);
        upper[lane] = (float)(high < 0 ? 0 : high > count ? count : high);
        sink_upper[lane] = (float)(sink_high < 0 ? 0 : sink_high > count ? count : sink_high);
        int64_t sinks_here = sinks < 0 ? 0 : sinks > count ? count : sinks;
        partial |= sink_upper[lane] < (float)sinks_here;
        partial |= sinks_here < count && (lower[lane] > (float)sinks_here || upper[lane] < (float)count);
    }
    *hidden = partial;
    if (!partial && p->mask_kind == ICECORE_MASK_NONE) return NULL;
    memset(panel->bias, 0, (size_t)(count * ICE_PANEL) * sizeof *panel->bias);
    if (partial)
        panel->kernels->mask_range(panel->bias, count, panel->lanes, lower, upper, sink_upper,
                                   (float)(sinks < 0       ? 0
                                           : sinks > count ? count
                                                           : sinks));
    if (p->mask_kind != ICECORE_MASK_NONE)
        for (int lane = 0; lane < panel->lanes; lane++)
            *hidden |= ice_add_mask(p, ice_row_at(p, panel->batch, panel->key_head, panel->first_row + lane), first,
                                    count, panel->bias + lane, ICE_PANEL);
    return panel->bias;
}

/* Rows `first`.. as float32: where they lie, or widened into `buffer`. */
static const float *float_rows(ice_tile *panel, const icecore_tensor *tensor, int64_t width, int64_t first,
                               int64_t count, float *buffer, int64_t *stride) {
    const icecore_attention *p = panel->problem;
    if (p->key_dtype == ICECORE_FLOAT32) {
        *stride = tensor->row_stride;
        return ice_address(tensor, p->key_dtype, panel->batch, panel->key_head, first);
    }
    for (int64_t j = 0; j < count; j++)
        panel->kernels->to_float32(p->key_dtype,
                                   ice_address(tensor, p->key_dtype, panel->batch, panel->key_head, first + j),
                                   buffer + j * width, width);
    *stride = width;
    return buffer;
}

/* Scores and softmax in float32: the panel's scores become weights. */
static void find_weights(ice_tile *panel, const float *keys, int64_t stride, int64_t count, const float *bias) {
    const ice_kernels *kernels = panel->kernels;
    kernels->scores(panel->queries, panel->problem->dim, panel->lanes, keys, stride, count, panel->scores);
    for (int64_t i = 0; bias && i < count * ICE_PANEL; i++) /* what hides a key hides a NaN too */
        panel->scores[i] = bias[i] == -INFINITY ? -INFINITY : panel->scores[i] + bias[i];
    kernels->softmax(panel->scores, count, panel->lanes, panel->maximum, panel->sum, panel->correction);
}

static void attend_in_float32(ice_tile *panel, int64_t first, int64_t count, const float *bias, int hidden) {
    const icecore_attention *p = panel->problem;
    int64_t key_stride, value_stride;
    const float *keys = float_rows(panel, &p->key, p->dim, first, count, panel->keys, &key_stride);
    find_weights(panel, keys, key_stride, count, bias);
    const float *values = float_rows(panel, &p->value, p->value_dim, first, count, panel->values, &value_stride);
    int cleaned = hidden && !ice_all_finite(ICECORE_FLOAT32, values, value_stride, count, p->value_dim);
    if (cleaned) {
        ice_copy_finite(ICECORE_FLOAT32, values, value_stride, count, p->value_dim, panel->values);
        values = panel->values;
        value_stride = p->value_dim;
    }
    panel->kernels->weighted_sum(panel->scores, count, panel->lanes, values, value_stride, p->value_dim,
                                 panel->correction, panel->accumulator);
    if (cleaned)
        ice_add_nonfinite(p->key_dtype, ice_address(&p->value, p->key_dtype, panel->batch, panel->key_head, first),
                          p->value.row_stride, count, p->value_dim, panel->scores, panel->lanes, ICE_PANEL,
                          panel->accumulator);
}

/* By the bfloat16 kernels.  keys NULL: the scores are the bias. */
static void attend_by_bf16(ice_tile *panel, const uint16_t *keys, int64_t stride, const uint16_t *packed_values,
                           int64_t count, const float *bias) {
    const ice_bf16_panel own = {panel->query_pairs, panel->problem->dim, panel->problem->value_dim,
                                panel->lanes,       panel->scale,        panel->maximum,
                                panel->sum,         panel->correction,   panel->accumulator};
    panel->kernels->bf16->panel_attend(&own, keys, stride, packed_values, count, bias);
}

/* The weights that hidden keys do not have, as float32, in the place of the panel's scores. */
static void recall_weights(ice_tile *panel, const uint16_t *keys, int64_t stride, int64_t count, const float *bias) {
    panel->kernels->bf16->scores(panel->query_pairs, panel->problem->dim, panel->lanes, panel->scale, keys, stride,
                                 count, panel->scores);
    for (int64_t j = 0; j < count; j++)
        for (int lane = 0; lane < panel->lanes; lane++) {
            float *score = &panel->scores[j * ICE_PANEL + lane];
            const float added = bias[j * ICE_PANEL + lane];
            *score = added == -INFINITY ? 0.0f : exp2f(*score + added - panel->maximum[lane]);
        }
}

static void attend_in_bf16(ice_tile *panel, int64_t first, int64_t count, const float *bias, int hidden) {
    const icecore_attention *p = panel->problem;
    const ice_bf16_kernels *bf16 = panel->kernels->bf16;
    const uint16_t *keys = ice_address(&p->key, p->key_dtype, panel->batch, panel->key_head, first);
    const uint16_t *values = ice_address(&p->value, p->key_dtype, panel->batch, panel->key_head, first),
                   *packed = panel->packed_values;
    const int cleaned = hidden && !ice_all_finite(ICECORE_BFLOAT16, values, p->value.row_stride, count, p->value_dim);
    if (cleaned) {
        uint16_t *finite = (uint16_t *)panel->values;
        ice_copy_finite(ICECORE_BFLOAT16, values, p->value.row_stride, count, p->value_dim, finite);
        bf16->pack_values(finite, p->value_dim, count, p->value_dim, panel->packed_values);
    } else if (panel->packed) {
        packed = panel->packed + first * p->value_dim;
    } else {
        bf16->pack_values(values, p->value.row_stride, count, p->value_dim, panel->packed_values);
    }
    attend_by_bf16(panel, keys, p->key.row_stride, packed, count, bias);
    if (!cleaned) return;
    recall_weights(panel, keys, p->key.row_stride, count, bias);
    ice_add_nonfinite(ICECORE_BFLOAT16, values, p->value.row_stride, count, p->value_dim, panel->scores, panel->lanes,
                      ICE_PANEL, panel->accumulator);
}

static void attend_block(ice_tile *panel, int64_t first, int64_t count, int64_t from, int64_t to) {
    int hidden;
    const float *bias = find_bias(panel, first, count, from, to, &hidden);
    if (panel->query_pairs) attend_in_bf16(panel, first, count, bias, hidden);
    else attend_in_float32(panel, first, count, bias, hidden);
}

/* Milliseconds of work, after which a panel asks whether it is to stop. */
#define MOST_STRETCH 65536

/* Where a stretch of keys ends that can be attended to at once: packed values begin and end with whole packs, beyond
 * `end` if need be, and keys that all rows see need no blocks. */
static int64_t end_of_stretch(const ice_tile *panel, int64_t first, int64_t end, int64_t seen_begin, int64_t seen_end) {
    const int64_t keys = panel->problem->keys, block = first + ICE_KEY_BLOCK;
    if (!panel->packed) return block < end ? block : end;
    if (seen_end > first + MOST_STRETCH) seen_end = first + MOST_STRETCH;
    if (panel->problem->mask_kind == ICECORE_MASK_NONE && first >= seen_begin && seen_end > block)
        return seen_end < keys ? seen_end - (seen_end - first) % ICE_PACKED : keys;
    int64_t last = first + (end - first + ICE_PACKED - 1) / ICE_PACKED * ICE_PACKED;
    if (last > block) last = block;
    return last < keys ? last : keys;
}

void ice_tile_attend(ice_tile *panel, int64_t from, int64_t to) {
    int64_t seen_begin, seen_end, first = panel->packed ? from - from % ICE_PACKED : from;
    find_seen_by_all(panel, &seen_begin, &seen_end);
    if (seen_begin < from) seen_begin = from;
    if (seen_end > to) seen_end = to;
    while (first < to && !ice_interrupted()) {
        const int64_t end = end_of_stretch(panel, first, to, seen_begin, seen_end);
        if (end - first > ICE_KEY_BLOCK) attend_in_bf16(panel, first, end - first, NULL, 0);
        else attend_block(panel, first, end - first, from, to);
        first = end;
    }
}

void ice_tile_attend_rows(ice_tile *panel, const void *keys, const void *values, int64_t count, const float *bias) {
    const int64_t dim = panel->problem->dim, value_dim = panel->problem->value_dim;
    if (panel->query_pairs) {
        panel->kernels->bf16->pack_values(values, value_dim, count, value_dim, panel->packed_values);
        attend_by_bf16(panel, keys, dim, panel->packed_values, count, bias);
    } else {
        find_weights(panel, keys, dim, count, bias);
        panel->kernels->weighted_sum(panel->scores, count, panel->lanes, values, value_dim, value_dim,
                                     panel->correction, panel->accumulator);
    }
}

void ice_tile_scores(ice_tile *panel, const void *keys, int64_t stride, int64_t count, float *scores) {
    const int64_t dim = panel->problem->dim;
    if (panel->query_pairs)
        panel->kernels->bf16->scores(panel->query_pairs, dim, panel->lanes, panel->scale, keys, stride, count, scores);
    else panel->kernels->scores(panel->queries, dim, panel->lanes, keys, stride, count, scores);
}

void ice_tile_add(ice_tile *panel, float *scores, int64_t count, const void *values) {
    const int64_t value_dim = panel->problem->value_dim;
    if (panel->query_pairs) {
        panel->kernels->bf16->pack_values(values, value_dim, count, value_dim, panel->packed_values);
        attend_by_bf16(panel, NULL, 0, panel->packed_values, count, scores);
    } else {
        panel->kernels->softmax(scores, count, panel->lanes, panel->maximum, panel->sum, panel->correction);
        panel->kernels->weighted_sum(scores, count, panel->lanes, values, value_dim, value_dim, panel->correction,
                                     panel->accumulator);
    }
}

void ice_tile_hiding(uint64_t lanes, float hiding[ICE_PANEL]) {
#define H -INFINITY
    /* of four lanes at a time: bit by bit this took a fiftieth of a long prefill */
    static const float four[16][4] = {
        {H, H, H, H}, {0, H, H, H}, {H, 0, H, H}, {0, 0, H, H}, {H, H, 0, H}, {0, H, 0, H}, {H, 0, 0, H}, {0, 0, 0, H},
        {H, H, H, 0}, {0, H, H, 0}, {H, 0, H, 0}, {0, 0, H, 0}, {H, H, 0, 0}, {0, H, 0, 0}, {H, 0, 0, 0}, {0, 0, 0, 0}};
#undef H
    for (int lane = 0; lane < ICE_PANEL; lane += 4) memcpy(hiding + lane, four[(lanes >> lane) & 15], sizeof four[0]);
}

void ice_add_centre(const ice_tile *panel, int lane, const float *centre, float *lse) {
    float score;
    panel->kernels->row_scores(panel->query_rows + lane * panel->problem->dim, panel->problem->dim, ICECORE_FLOAT32,
                               centre, panel->problem->dim, 1, &score);
    *lse += (float)(ICE_LN_2 * (double)score);
}

float *ice_tile_rows(ice_tile *panel) {
    _Static_assert(ICE_PANEL <= ICE_KEY_BLOCK, "a block of values leaves room for the rows");
    panel->kernels->from_panel(panel->accumulator, panel->problem->value_dim, panel->values);
    return panel->values;
}
