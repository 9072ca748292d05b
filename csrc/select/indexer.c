/* The keys of the largest scores of a lightning indexer (DeepSeek-V3.2): low-width heads of one query over one key for
 * each token, ReLU instead of a softmax, and a weight of each head and query.
 *
 * A query's heads lie in the lanes of panels, so that their weighted sum is one number for each key.  Scores of some
 * queries and all keys are found first, in tasks of some queries and some keys, which stay in cache meanwhile; then
 * each query keeps its largest. */
#include <string.h>

#include "attend/panel.h"
#include "base/memory.h"
#include "base/parallel.h"

/* Queries and keys in a task, and scores at once. */
#define TASK_QUERIES 16
#define TASK_KEYS 2048
#define MAX_SCORES ((int64_t)1 << 24)

typedef struct {
    const icecore_indexer *given;
    icecore_attention heads; /* a query's as the query heads of one key head */
    const ice_kernels *kernels;
    int64_t first, count; /* queries in hand, of batch x queries */
    int64_t lots, parts;  /* of these and of keys, in tasks */
    float *scores;        /* count x keys */
} indexer_call;

static int64_t visible_end(const indexer_call *call, int64_t row) {
    return ice_visible_keys(&call->heads, 0, row % call->given->queries).end;
}

/* The products of keys first .. first + count - 1 with a tile's heads. */
static void score_block(const ice_tile *tile, int64_t first, int64_t count) {
    const icecore_attention *p = tile->problem;
    const ice_kernels *kernels = tile->kernels;
    const void *keys = ice_address(&p->key, p->key_dtype, tile->batch, 0, first);
    if (tile->query_pairs) {
        kernels->bf16->scores(tile->query_pairs, p->dim, tile->lanes, tile->scale, keys, p->key.row_stride, count,
                              tile->scores);
        return;
    }
    int64_t stride;
    keys = ice_float_rows(tile, p, &p->key, p->dim, first, count, tile->keys, &stride);
    kernels->scores(tile->queries, p->dim, tile->lanes, keys, stride, count, tile->scores);
}

/* Adds what some heads of a query, up to ICE_PANEL from `member` on, come to for keys first .. end - 1. */
static void add_heads(const indexer_call *call, int64_t row, int64_t member, int64_t first, int64_t end,
                      void *scratch) {
    const icecore_indexer *x = call->given;
    const int64_t batch = row / x->queries, query = row % x->queries;
    const float *weights = x->weights + row * x->heads + member;
    float *scores = call->scores + (row - call->first) * x->keys;
    ice_tile tile;
    ice_tile_begin(&tile, &call->heads, call->kernels, batch, 0, query * x->heads + member, x->heads - member, scratch);
    ice_tile_begin_panel(&tile);
    for (int64_t block = first, count; block < end && !ice_interrupted(); block += count) {
        count = ice_min(end - block, ICE_KEY_BLOCK);
        score_block(&tile, block, count);
        call->kernels->relu_sum(tile.scores, count, tile.lanes, weights, scores + block);
    }
}

static void score_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const indexer_call *call = context;
    const int64_t keys = call->given->keys, first = index % call->parts * TASK_KEYS,
                  row = call->first + index / call->parts * TASK_QUERIES, end = call->first + call->count;
    for (int64_t i = row; i < row + TASK_QUERIES && i < end; i++) {
        const int64_t visible = visible_end(call, i), limit = ice_min(first + TASK_KEYS, keys),
                      last = ice_min(visible, limit);
        float *scores = call->scores + (i - call->first) * keys;
        for (int64_t j = first; j < last; j++) scores[j] = 0.0f;
        for (int64_t member = 0; first < last && member < call->given->heads; member += ICE_PANEL)
            add_heads(call, i, member, first, last, scratch);
    }
}

static void keep_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const indexer_call *call = context;
    const icecore_indexer *x = call->given;
    const int64_t row = call->first + index, end = visible_end(call, row), kept = ice_min(end, x->count);
    float *scores = call->scores + index * x->keys;
    int32_t *numbers = scratch, *indices = x->indices + row * x->count;
    for (int64_t j = 0; j < end; j++) {
        numbers[j] = (int32_t)j;
        if (scores[j] != scores[j]) scores[j] = INFINITY; /* a NaN is chosen */
    }
    if (end > x->count) call->kernels->keep_largest(scores, numbers, end, x->count);
    memcpy(indices, numbers, (size_t)kept * sizeof *indices);
    for (int64_t j = kept; j < x->count; j++) indices[j] = -1;
}

static icecore_status find_keys(indexer_call *call) {
    const icecore_indexer *x = call->given;
    const int64_t rows = x->batch * x->queries, at_once = MAX_SCORES / (x->keys + 1) + TASK_QUERIES;
    icecore_status status = ICECORE_OK;
    call->parts = (x->keys + TASK_KEYS - 1) / TASK_KEYS;
    call->scores = ice_alloc((ice_min(rows, at_once)) * x->keys + 1, sizeof *call->scores);
    if (!call->scores) return ICECORE_ERROR_MEMORY;
    for (call->first = 0; status == ICECORE_OK && call->first < rows; call->first += call->count) {
        call->count = ice_min(rows - call->first, at_once);
        call->lots = (call->count + TASK_QUERIES - 1) / TASK_QUERIES;
        status = ice_parallel_for(call->lots * call->parts, x->threads, ice_tile_bytes(&call->heads), score_task, call);
        if (status == ICECORE_OK)
            status = ice_parallel_for(call->count, x->threads, (size_t)x->keys * sizeof(int32_t), keep_task, call);
    }
    ice_free(call->scores);
    return status;
}

icecore_status icecore_indexer_top_k(const icecore_indexer *x) {
    indexer_call call = {
        .given = x,
        .heads = {.dtype = x->dtype,
                  .key_dtype = x->dtype,
                  .batch = x->batch,
                  .query_heads = x->heads,
                  .key_heads = 1,
                  .queries = x->queries,
                  .keys = x->keys,
                  .dim = x->dim,
                  .value_dim = 1,
                  .query = x->query,
                  .key = x->key,
                  .value = x->key,
                  .out = x->query,
                  .scale = (float)ICE_LN_2, /* so that what a panel multiplies is 1 */
                  .causal = x->causal,
                  .window_left = -1,
                  .window_right = -1},
        .kernels = ice_active_kernels(),
    };
    const icecore_status status = ice_check_problem(&call.heads);
    if (status != ICECORE_OK) return status;
    if (x->count < 1 || x->keys > INT32_MAX) return ICECORE_ERROR_VALUE;
    if (x->batch == 0 || x->queries == 0) return ICECORE_OK;
    if (!x->weights || !x->indices || x->heads < 1) return ICECORE_ERROR_VALUE;
    return find_keys(&call);
}
