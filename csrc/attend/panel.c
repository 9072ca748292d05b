#include "attend/panel.h"

#include <string.h>

#include "attend/finite.h"
#include "base/parallel.h"

/* The keys that all rows of a tile see, but for a mask: [begin, end). */
static void find_seen_by_all(const ice_tile *tile, int64_t *begin, int64_t *end) {
    *begin = tile->visible[0].begin;
    *end = tile->visible[0].end;
    for (int lane = 1; lane < tile->lanes; lane++) {
        *begin = ice_max(*begin, tile->visible[lane].begin);
        *end = ice_min(*end, tile->visible[lane].end);
    }
}

static int64_t clipped(int64_t place, int64_t count) { return ice_max(0, ice_min(place, count)); }

/* Keys of a call: sinks, or what lies behind them. */
typedef struct {
    int64_t from, to;
    int are_sinks;
} call_keys;

/* What hides of keys first .. first + count - 1 those that a row may not see and those outside of the call's, and what
 * a mask adds to their scores: the panel's bias, or NULL where that is nothing.  *hidden: whether some key is hidden
 * from some row. */
static const float *find_bias(ice_tile *tile, int64_t first, int64_t count, const call_keys *keys, int *hidden) {
    const icecore_attention *p = tile->problem;
    float lower[ICE_PANEL], upper[ICE_PANEL];
    *hidden = 0;
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        /* relative to the block and clipped to it, so that floats hold them exactly */
        const ice_visible *row = &tile->visible[lane];
        const int64_t begin = keys->are_sinks ? row->sink_begin : row->begin;
        const int64_t end = keys->are_sinks ? row->sink_end : row->end;
        lower[lane] = (float)clipped(ice_max(begin, keys->from) - first, count);
        upper[lane] = (float)clipped(ice_min(end, keys->to) - first, count);
        *hidden |= lower[lane] > 0.0f || upper[lane] < (float)count;
    }
    if (!*hidden && p->mask_kind == ICECORE_MASK_NONE) return NULL;
    memset(tile->bias, 0, (size_t)(count * ICE_PANEL) * sizeof *tile->bias);
    if (*hidden) tile->kernels->mask_range(tile->bias, count, tile->lanes, lower, upper);
    if (p->mask_kind != ICECORE_MASK_NONE)
        for (int lane = 0; lane < tile->lanes; lane++)
            *hidden |= ice_add_mask(p, ice_tile_row(tile, lane), first, count, tile->bias + lane, ICE_PANEL);
    return tile->bias;
}

const float *ice_float_rows(const ice_tile *tile, const icecore_attention *p, const icecore_tensor *tensor,
                            int64_t width, int64_t first, int64_t count, float *buffer, int64_t *stride) {
    if (p->key_dtype == ICECORE_FLOAT32) {
        *stride = tensor->row_stride;
        return ice_address(tensor, p->key_dtype, tile->batch, tile->key_head, first);
    }
    for (int64_t j = 0; j < count; j++)
        tile->kernels->to_float32(p->key_dtype,
                                  ice_address(tensor, p->key_dtype, tile->batch, tile->key_head, first + j),
                                  buffer + j * width, width);
    *stride = width;
    return buffer;
}

/* Scores and softmax in float32: the panel's scores become weights. */
static void find_weights(ice_tile *tile, const float *keys, int64_t stride, int64_t count, const float *bias,
                         const ice_alibi *alibi) {
    const ice_kernels *kernels = tile->kernels;
    kernels->scores(tile->queries, tile->problem->dim, tile->lanes, keys, stride, count, tile->scores);
    ice_tile_cap(tile, tile->scores, count);
    if (alibi) kernels->alibi(tile->scores, 0, count, tile->lanes, alibi);
    for (int64_t i = 0; bias && i < count * ICE_PANEL; i++) /* what hides a key hides a NaN too */
        tile->scores[i] = bias[i] == -INFINITY ? -INFINITY : tile->scores[i] + bias[i];
    kernels->softmax(tile->scores, count, tile->lanes, tile->maximum, tile->sum, tile->correction);
}

static void attend_in_float32(ice_tile *tile, const icecore_attention *p, int64_t first, int64_t count,
                              const float *bias, int hidden) {
    int64_t key_stride, value_stride;
    const float *keys = ice_float_rows(tile, p, &p->key, p->dim, first, count, tile->keys, &key_stride);
    find_weights(tile, keys, key_stride, count, bias, ice_tile_alibi_from(tile, first));
    const float *values = ice_float_rows(tile, p, &p->value, p->value_dim, first, count, tile->values, &value_stride);
    ice_numbers rows = {ICECORE_FLOAT32, values, value_stride, count, p->value_dim};
    const int cleaned = ice_clean(&rows, hidden, tile->values);
    tile->kernels->weighted_sum(tile->scores, count, tile->lanes, rows.data, rows.stride, p->value_dim,
                                tile->correction, tile->accumulator);
    if (!cleaned) return;
    const void *given = ice_address(&p->value, p->key_dtype, tile->batch, tile->key_head, first);
    ice_add_nonfinite(&(ice_numbers){p->key_dtype, given, p->value.row_stride, count, p->value_dim}, tile->scores,
                      tile->lanes, ICE_PANEL, tile->accumulator);
}

/* What kernels of bfloat16, or of thirds, need of a tile. */
static ice_bf16_panel panel_of(const ice_tile *tile, const uint16_t *queries, float scale, const ice_alibi *alibi) {
    return (ice_bf16_panel){.queries = queries,
                            .dim = tile->problem->dim,
                            .value_dim = tile->problem->value_dim,
                            .lanes = tile->lanes,
                            .scale = scale,
                            .cap = tile->cap,
                            .maximum = tile->maximum,
                            .sum = tile->sum,
                            .correction = tile->correction,
                            .accumulator = tile->accumulator,
                            .alibi = alibi};
}

/* By the bfloat16 kernels.  keys NULL: the scores are the bias. */
static void attend_by_bf16(ice_tile *tile, const uint16_t *keys, int64_t stride, const uint16_t *packed_values,
                           int64_t count, const float *bias, const ice_alibi *alibi) {
    const ice_bf16_panel own = panel_of(tile, tile->query_pairs, tile->scale, alibi);
    tile->kernels->bf16->panel_attend(&own, keys, stride, packed_values, count, bias);
}

/* No score is seen beside a bias of this: where nothing else is left, kernels may not tell such ones apart. */
#define BEYOND_SCORES 0x1p100f

/* The weights that hidden keys do not have, as float32, in the place of the panel's scores. */
static void recall_weights(ice_tile *tile, const uint16_t *keys, int64_t stride, int64_t count, const float *bias,
                           const ice_alibi *alibi) {
    tile->kernels->bf16->scores(tile->query_pairs, tile->problem->dim, tile->lanes, tile->scale, keys, stride, count,
                                tile->scores);
    ice_tile_cap(tile, tile->scores, count);
    if (alibi) tile->kernels->alibi(tile->scores, 0, count, tile->lanes, alibi);
    for (int64_t j = 0; j < count; j++)
        for (int lane = 0; lane < tile->lanes; lane++) {
            float *score = &tile->scores[j * ICE_PANEL + lane];
            const float added = bias[j * ICE_PANEL + lane];
            if (added == -INFINITY) *score = 0.0f;
            else if (added < -BEYOND_SCORES && tile->maximum[lane] < -BEYOND_SCORES) *score = 1.0f;
            else *score = exp2f(*score + added - tile->maximum[lane]);
        }
}

static void attend_in_bf16(ice_tile *tile, const icecore_attention *p, int64_t first, int64_t count, const float *bias,
                           int hidden) {
    const ice_bf16_kernels *bf16 = tile->kernels->bf16;
    const ice_packed_head *head = &tile->packed;
    const uint16_t *keys = head->keys ? head->keys + first * p->dim
                                      : ice_address(&p->key, p->key_dtype, tile->batch, tile->key_head, first);
    const int64_t stride = head->keys ? p->dim : p->key.row_stride;
    const uint16_t *packed = tile->packed_values;
    const void *values = ice_address(&p->value, p->key_dtype, tile->batch, tile->key_head, first);
    const ice_numbers given = {ICECORE_BFLOAT16, values, p->value.row_stride, count, p->value_dim};
    ice_numbers rows = given;
    const int cleaned = ice_clean(&rows, hidden, tile->values);
    if (head->values && !cleaned) packed = head->values + first * p->value_dim;
    else bf16->pack_values(rows.data, rows.stride, count, p->value_dim, tile->packed_values);
    const ice_alibi *alibi = ice_tile_alibi_from(tile, first);
    attend_by_bf16(tile, keys, stride, packed, count, bias, alibi);
    if (!cleaned) return;
    recall_weights(tile, keys, stride, count, bias, alibi);
    ice_add_nonfinite(&given, tile->scores, tile->lanes, ICE_PANEL, tile->accumulator);
}

/* Whether thirds hold the tile's rows and these keys. */
static int are_in_thirds(const ice_tile *tile, int64_t first, int64_t end) {
    int beyond = tile->query_thirds == NULL;
    for (int64_t block = first / ICE_KEY_BLOCK; block * ICE_KEY_BLOCK < end && !beyond; block++)
        beyond = tile->packed.beyond[block];
    return !beyond;
}

static void attend_in_thirds(ice_tile *tile, int64_t first, int64_t count, const float *bias) {
    const icecore_attention *p = tile->problem;
    const ice_bf16_panel own = panel_of(tile, tile->query_thirds, 1.0f, ice_tile_alibi_from(tile, first));
    tile->kernels->thirds->panel_attend(&own, tile->packed.keys + ICE_THIRDS * first * p->dim,
                                        tile->packed.values + ICE_THIRDS * first * p->value_dim, count, bias);
}

static void attend_block(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t count,
                         const call_keys *keys) {
    int hidden;
    const float *bias = find_bias(tile, first, count, keys, &hidden);
    if (tile->query_pairs) attend_in_bf16(tile, source, first, count, bias, hidden);
    else if (are_in_thirds(tile, first, first + count)) attend_in_thirds(tile, first, count, bias);
    else attend_in_float32(tile, source, first, count, bias, hidden);
}

/* Milliseconds of work, after which a panel asks whether it is to stop. */
#define MAX_STRETCH 65536

/* Where a stretch of keys ends that can be attended to at once: packed values begin and end with whole packs, beyond
 * `end` if need be, and keys that all rows see need no blocks. */
static int64_t end_of_stretch(const ice_tile *tile, int64_t first, int64_t end, int64_t seen_begin, int64_t seen_end) {
    const int64_t keys = tile->problem->keys, block = first + ICE_KEY_BLOCK;
    if (!tile->packed.values) return ice_min(block, end);
    seen_end = ice_min(seen_end, first + MAX_STRETCH);
    if (tile->problem->mask_kind == ICECORE_MASK_NONE && first >= seen_begin && seen_end > block &&
        (tile->query_pairs || are_in_thirds(tile, first, seen_end)))
        return seen_end < keys ? seen_end - (seen_end - first) % ICE_PACKED : keys;
    return ice_min(ice_min(first + (end - first + ICE_PACKED - 1) / ICE_PACKED * ICE_PACKED, block), keys);
}

void ice_panel_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t from, int64_t to) {
    if (from >= to) return;
    const call_keys keys = {from, to, from < ice_tile_visible(tile).sink_end};
    int64_t seen_begin, seen_end, first = tile->packed.values ? from - from % ICE_PACKED : from;
    find_seen_by_all(tile, &seen_begin, &seen_end);
    while (first < to && !ice_interrupted()) {
        const int64_t end = end_of_stretch(tile, first, to, ice_max(seen_begin, from), ice_min(seen_end, to));
        if (end - first <= ICE_KEY_BLOCK) attend_block(tile, source, first, end - first, &keys);
        else if (tile->query_thirds) attend_in_thirds(tile, first, end - first, NULL);
        else attend_in_bf16(tile, source, first, end - first, NULL, 0);
        first = end;
    }
}

void ice_panel_attend_rows(ice_tile *tile, const void *keys, const void *values, int64_t count, float *bias) {
    const ice_kernels *kernels = tile->kernels;
    const int64_t dim = tile->problem->dim, value_dim = tile->problem->value_dim;
    if (tile->query_pairs) {
        kernels->bf16->pack_values(values, value_dim, count, value_dim, tile->packed_values);
        attend_by_bf16(tile, keys, dim, tile->packed_values, count, bias, NULL);
        return;
    }
    if (keys) find_weights(tile, keys, dim, count, bias, NULL);
    else kernels->softmax(bias, count, tile->lanes, tile->maximum, tile->sum, tile->correction);
    kernels->weighted_sum(keys ? tile->scores : bias, count, tile->lanes, values, value_dim, value_dim,
                          tile->correction, tile->accumulator);
}

/* Rows side by side, as the panel wants them: as they are or widened to float32. */
static void copy_rows(const ice_tile *tile, const void *const *rows, int64_t count, int64_t width, void *target) {
    const icecore_dtype dtype = tile->problem->key_dtype, wanted = ice_panel_dtype(tile->problem, tile->kernels);
    const size_t size = ice_row_bytes(wanted, width);
    for (int64_t j = 0; j < count; j++) {
        void *copy = (char *)target + (size_t)j * size;
        if (dtype == wanted) memcpy(copy, rows[j], size);
        else tile->kernels->to_float32(dtype, rows[j], copy, width);
    }
}

void ice_panel_attend_gathered(ice_tile *tile, const void *const *keys, const void *const *values, int64_t count) {
    copy_rows(tile, keys, count, tile->problem->dim, tile->keys);
    copy_rows(tile, values, count, tile->problem->value_dim, tile->values);
    ice_panel_attend_rows(tile, tile->keys, tile->values, count, NULL);
}

const void *ice_panel_rows(const ice_tile *tile, icecore_dtype dtype, const void *rows, int64_t count, int64_t width,
                           float *buffer) {
    if (tile->query_pairs || dtype == ICECORE_FLOAT32) return rows;
    tile->kernels->to_float32(dtype, rows, buffer, count * width);
    return buffer;
}

void ice_tile_score(ice_tile *tile, icecore_dtype dtype, const void *means, int64_t count, float *scores) {
    const int64_t dim = tile->problem->dim;
    ice_tile_begin_panel(tile);
    if (tile->query_pairs) {
        tile->kernels->bf16->scores(tile->query_pairs, dim, tile->lanes, tile->scale, means, dim, count, scores);
        return;
    }
    for (int64_t i = 0; i < count; i += ICE_KEY_BLOCK) {
        const int64_t some = ice_min(count - i, ICE_KEY_BLOCK);
        const void *rows = ice_panel_rows(tile, dtype, ice_row_of(dtype, means, i, dim), some, dim, tile->keys);
        tile->kernels->scores(tile->queries, dim, tile->lanes, rows, dim, some, scores + i * ICE_PANEL);
    }
}

void ice_panel_hiding(uint64_t lanes, float hiding[ICE_PANEL]) {
#define H -INFINITY
    /* of four lanes at a time: bit by bit this took a fiftieth of a long prefill */
    static const float four[16][4] = {
        {H, H, H, H}, {0, H, H, H}, {H, 0, H, H}, {0, 0, H, H}, {H, H, 0, H}, {0, H, 0, H}, {H, 0, 0, H}, {0, 0, 0, H},
        {H, H, H, 0}, {0, H, H, 0}, {H, 0, H, 0}, {0, 0, H, 0}, {H, H, 0, 0}, {0, H, 0, 0}, {H, 0, 0, 0}, {0, 0, 0, 0}};
#undef H
    for (int lane = 0; lane < ICE_PANEL; lane += 4) memcpy(hiding + lane, four[(lanes >> lane) & 15], sizeof four[0]);
}
