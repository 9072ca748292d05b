#include "attend/run.h"

#include "attend/finite.h"

/* A run that so many rows of a tile open goes through the panel kernels, with the others hidden; else by the row
 * kernels.  This is where rows are multiplied as float32 (with AVX2 16 is 1 to 2 % slower, 32 at 8k too); kernels for
 * bfloat16 have a number of their own. */
#define SHARED_LANES 24

static int is_few(const ice_tile *tile) { return tile->lanes <= ICE_FEW_ROWS && !tile->packed.values; }

int ice_tile_shared_lanes(const ice_tile *tile, icecore_dtype dtype) {
    return tile->query_pairs && dtype == ICECORE_BFLOAT16 ? tile->kernels->bf16->panel_lanes : SHARED_LANES;
}

/* Whether a weight of 0 takes a run away from the rows that do not see it. */
static int can_be_hidden(const ice_tile *tile, const ice_run *run) {
    const icecore_attention *p = tile->problem;
    const ice_numbers keys = {run->dtype, run->keys, run->key_stride, run->count, p->dim},
                      values = {run->dtype, run->values, run->value_stride, run->count, p->value_dim};
    return !run->unchecked || (ice_all_finite(&keys) && ice_all_finite(&values));
}

void ice_tile_attend(ice_tile *tile, const ice_run *run) {
    const icecore_attention *p = tile->problem;
    const int contiguous = run->key_stride == ice_row_stride(run->dtype, p->dim) &&
                           run->value_stride == ice_row_stride(run->dtype, p->value_dim);
    if (run->bias || !contiguous || __builtin_popcountll(run->lanes) < ice_tile_shared_lanes(tile, run->dtype) ||
        (run->lanes != ice_tile_lanes(tile) && !can_be_hidden(tile, run)))
        ice_rows_attend(tile, run);
    else ice_key_block_add(tile, run);
}

/* Whoever sums by panel first sums the keys of short runs that wait. */
static void begin_panel(ice_tile *tile) {
    ice_tile_begin_panel(tile);
    ice_tile_flush(tile);
}

void ice_tile_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end) {
    if (is_few(tile)) {
        ice_rows_attend_keys(tile, source, first, end);
    } else {
        begin_panel(tile);
        ice_panel_attend_keys(tile, source, first, end);
    }
}

void ice_tile_attend_gathered(ice_tile *tile, const void *const *keys, const void *const *values, int64_t count) {
    if (is_few(tile)) {
        ice_rows_attend_gathered(tile, ice_tile_lanes(tile), keys, values, count);
    } else {
        begin_panel(tile);
        ice_panel_attend_gathered(tile, keys, values, count);
    }
}

void ice_tile_add_means(ice_tile *tile, float *scores, int64_t count, icecore_dtype dtype, const void *values) {
    begin_panel(tile);
    values = ice_panel_rows(tile, dtype, values, count, tile->problem->value_dim, tile->values);
    ice_panel_attend_rows(tile, NULL, values, count, scores);
}

void ice_tile_finish(ice_tile *tile) {
    _Static_assert(ICE_PANEL <= ICE_KEY_BLOCK, "a block of values leaves room for the rows");
    const int64_t value_dim = tile->problem->value_dim;
    if (!tile->has_panel) return;
    ice_tile_flush(tile);
    tile->kernels->from_panel(tile->accumulator, value_dim, tile->values);
    for (int lane = 0; lane < tile->lanes; lane++) {
        const ice_state summed = {tile->maximum[lane], tile->sum[lane], tile->values + lane * value_dim};
        ice_state_merge(&tile->state[lane], value_dim, &summed);
    }
}

void ice_tile_write(ice_tile *tile) {
    ice_tile_finish(tile);
    for (int lane = 0; lane < tile->lanes; lane++)
        ice_state_write(&tile->state[lane], tile->problem, tile->kernels, ice_tile_row(tile, lane));
}
