/* Blocks of keys by the scores of mean queries with mean keys: MInference's block-sparse pattern (arXiv 2407.02490).
 *
 * The rows of a tile attend together to the blocks of 64 keys whose means have the largest scores with the mean of the
 * tile's queries, until these hold near_keys; and to the keys behind those blocks that all of them see whole. */
#include "select/kept.h"
#include "select/selector.h"

#define BLOCK 64

static void lay_out_means(const ice_selector_call *call, void *own, ice_arena *a) {
    float **mean = own; /* of each block */
    *mean = ice_arena_take(a, call->problem->keys / BLOCK * call->problem->dim, sizeof(float));
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const icecore_attention *p = call->problem;
    float *mean = *(float **)digests, key[ICECORE_MAX_DIM];
    for (int64_t j = 0; j < p->keys / BLOCK * BLOCK; j++) {
        ice_read_key(call, head, j, key);
        for (int64_t t = 0; t < p->dim; t++) mean[j / BLOCK * p->dim + t] += key[t] / BLOCK;
    }
    return ICECORE_OK;
}

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    ice_kept *blocks = own;
    blocks->score = ice_arena_take(a, call->problem->keys / BLOCK, sizeof(float));
    blocks->number = ice_arena_take(a, call->problem->keys / BLOCK, sizeof(int32_t));
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

static void select_blocks(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                          int64_t near_count[ICE_PANEL]) {
    float *const *means = digests;
    ice_kept *blocks = own;
    blocks->count = tile->visible[0].end / BLOCK; /* the first row sees least */
    const int64_t behind = blocks->count * BLOCK;
    score_blocks(tile, *means, blocks);
    ice_kept_reduce(call->kernels, blocks, (call->near_keys - 1) / BLOCK + 1);
    for (int64_t i = 0, next; i < blocks->count; i = next) { /* neighbours together */
        for (next = i + 1; next < blocks->count && blocks->number[next] == blocks->number[next - 1] + 1;) next++;
        ice_attend_counted(tile, (int64_t)blocks->number[i] * BLOCK, ((int64_t)blocks->number[next - 1] + 1) * BLOCK,
                           near_count);
    }
    ice_attend_counted(tile, behind, ice_tile_visible(tile).end, near_count);
}

static const ice_selector block_sparse = {.digests = {sizeof(float *), lay_out_means},
                                          .space = {sizeof(ice_kept), lay_out},
                                          .digest = digest,
                                          .select = select_blocks};

icecore_status icecore_attend_block_sparse(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) {
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys};
    return ice_attend_selected_by_heads(&call, &block_sparse, near_count);
}
