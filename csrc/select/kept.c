#include "select/kept.h"

static const void *row_at(const ice_tile *tile, const icecore_tensor *rows, int64_t key) {
    return ice_address(rows, tile->problem->key_dtype, tile->batch, tile->key_head, key);
}

static void score(const ice_tile *tile, int lane, ice_kept *kept) {
    const icecore_attention *p = tile->problem;
    const void *key[ICE_KEY_BLOCK];
    for (int64_t first = 0; first < kept->count; first += ICE_KEY_BLOCK) {
        const int64_t count = ice_min(kept->count - first, ICE_KEY_BLOCK);
        for (int64_t j = 0; j < count; j++) key[j] = row_at(tile, &p->key, kept->number[first + j]);
        tile->kernels->gathered_scores(tile->query_rows + lane * p->dim, p->dim, 0.0f, p->key_dtype, key, count,
                                       kept->score + first);
    }
}

void ice_kept_score(const ice_tile *tile, int lane, ice_kept *kept) {
    score(tile, lane, kept);
    for (int64_t i = 0; i < kept->count; i++)
        if (kept->score[i] != kept->score[i]) kept->score[i] = INFINITY;
}

float ice_kept_reduce(const ice_kernels *kernels, ice_kept *kept, int64_t wanted) {
    if (kept->count <= wanted) return -INFINITY;
    const float bound = kernels->keep_largest(kept->score, kept->number, kept->count, wanted);
    kept->count = wanted;
    return bound;
}

/* Their scores are known: each is a mean that stands for itself. */
void ice_kept_attend(ice_tile *tile, int lane, ice_kept *kept, const float *bias) {
    const void *value[ICE_KEY_BLOCK];
    if (tile->cap > 0.0f) { /* inf and NaN differ then */
        score(tile, lane, kept);
        ice_tile_cap_row(tile, kept->score, kept->count);
    }
    for (int64_t i = 0; bias && i < kept->count; i++) kept->score[i] += bias[i];
    for (int64_t first = 0; first < kept->count; first += ICE_KEY_BLOCK) {
        const int64_t count = ice_min(kept->count - first, ICE_KEY_BLOCK);
        for (int64_t j = 0; j < count; j++) value[j] = row_at(tile, &tile->problem->value, kept->number[first + j]);
        ice_tile_add_gathered_means(tile, lane, kept->score + first, value, count);
    }
}
