#include "attend/tile.h"

#include <string.h>

static void lay_out(ice_tile *tile, const icecore_attention *p, ice_arena *a) {
    const int64_t pairs = p->key_dtype == ICECORE_BFLOAT16;
    tile->state_accumulators = ice_arena_take(a, ICE_PANEL * p->value_dim, sizeof(float));
    tile->query_rows = ice_arena_take(a, ICE_PANEL * p->dim, sizeof(float));
    tile->rounded_rows = ice_arena_take(a, pairs * ICE_PANEL * p->dim, sizeof(uint16_t));
    tile->queries = ice_arena_take(a, ICE_PANEL * p->dim, sizeof(float));
    tile->query_pairs = ice_arena_take(a, pairs * ICE_PANEL * (p->dim + 1), sizeof(uint16_t));
    tile->maximum = ice_arena_take(a, ICE_PANEL, sizeof(float));
    tile->sum = ice_arena_take(a, ICE_PANEL, sizeof(float));
    tile->correction = ice_arena_take(a, ICE_PANEL, sizeof(float));
    tile->accumulator = ice_arena_take(a, ICE_PANEL * p->value_dim, sizeof(float));
    tile->scores = ice_arena_take(a, ICE_KEY_BLOCK * ICE_PANEL, sizeof(float));
    tile->bias = ice_arena_take(a, ICE_KEY_BLOCK * ICE_PANEL, sizeof(float));
    tile->keys = ice_arena_take(a, ICE_KEY_BLOCK * p->dim, sizeof(float));
    tile->values = ice_arena_take(a, ICE_KEY_BLOCK * p->value_dim, sizeof(float));
    tile->thirds_room = ice_arena_take(a, (1 - pairs) * ICE_THIRDS * ICE_PANEL * p->dim, sizeof(uint16_t));
    tile->packed_values = ice_arena_take(a, pairs * ICE_KEY_BLOCK * p->value_dim, sizeof(uint16_t));
}

size_t ice_tile_bytes(const icecore_attention *problem) {
    size_t most = 0;
    for (int i = 0; i < 2; i++) { /* keys that are rounded, and as they were given, share scratch */
        icecore_attention own = *problem;
        own.key_dtype = i ? ICECORE_BFLOAT16 : ICECORE_FLOAT32;
        ice_tile none;
        ice_arena arena = {NULL, 0};
        lay_out(&none, &own, &arena);
        if (arena.used > most) most = arena.used;
    }
    return most;
}

static void round_query(ice_tile *tile, int lane) {
    const icecore_attention *p = tile->problem;
    const ice_row row = ice_tile_row(tile, lane);
    uint16_t *rounded = tile->rounded_rows + lane * p->dim;
    if (p->dtype == ICECORE_BFLOAT16)
        memcpy(rounded, ice_address(&p->query, p->dtype, row.batch, row.head, row.query),
               (size_t)p->dim * sizeof *rounded);
    else tile->kernels->from_float32(ICECORE_BFLOAT16, tile->query_rows + lane * p->dim, rounded, p->dim);
}

/* Rows that lie apart: all of them are on their way from memory before the first is read. */
static void prefetch_queries(const ice_tile *tile) {
    const icecore_attention *p = tile->problem;
    for (int lane = 0; lane < tile->lanes; lane++) {
        const ice_row row = ice_tile_row(tile, lane);
        const char *query = ice_address(&p->query, p->dtype, row.batch, row.head, row.query);
        ice_prefetch(query, query + (size_t)p->dim * ice_element_size(p->dtype));
    }
}

/* Before the first key, but for a sink's logit: a key without a value. */
static ice_state start(const ice_tile *tile, int lane, int64_t head) {
    const icecore_attention *p = tile->problem;
    ice_state state = ice_state_start(tile->state_accumulators + lane * p->value_dim, p->value_dim);
    if (!p->sink_logits || p->sink_logits[head] == -INFINITY) return state;
    state.maximum = p->sink_logits[head] * (float)ICE_LOG2_E;
    state.sum = 1.0f;
    return state;
}

void ice_tile_begin(ice_tile *tile, const icecore_attention *p, const ice_kernels *kernels, int64_t batch,
                    int64_t key_head, int64_t first_row, int64_t rows, void *scratch) {
    const int lanes = (int)ice_min(rows, ICE_PANEL);
    ice_arena arena = {scratch, 0};
    lay_out(tile, p, &arena);
    tile->problem = p;
    tile->kernels = kernels;
    tile->batch = batch;
    tile->key_head = key_head;
    tile->first_row = first_row;
    tile->lanes = lanes;
    tile->scale = (float)(p->scale * ICE_LOG2_E);
    tile->cap = (float)(p->softcap * ICE_LOG2_E);
    tile->has_panel = 0;
    tile->packed = (ice_packed_head){NULL, NULL, NULL};
    tile->query_thirds = NULL;
    tile->pending.count = tile->pending.pieces = 0;
    if (ice_panel_dtype(p, kernels) != ICECORE_BFLOAT16) tile->query_pairs = tile->rounded_rows = NULL;
    prefetch_queries(tile);
    for (int lane = 0; lane < lanes; lane++) {
        const ice_row row = ice_tile_row(tile, lane);
        tile->visible[lane] = ice_visible_keys(p, batch, row.query);
        tile->state[lane] = start(tile, lane, row.head);
        tile->position[lane] = p->keys - p->queries + row.query;
        if (p->alibi_slopes) tile->alibi.slope[lane] = (float)(p->alibi_slopes[row.head] * ICE_LOG2_E);
        ice_load_query(p, kernels, row, 1.0f, tile->query_rows + lane * p->dim);
    }
    for (int lane = lanes; p->alibi_slopes && lane < ICE_PANEL; lane++) { /* spare lanes are as the last row */
        tile->position[lane] = tile->position[lanes - 1];
        tile->alibi.slope[lane] = tile->alibi.slope[lanes - 1];
    }
    /* rounded before scaling: a bfloat16 query goes in as it is */
    for (int lane = 0; lane < lanes && tile->rounded_rows; lane++) round_query(tile, lane);
    for (int64_t i = 0; i < p->dim * lanes; i++) tile->query_rows[i] *= tile->scale;
}

void ice_tile_place(ice_tile *tile, const int64_t *position) {
    for (int lane = 0; lane < tile->lanes; lane++) {
        const ice_row row = ice_tile_row(tile, lane);
        tile->visible[lane] = ice_visible_at(tile->problem, row.batch, row.query, position[row.query]);
    }
}

const ice_alibi *ice_tile_alibi_from(ice_tile *tile, int64_t first) {
    if (!tile->problem->alibi_slopes) return NULL;
    const int lanes = tile->has_panel ? ICE_PANEL : tile->lanes; /* panel kernels read whole vectors */
    for (int lane = 0; lane < lanes; lane++) tile->alibi.offset[lane] = (float)(first - tile->position[lane]);
    return &tile->alibi;
}

void ice_tile_alibi_row(const ice_tile *tile, int lane, int64_t first, int64_t count, float *scores) {
    if (tile->problem->alibi_slopes)
        tile->kernels->row_alibi(scores, count, tile->alibi.slope[lane], (float)(first - tile->position[lane]));
}

ice_visible ice_tile_visible(const ice_tile *tile) {
    ice_visible all = {0};
    for (int lane = 0; lane < tile->lanes; lane++) {
        const ice_visible *row = &tile->visible[lane];
        all.sink_end = ice_max(all.sink_end, row->sink_end);
        if (row->begin >= row->end) continue;
        if (all.begin == all.end || row->begin < all.begin) all.begin = row->begin;
        all.end = ice_max(all.end, row->end);
    }
    all.begin = ice_max(all.begin, all.sink_end);
    all.end = ice_max(all.end, all.begin);
    return all;
}

void ice_tile_begin_panel(ice_tile *tile) {
    const icecore_attention *p = tile->problem;
    const ice_kernels *kernels = tile->kernels;
    const float *query[ICE_PANEL], *rows = tile->query_rows;
    if (tile->has_panel) return;
    tile->has_panel = 1;
    if (tile->query_pairs) { /* so that what is multiplied in float32 agrees; `keys` is free yet */
        kernels->to_float32(ICECORE_BFLOAT16, tile->rounded_rows, tile->keys, p->dim * tile->lanes);
        rows = tile->keys;
    }
    for (int lane = tile->lanes; lane < ICE_PANEL; lane++) tile->visible[lane] = tile->visible[tile->lanes - 1];
    for (int lane = 0; lane < ICE_PANEL; lane++)
        query[lane] = rows + (lane < tile->lanes ? lane : tile->lanes - 1) * p->dim;
    kernels->to_panel(query, p->dim, tile->queries);
    if (tile->query_pairs) {
        kernels->bf16->pack_queries(tile->queries, p->dim, tile->query_pairs);
        for (int64_t i = 0; i < p->dim * ICE_PANEL; i++) tile->queries[i] *= tile->scale;
    }
    if (tile->packed.beyond && kernels->thirds->pack_queries(tile->queries, p->dim, tile->thirds_room))
        tile->query_thirds = tile->thirds_room;
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        tile->maximum[lane] = -INFINITY;
        tile->sum[lane] = 0.0f;
    }
    memset(tile->accumulator, 0, (size_t)(p->value_dim * ICE_PANEL) * sizeof(float));
}

void ice_tile_move_to_panel(ice_tile *tile) {
    const int64_t value_dim = tile->problem->value_dim;
    float column[ICECORE_MAX_DIM];
    ice_tile_begin_panel(tile);
    for (int lane = 0; lane < tile->lanes; lane++) {
        ice_state *state = &tile->state[lane];
        if (state->sum == 0.0f) continue;
        for (int64_t i = 0; i < value_dim; i++) column[i] = tile->accumulator[i * ICE_PANEL + lane];
        const ice_state summed = {tile->maximum[lane], tile->sum[lane], column};
        ice_state_merge(state, value_dim, &summed);
        tile->maximum[lane] = state->maximum;
        tile->sum[lane] = state->sum;
        for (int64_t i = 0; i < value_dim; i++) tile->accumulator[i * ICE_PANEL + lane] = state->accumulator[i];
        *state = ice_state_start(state->accumulator, value_dim);
    }
}

void ice_add_centre(const ice_tile *tile, int lane, const float *centre, float *lse) {
    const int64_t dim = tile->problem->dim;
    float score;
    if (*lse == -INFINITY) return; /* it sees no key, whatever its query is */
    tile->kernels->row_scores(tile->query_rows + lane * dim, dim, ICECORE_FLOAT32, centre, dim, 1, &score);
    *lse += (float)(ICE_LN_2 * (double)score);
}
