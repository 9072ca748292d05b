#include "attend/key_block.h"

#include <math.h>
#include <string.h>

void ice_key_block_begin(ice_key_block *block, ice_tile *panel) {
    block->panel = panel;
    block->count = 0;
    block->pieces = 0;
}

static icecore_dtype dtype_of(const ice_tile *panel) { return panel->query_pairs ? ICECORE_BFLOAT16 : ICECORE_FLOAT32; }

static const void *row_behind(const void *rows, icecore_dtype dtype, int64_t count, int64_t width) {
    return (const char *)rows + (size_t)count * ice_row_bytes(dtype, width);
}

/* Copies rows, plus `base` where it is not NULL, into a buffer, behind `filled` ones. */
static void copy_rows(const ice_tile *panel, icecore_dtype dtype, const void *rows, const float *base, int64_t count,
                      int64_t width, float *buffer, int64_t filled) {
    const icecore_dtype wanted = dtype_of(panel);
    const size_t bytes = ice_row_bytes(wanted, width);
    char *target = (char *)buffer + (size_t)filled * bytes;
    float widened[ICECORE_MAX_DIM];
    const int as_is = dtype == wanted && !base;
    if (as_is) memcpy(target, rows, (size_t)count * bytes);
    for (int64_t j = 0; !as_is && j < count; j++) {
        panel->kernels->to_float32(dtype, row_behind(rows, dtype, j, width), widened, width);
        for (int64_t t = 0; base && t < width; t++) widened[t] += base[t];
        panel->kernels->from_float32(wanted, widened, target + (size_t)j * bytes, width);
    }
}

/* Puts at most as many keys into the block as it has room for. */
static void put(ice_key_block *block, icecore_dtype dtype, const void *keys, const float *base, const void *values,
                int64_t count, uint64_t lanes) {
    ice_tile *panel = block->panel;
    const icecore_dtype wanted = dtype_of(panel);
    const int64_t dim = panel->problem->dim, value_dim = panel->problem->value_dim;
    const int as_they_lie = dtype == wanted && !base &&
                            (!block->count || (row_behind(block->keys, wanted, block->count, dim) == keys &&
                                               row_behind(block->values, wanted, block->count, value_dim) == values));
    if (as_they_lie && !block->count) {
        block->keys = keys;
        block->values = values;
    } else if (!as_they_lie) {
        if (block->count && block->keys != panel->keys) {
            copy_rows(panel, wanted, block->keys, NULL, block->count, dim, panel->keys, 0);
            copy_rows(panel, wanted, block->values, NULL, block->count, value_dim, panel->values, 0);
        }
        copy_rows(panel, dtype, keys, base, count, dim, panel->keys, block->count);
        copy_rows(panel, dtype, values, NULL, count, value_dim, panel->values, block->count);
        block->keys = panel->keys;
        block->values = panel->values;
    }
    if (!block->pieces || block->piece_lanes[block->pieces - 1] != lanes) {
        block->piece_lanes[block->pieces] = lanes;
        block->piece_count[block->pieces++] = 0;
    }
    block->piece_count[block->pieces - 1] += count;
    block->count += count;
}

void ice_key_block_add(ice_key_block *block, icecore_dtype dtype, const void *keys, const float *base,
                       const void *values, int64_t count, uint64_t lanes) {
    const int64_t dim = block->panel->problem->dim, value_dim = block->panel->problem->value_dim;
    while (count > 0) {
        int64_t room = ICE_KEY_BLOCK - block->count, now = count < room ? count : room;
        put(block, dtype, keys, base, values, now, lanes);
        if (block->count == ICE_KEY_BLOCK) ice_key_block_flush(block);
        keys = row_behind(keys, dtype, now, dim);
        values = row_behind(values, dtype, now, value_dim);
        count -= now;
    }
}

/* What hides each piece's keys from the rows that are left out of it; NULL: nothing. */
static const float *find_bias(const ice_key_block *block) {
    const uint64_t used = ((uint64_t)1 << block->panel->lanes) - 1;
    float hiding[ICE_PANEL], *bias = block->panel->bias;
    int any = 0;
    for (int i = 0; i < block->pieces; i++) {
        any |= block->piece_lanes[i] != used;
        ice_tile_hiding(block->piece_lanes[i], hiding);
        for (int64_t j = 0; j < block->piece_count[i]; j++, bias += ICE_PANEL) memcpy(bias, hiding, sizeof hiding);
    }
    return any ? block->panel->bias : NULL;
}

void ice_key_block_flush(ice_key_block *block) {
    if (block->count) ice_tile_attend_rows(block->panel, block->keys, block->values, block->count, find_bias(block));
    ice_key_block_begin(block, block->panel);
}
