/* Vertical and slash lines: MInference (arXiv 2407.02490), for causal prefill.
 *
 * The last 64 queries of a head attend exactly, and their weights vote: for columns (keys) and for diagonals (distances
 * from a query to a key).  All rows attend to the columns with the most votes, and a block of rows to the diagonals
 * with the most, widened to squares: a diagonal passes by a block's rows in as many keys as the block has rows, and
 * each of its rows attends to all of these that it sees.  The first columns and diagonals are always among them.  A
 * block is a tile, so that one choice serves a whole panel: 48 rows in the place of 64. */
#include "base/order.h"
#include "select/selector.h"

#define VOTERS 64
#define FIRST_COLUMNS 30
#define FIRST_DIAGONALS 100

typedef struct {
    int64_t vertical, slash;
} line_counts;

typedef struct {
    int64_t columns, diagonals;
    int32_t *column, *diagonal; /* ascending */
} lines;

static void lay_out_lines(const ice_selector_call *call, void *own, ice_arena *a) {
    const line_counts *wanted = call->settings;
    lines *l = own;
    l->columns = ice_min(wanted->vertical, call->problem->keys);
    l->diagonals = ice_min(wanted->slash, call->problem->keys);
    l->column = ice_arena_take(a, l->columns, sizeof(int32_t));
    l->diagonal = ice_arena_take(a, l->diagonals, sizeof(int32_t));
}

typedef struct {
    float *score, *column, *diagonal; /* keys each; the votes are zero at first */
    uint64_t *order, *spare;
} ballot;

static size_t lay_out_ballot(const ice_selector_call *call, void *memory, ballot *b) {
    const int64_t keys = call->problem->keys;
    ice_arena a = {memory, 0};
    b->score = ice_arena_take(&a, keys, sizeof(float));
    b->column = ice_arena_take(&a, keys, sizeof(float));
    b->diagonal = ice_arena_take(&a, keys, sizeof(float));
    b->order = ice_arena_take(&a, keys, sizeof(uint64_t));
    b->spare = ice_arena_take(&a, keys, sizeof(uint64_t));
    return a.used;
}

/* A query whose weights are not numbers has no vote, nor one that sees no key. */
static void vote(const ice_selector_call *call, int64_t head, int64_t query, ballot *b) {
    const icecore_attention *p = call->problem;
    const int64_t count = ice_visible_keys(p, 0, query).end;
    float maximum = -INFINITY, sum = 0.0f, correction, own[ICECORE_MAX_DIM];
    ice_load_query(p, call->kernels, ice_row_at(p, head / p->key_heads, head % p->key_heads, query),
                   (float)(p->scale * ICE_LOG2_E), own);
    call->kernels->row_scores(own, p->dim, p->key_dtype, ice_key_at(p, head, 0), p->key.row_stride, count, b->score);
    if (p->softcap > 0.0f) call->kernels->softcap(b->score, 1, count, (float)(p->softcap * ICE_LOG2_E));
    call->kernels->row_softmax(b->score, count, &maximum, &sum, &correction);
    if (!(sum > 0.0f && sum < INFINITY)) return;
    for (int64_t j = 0; j < count; j++) {
        b->column[j] += b->score[j] / sum;
        b->diagonal[count - 1 - j] += b->score[j] / sum;
    }
}

/* The `wanted` lines with the most votes, and the first `always` in any case, ascending; the first among equals. */
static void elect(float *votes, int64_t count, int64_t always, int64_t wanted, ballot *b, int32_t *elected) {
    for (int64_t i = 0; i < always && i < count; i++) votes[i] = INFINITY;
    for (int64_t i = 0; i < count; i++) b->order[i] = (uint64_t)ice_ordered(votes[i]) << 32 | (uint32_t)~i;
    ice_select_largest(b->order, count, wanted);
    for (int64_t i = 0; i < wanted; i++) b->order[i] = (uint32_t)~b->order[i];
    ice_sort(b->order, b->spare, wanted);
    for (int64_t i = 0; i < wanted; i++) elected[i] = (int32_t)b->order[i];
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const icecore_attention *p = call->problem;
    const lines *l = digests;
    ballot b;
    const size_t bytes = lay_out_ballot(call, NULL, &b);
    void *memory = ice_alloc(1, bytes);
    if (!memory) return ICECORE_ERROR_MEMORY;
    lay_out_ballot(call, memory, &b);
    for (int64_t j = 0; j < p->keys; j++) b.column[j] = b.diagonal[j] = 0.0f;
    for (int64_t query = p->queries > VOTERS ? p->queries - VOTERS : 0; query < p->queries; query++)
        vote(call, head, query, &b);
    elect(b.column, p->keys, FIRST_COLUMNS, l->columns, &b, l->column);
    elect(b.diagonal, p->keys, FIRST_DIAGONALS, l->diagonals, &b, l->diagonal);
    ice_free(memory);
    return ICECORE_OK;
}

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    const line_counts *wanted = call->settings;
    int32_t **outside = own; /* columns outside of a tile's squares */
    *outside = ice_arena_take(a, ice_min(wanted->vertical, call->problem->keys), sizeof(int32_t));
}

static void attend_columns(ice_tile *tile, const int32_t *column, int64_t count) {
    const icecore_attention *p = tile->problem;
    const void *key[ICE_KEY_BLOCK], *value[ICE_KEY_BLOCK];
    for (int64_t first = 0; first < count; first += ICE_KEY_BLOCK) {
        const int64_t block = ice_min(count - first, ICE_KEY_BLOCK);
        for (int64_t i = 0; i < block; i++) {
            key[i] = ice_address(&p->key, p->key_dtype, tile->batch, tile->key_head, column[first + i]);
            value[i] = ice_address(&p->value, p->key_dtype, tile->batch, tile->key_head, column[first + i]);
        }
        ice_tile_attend_gathered(tile, key, value, block);
    }
}

/* Squares from the first key on, those that touch together; between them the columns, which all rows see: the last
 * square is that of the rows themselves. */
static void select_lines(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                         int64_t near_count[ICE_PANEL]) {
    const int64_t keys = call->problem->keys, position = keys - call->problem->queries + tile->first_row;
    int64_t place = 0, columns = 0, first = 0, end = 0;
    int32_t *outside = *(int32_t **)own;
    const lines *l = digests;
    for (int64_t i = l->diagonals - 1; i >= 0; i--) {
        const int64_t begin = position - l->diagonal[i], last = begin + ICE_PANEL;
        if (last <= 0) continue;
        if (begin > end) {
            ice_attend_counted(tile, first, end, near_count);
            for (; place < l->columns && l->column[place] < begin; place++)
                if (l->column[place] >= end) outside[columns++] = l->column[place];
            first = begin;
        }
        end = ice_min(last, keys);
    }
    ice_attend_counted(tile, first, end, near_count);
    attend_columns(tile, outside, columns);
    for (int lane = 0; lane < tile->lanes; lane++) near_count[lane] += columns;
}

static const ice_selector minference = {.digests = {sizeof(lines), lay_out_lines},
                                        .space = {sizeof(int32_t *), lay_out},
                                        .digest = digest,
                                        .select = select_lines};

icecore_status icecore_attend_minference(const icecore_attention *problem, int64_t vertical, int64_t slash,
                                         int32_t *near_count) {
    const line_counts wanted = {vertical, slash};
    const ice_selector_call call = {.problem = problem, .near_keys = 1, .settings = &wanted};
    if (vertical < 1 || slash < 1 || !problem->causal) return ICECORE_ERROR_VALUE;
    return ice_attend_selected_by_heads(&call, &minference, near_count);
}
