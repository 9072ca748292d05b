/* Exact attention: (batch, key head, panel of rows, range of keys) tasks.
 *
 * With many rows a task is a panel.  With at most SINGLE_ROWS rows a panel's lanes would stand empty and reading keys
 * and values is all the work: then a task goes row by row through one range of keys, and the key range is split so that
 * there are tasks to share; the parts are merged in order.  The split depends on the shapes alone, so results do not
 * depend on the threads. */
#include <string.h>

#include "attend/packed_values.h"
#include "attend/tile.h"
#include "attend/rows.h"
#include "base/memory.h"
#include "base/parallel.h"

/* With at most this many rows on a key head the row kernels run: decode steps of the usual head groups. */
#define SINGLE_ROWS 8
/* Tasks wanted from a short query side, and the least keys worth a task. */
#define WANTED_TASKS 32
#define LEAST_KEYS 2048
/* Values are packed once for all panels of a head, for as many heads at a time as take this many bytes. */
#define MOST_PACKED_BYTES ((int64_t)64 << 20)

typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    int64_t panels;            /* per key head */
    int64_t first_head, heads; /* batch x key heads in hand */
    uint16_t *packed;          /* the values of these heads, packed; NULL: each panel packs its own */
    int64_t splits;            /* of the keys */
    float *partial;            /* splits > 1: for each split and row: maximum, sum, accumulator */
} exact_call;

/* The part of [begin, end) that split `s` of `splits` takes; boundaries depend on the number of keys alone. */
static void split_range(int64_t keys, int64_t splits, int64_t s, int64_t *begin, int64_t *end) {
    int64_t size = (keys + splits - 1) / splits, low = s * size, high = low + size;
    if (*begin < low) *begin = low;
    if (*end > high) *end = high;
}

static float *partial_row(const exact_call *call, int64_t split, int64_t head, int64_t row) {
    const icecore_attention *p = call->problem;
    int64_t heads = p->batch * p->key_heads, rows = ice_query_rows(p);
    return call->partial + ((split * heads + head) * rows + row) * (p->value_dim + 2);
}

static void panel_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const exact_call *call = context;
    const icecore_attention *p = call->problem;
    int64_t number = index % call->heads, head = call->first_head + number;
    int64_t tile = call->panels - 1 - index / call->heads; /* causal: the last rows see most, so they go first */
    int64_t first_row = tile * ICE_PANEL, rest = ice_query_rows(p) - first_row;
    ice_tile panel;
    ice_tile_begin(&panel, p, call->kernels, head / p->key_heads, head % p->key_heads, first_row,
                   rest < ICE_PANEL ? (int)rest : ICE_PANEL, scratch);
    if (call->packed) panel.packed = call->packed + number * ice_packed_numbers(p);
    ice_visible visible = ice_tile_visible(&panel);
    ice_tile_attend(&panel, 0, visible.sink_end);
    ice_tile_attend(&panel, visible.begin, visible.end);
    float *accumulator = ice_tile_rows(&panel);
    for (int lane = 0; lane < panel.lanes; lane++)
        ice_write_row(p, call->kernels, ice_row_at(p, panel.batch, panel.key_head, first_row + lane),
                      panel.maximum[lane], panel.sum[lane], accumulator + lane * p->value_dim);
}

static icecore_status attend_by_panels(exact_call *call) {
    const icecore_attention *p = call->problem;
    const int64_t heads = p->batch * p->key_heads;
    icecore_status status = ICECORE_OK;
    call->panels = (ice_query_rows(p) + ICE_PANEL - 1) / ICE_PANEL;
    call->heads = heads;
    if (call->panels > 1 && p->keys > 0 && ice_tile_is_bf16(p, call->kernels)) {
        const int64_t most = MOST_PACKED_BYTES / (ice_packed_numbers(p) * (int64_t)sizeof *call->packed);
        if (most < heads) call->heads = most < 1 ? 1 : most;
        call->packed = ice_alloc(call->heads * ice_packed_numbers(p), sizeof *call->packed);
        if (!call->packed) return ICECORE_ERROR_MEMORY;
    }
    for (; status == ICECORE_OK && call->first_head < heads; call->first_head += call->heads) {
        if (call->heads > heads - call->first_head) call->heads = heads - call->first_head;
        if (call->packed) status = ice_pack_heads(p, call->kernels, call->first_head, call->heads, call->packed);
        if (status == ICECORE_OK)
            status = ice_parallel_for(call->heads * call->panels, p->threads, ice_tile_bytes(p), panel_task, call);
    }
    ice_free(call->packed);
    return status;
}

static void single_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const exact_call *call = context;
    const icecore_attention *p = call->problem;
    int64_t heads = p->batch * p->key_heads, head = index % heads, split = index / heads;
    int64_t batch = head / p->key_heads, key_head = head % p->key_heads, rows = ice_query_rows(p);
    /* the scratch holds each row's query and accumulator, and a block of values; rows advance together, so that keys
     * are read from memory once */
    float *query = scratch, *accumulator = query + SINGLE_ROWS * ICECORE_MAX_DIM;
    float *cleaned_values = accumulator + SINGLE_ROWS * ICECORE_MAX_DIM;
    ice_state state[SINGLE_ROWS];
    int64_t begin[SINGLE_ROWS][2], end[SINGLE_ROWS][2];
    memset(accumulator, 0, SINGLE_ROWS * ICECORE_MAX_DIM * sizeof(float));
    int64_t first = p->keys, last = 0;
    for (int64_t r = 0; r < rows; r++) {
        ice_row row = ice_row_at(p, batch, key_head, r);
        ice_load_query(p, call->kernels, row, (float)(p->scale * ICE_LOG2_E), query + r * ICECORE_MAX_DIM);
        state[r] = (ice_state){-INFINITY, 0.0f, accumulator + r * ICECORE_MAX_DIM};
        ice_visible visible = ice_visible_keys(p, row.query);
        begin[r][0] = 0, end[r][0] = visible.sink_end;
        begin[r][1] = visible.begin, end[r][1] = visible.end;
        for (int part = 0; part < 2; part++) {
            split_range(p->keys, call->splits, split, &begin[r][part], &end[r][part]);
            if (begin[r][part] >= end[r][part]) continue;
            if (begin[r][part] < first) first = begin[r][part];
            if (end[r][part] > last) last = end[r][part];
        }
    }
    for (int64_t block = first; block < last; block += ICE_KEY_BLOCK)
        for (int64_t r = 0; r < rows; r++)
            for (int part = 0; part < 2; part++) {
                int64_t low = begin[r][part] > block ? begin[r][part] : block;
                int64_t high = end[r][part] < block + ICE_KEY_BLOCK ? end[r][part] : block + ICE_KEY_BLOCK;
                if (low < high)
                    ice_row_attend(&state[r], p, call->kernels, ice_row_at(p, batch, key_head, r), key_head,
                                   query + r * ICECORE_MAX_DIM, low, high, cleaned_values);
            }
    for (int64_t r = 0; r < rows; r++) {
        if (call->splits == 1) {
            ice_write_row(p, call->kernels, ice_row_at(p, batch, key_head, r), state[r].maximum, state[r].sum,
                          state[r].accumulator);
            continue;
        }
        float *partial = partial_row(call, split, head, r);
        partial[0] = state[r].maximum;
        partial[1] = state[r].sum;
        memcpy(partial + 2, state[r].accumulator, (size_t)p->value_dim * sizeof(float));
    }
}

static void merge_splits(const exact_call *call) {
    const icecore_attention *p = call->problem;
    for (int64_t head = 0; head < p->batch * p->key_heads; head++)
        for (int64_t r = 0; r < ice_query_rows(p); r++) {
            float *first = partial_row(call, 0, head, r);
            ice_state state = {first[0], first[1], first + 2};
            for (int64_t split = 1; split < call->splits; split++) {
                const float *other = partial_row(call, split, head, r);
                ice_state_merge(&state, p->value_dim, other[0], other[1], other + 2);
            }
            ice_write_row(p, call->kernels, ice_row_at(p, head / p->key_heads, head % p->key_heads, r), state.maximum,
                          state.sum, state.accumulator);
        }
}

icecore_status icecore_attend_exact(const icecore_attention *problem) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    if (ice_is_empty(problem)) return ICECORE_OK;
    int64_t heads = problem->batch * problem->key_heads, rows = ice_query_rows(problem);
    exact_call call = {.problem = problem, .kernels = ice_active_kernels(), .splits = 1};
    if (rows > SINGLE_ROWS) return attend_by_panels(&call);
    int64_t by_tasks = (WANTED_TASKS + heads - 1) / heads, by_keys = problem->keys / LEAST_KEYS;
    call.splits = by_tasks < by_keys ? by_tasks : by_keys;
    if (call.splits < 1) call.splits = 1;
    if (call.splits > 1) {
        call.partial = ice_alloc(call.splits * heads * rows * (problem->value_dim + 2), sizeof(float));
        if (!call.partial) return ICECORE_ERROR_MEMORY;
    }
    size_t scratch = (size_t)(2 * SINGLE_ROWS * ICECORE_MAX_DIM + ICE_KEY_BLOCK * problem->value_dim) * sizeof(float);
    status = ice_parallel_for(heads * call.splits, problem->threads, scratch, single_task, &call);
    if (status == ICECORE_OK && call.splits > 1) merge_splits(&call);
    ice_free(call.partial);
    return status;
}
