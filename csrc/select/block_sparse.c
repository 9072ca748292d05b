/* Blocks of keys by the scores of mean queries with mean keys: MInference's block-sparse pattern (arXiv 2407.02490).
 *
 * The rows of a tile attend together to the blocks of 64 keys whose means have the largest scores with the mean of the
 * tile's queries, until these hold near_keys; and to the keys behind those blocks that all of them see whole. */
#include "select/kept.h"
#include "select/selector.h"

#define BLOCK 64

static size_t digest_bytes(const ice_selector_call *call) {
    return (size_t)(call->problem->keys / BLOCK * call->problem->dim) * sizeof(float);
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const icecore_attention *p = call->problem;
    float *mean = digests, key[ICECORE_MAX_DIM];
    for (int64_t j = 0; j < p->keys / BLOCK * BLOCK; j++) {
        call->kernels->to_float32(p->key_dtype, ice_key_at(p, head, j), key, p->dim);
        for (int64_t t = 0; t < p->dim; t++) mean[j / BLOCK * p->dim + t] += key[t] / BLOCK;
    }
    return ICECORE_OK;
}

static void lay_out(const ice_selector_call *call, void *scratch, ice_kept *blocks, size_t *bytes) {
    const int64_t count = call->problem->keys / BLOCK;
    ice_arena a = {scratch, 0};
    blocks->score = ice_arena_take(&a, count, sizeof(float));
    blocks->number = ice_arena_take(&a, count, sizeof(int32_t));
    *bytes = a.used;
}

static size_t scratch_bytes(const ice_selector_call *call) {
    ice_kept none;
    size_t bytes;
    lay_out(call, NULL, &none, &bytes);
    return bytes;
}

/* A NaN counts as infinite. */
static void score_blocks(const ice_tile *tile, const float *means, ice_kept *blocks) {
    const int64_t dim = tile->problem->dim;
    float query[ICECORE_MAX_DIM] = {0};
    for (int lane = 0; lane < tile->lanes; lane++)
        for (int64_t t = 0; t < dim; t++) query[t] += tile->query_rows[lane * dim + t] / (float)tile->lanes;
    tile->kernels->row_scores(query, dim, ICECORE_FLOAT32, means, dim, blocks->count, blocks->score);
    for (int64_t i = 0; i < blocks->count; i++) {
        if (blocks->score[i] != blocks->score[i]) blocks->score[i] = INFINITY;
        blocks->number[i] = (int32_t)i;
    }
}

static void select_blocks(const ice_selector_call *call, ice_tile *tile, const void *digests, void *scratch,
                          int64_t near_count[ICE_PANEL]) {
    ice_kept blocks;
    size_t bytes;
    lay_out(call, scratch, &blocks, &bytes);
    blocks.count = tile->visible[0].end / BLOCK; /* the first row sees least */
    const int64_t behind = blocks.count * BLOCK;
    score_blocks(tile, digests, &blocks);
    ice_kept_reduce(call->kernels, &blocks, (call->near_keys - 1) / BLOCK + 1);
    for (int64_t i = 0, next; i < blocks.count; i = next) { /* neighbours together */
        for (next = i + 1; next < blocks.count && blocks.number[next] == blocks.number[next - 1] + 1;) next++;
        ice_attend_counted(tile, (int64_t)blocks.number[i] * BLOCK, ((int64_t)blocks.number[next - 1] + 1) * BLOCK,
                           near_count);
    }
    ice_attend_counted(tile, behind, ice_tile_visible(tile).end, near_count);
}

const ice_selector ice_block_sparse = {digest_bytes, scratch_bytes, digest, NULL, select_blocks};
