/* Short runs for the panel kernels.
 *
 * A cell holds few keys, too few for the panel kernels' tiles; so the keys of several runs are put together, copied
 * side by side unless they lie so already. */
#include <string.h>

#include "attend/panel.h"

/* Copies rows, with their second halves and plus `base` where these are not NULL, into a buffer of `wanted`, behind
 * those that wait. */
static void copy_rows(const ice_tile *tile, icecore_dtype dtype, const void *rows, const uint16_t *second,
                      const float *base, int64_t count, int64_t width, float *buffer) {
    const icecore_dtype wanted = ice_panel_dtype(tile->problem, tile->kernels);
    const size_t bytes = ice_row_bytes(wanted, width);
    char *target = (char *)buffer + (size_t)tile->pending.count * bytes;
    float widened[ICECORE_MAX_DIM];
    const int as_is = dtype == wanted && !base;
    if (as_is) memcpy(target, rows, (size_t)count * bytes);
    for (int64_t j = 0; !as_is && j < count; j++) {
        const void *row = ice_row_of(dtype, rows, j, width);
        if (second) tile->kernels->join(row, second + j * width, widened, width);
        else tile->kernels->to_float32(dtype, row, widened, width);
        for (int64_t t = 0; base && t < width; t++) widened[t] += base[t];
        tile->kernels->from_float32(wanted, widened, target + (size_t)j * bytes, width);
    }
}

/* What waits where it lies goes into the tile's buffers. */
static void gather_waiting(ice_tile *tile) {
    ice_key_block *block = &tile->pending;
    const icecore_dtype wanted = ice_panel_dtype(tile->problem, tile->kernels);
    if (!block->count || block->keys == tile->keys) return;
    memcpy(tile->keys, block->keys, (size_t)block->count * ice_row_bytes(wanted, tile->problem->dim));
    memcpy(tile->values, block->values, (size_t)block->count * ice_row_bytes(wanted, tile->problem->value_dim));
}

/* Puts the first `count` rows of a run into the block, which has room for them. */
static void put(ice_tile *tile, const ice_run *run, int64_t count) {
    ice_key_block *block = &tile->pending;
    const icecore_dtype wanted = ice_panel_dtype(tile->problem, tile->kernels);
    const int64_t dim = tile->problem->dim, value_dim = tile->problem->value_dim;
    const int as_they_lie =
        run->dtype == wanted && !run->base &&
        (!block->count || (ice_row_of(wanted, block->keys, block->count, dim) == run->keys &&
                           ice_row_of(wanted, block->values, block->count, value_dim) == run->values));
    if (as_they_lie && !block->count) {
        block->keys = run->keys;
        block->values = run->values;
    } else if (!as_they_lie) {
        gather_waiting(tile);
        copy_rows(tile, run->dtype, run->keys, run->second_keys, run->base, count, dim, tile->keys);
        copy_rows(tile, run->dtype, run->values, run->second_values, NULL, count, value_dim, tile->values);
        block->keys = tile->keys;
        block->values = tile->values;
    }
    if (!block->pieces || block->piece_lanes[block->pieces - 1] != run->lanes) {
        block->piece_lanes[block->pieces] = run->lanes;
        block->piece_count[block->pieces++] = 0;
    }
    block->piece_count[block->pieces - 1] += count;
    block->count += count;
}

void ice_key_block_add(ice_tile *tile, const ice_run *run) {
    const int64_t dim = tile->problem->dim, value_dim = tile->problem->value_dim;
    ice_run rest = *run;
    ice_tile_begin_panel(tile);
    while (rest.count > 0) {
        const int64_t room = ICE_KEY_BLOCK - tile->pending.count, now = ice_min(rest.count, room);
        put(tile, &rest, now);
        if (tile->pending.count == ICE_KEY_BLOCK) ice_tile_flush(tile);
        rest.keys = ice_row_of(rest.dtype, rest.keys, now, dim);
        rest.values = ice_row_of(rest.dtype, rest.values, now, value_dim);
        if (rest.second_keys) {
            rest.second_keys += now * dim;
            rest.second_values += now * value_dim;
        }
        rest.count -= now;
    }
}

/* What hides each piece's keys from the lanes that are left out of it; NULL: nothing. */
static float *find_bias(const ice_tile *tile) {
    const ice_key_block *block = &tile->pending;
    float hiding[ICE_PANEL], *bias = tile->bias;
    int any = 0;
    for (int i = 0; i < block->pieces; i++) {
        any |= block->piece_lanes[i] != ice_tile_lanes(tile);
        ice_panel_hiding(block->piece_lanes[i], hiding);
        for (int64_t j = 0; j < block->piece_count[i]; j++, bias += ICE_PANEL) memcpy(bias, hiding, sizeof hiding);
    }
    return any ? tile->bias : NULL;
}

void ice_tile_flush(ice_tile *tile) {
    ice_key_block *block = &tile->pending;
    if (block->count) ice_panel_attend_rows(tile, block->keys, block->values, block->count, find_bias(tile));
    block->count = block->pieces = 0;
}
