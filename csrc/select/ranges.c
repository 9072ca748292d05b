/* Exact attention: all keys that a row may see.
 *
 * A task is a tile of rows.  Where there are so few tiles that there are not enough tasks to share, each tile's keys
 * are split as well, and the parts are merged in order.  The split depends on the shapes alone, so results do not
 * depend on the threads. */
#include "attend/packed_values.h"
#include "attend/run.h"
#include "base/parallel.h"

/* Tasks wanted where there are few tiles, and the least keys worth a task. */
#define WANTED_TASKS 32
#define MIN_KEYS 2048
/* Products that make a thread worth waking: on a machine of two, 13 us of one thread's work. */
#define MIN_PRODUCTS ((int64_t)1 << 18)
/* Values are packed once for all tiles of a head, for as many heads at a time as take this many bytes. */
#define MAX_PACKED_BYTES ((int64_t)64 << 20)

typedef struct {
    const icecore_attention *problem;
    icecore_attention without_sinks; /* the same but for its sink logits, which count in the first split alone */
    const ice_kernels *kernels;
    int64_t tiles;             /* per key head */
    int64_t first_head, heads; /* batch x key heads in hand */
    uint16_t *packed;          /* the values of these heads, packed; NULL: each tile packs its own */
    int64_t splits;            /* of the keys */
    ice_state *part;           /* splits > 1: of each split, head and row */
    float *accumulators;       /* of these */
} exact_call;

/* Attends to [begin, end) but for what other splits take; boundaries depend on the number of keys alone. */
static void attend_split(const exact_call *call, ice_tile *tile, int64_t split, int64_t begin, int64_t end) {
    const icecore_attention *p = call->problem;
    const int64_t blocks = (p->keys + ICE_KEY_BLOCK - 1) / ICE_KEY_BLOCK;
    const int64_t size = (blocks + call->splits - 1) / call->splits * ICE_KEY_BLOCK, low = split * size,
                  high = low + size;
    ice_tile_attend_keys(tile, p, ice_max(begin, low), ice_min(end, high));
}

static ice_state *part_of(const exact_call *call, int64_t split, int64_t head, int64_t row) {
    const int64_t heads = call->problem->batch * call->problem->key_heads;
    return &call->part[(split * heads + head) * ice_query_rows(call->problem) + row];
}

static void attend_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const exact_call *call = context;
    const icecore_attention *p = call->problem;
    const int64_t number = index % call->heads, head = call->first_head + number, rest = index / call->heads;
    const int64_t split = rest / call->tiles;
    /* causal: the last rows see most, so they go first */
    const int64_t first_row = (call->tiles - 1 - rest % call->tiles) * ICE_PANEL;
    ice_tile tile;
    ice_tile_begin(&tile, split ? &call->without_sinks : p, call->kernels, head / p->key_heads, head % p->key_heads,
                   first_row, ice_query_rows(p) - first_row, scratch);
    if (call->packed) tile.packed = call->packed + number * ice_packed_numbers(p);
    const ice_visible visible = ice_tile_visible(&tile);
    attend_split(call, &tile, split, 0, visible.sink_end);
    attend_split(call, &tile, split, visible.begin, visible.end);
    if (call->splits == 1) {
        ice_tile_write(&tile);
        return;
    }
    ice_tile_finish(&tile);
    for (int lane = 0; lane < tile.lanes; lane++)
        ice_state_merge(part_of(call, split, head, first_row + lane), p->value_dim, &tile.state[lane]);
}

/* So many threads as have enough to do: for fewer keys than some hundred one is faster. */
static int threads_for(const icecore_attention *p) {
    const int threads = p->threads == 0 ? icecore_default_threads() : p->threads;
    const double products =
        (double)(p->batch * p->query_heads) * (double)p->queries * (double)p->keys * (double)(p->dim + p->value_dim);
    const double worth = products / (double)MIN_PRODUCTS;
    if (threads <= 1 || worth >= (double)threads) return threads;
    return worth < 1.0 ? 1 : (int)worth;
}

/* Heads by the group, so that packed values take no more than their share of memory. */
static icecore_status attend_tiles(exact_call *call) {
    const icecore_attention *p = call->problem;
    const int64_t heads = p->batch * p->key_heads;
    icecore_status status = ICECORE_OK;
    call->heads = heads;
    if (call->tiles > 1 && p->keys > 0 && ice_panel_is_bf16(p, call->kernels)) {
        const int64_t maximum = MAX_PACKED_BYTES / (ice_packed_numbers(p) * (int64_t)sizeof *call->packed);
        if (maximum < heads) call->heads = ice_max(maximum, 1);
        call->packed = ice_alloc(call->heads * ice_packed_numbers(p), sizeof *call->packed);
        if (!call->packed) return ICECORE_ERROR_MEMORY;
    }
    for (; status == ICECORE_OK && call->first_head < heads; call->first_head += call->heads) {
        if (call->heads > heads - call->first_head) call->heads = heads - call->first_head;
        if (call->packed) status = ice_pack_heads(p, call->kernels, call->first_head, call->heads, call->packed);
        if (status == ICECORE_OK)
            status = ice_parallel_for(call->heads * call->tiles * call->splits, threads_for(p), ice_tile_bytes(p),
                                      attend_task, call);
    }
    ice_free(call->packed);
    return status;
}

static int begin_parts(exact_call *call) {
    const icecore_attention *p = call->problem;
    const int64_t parts = call->splits * p->batch * p->key_heads * ice_query_rows(p);
    call->part = ice_alloc(parts, sizeof *call->part);
    call->accumulators = ice_alloc(parts * p->value_dim, sizeof *call->accumulators);
    if (!call->part || !call->accumulators) return 0;
    for (int64_t i = 0; i < parts; i++)
        call->part[i] = ice_state_start(call->accumulators + i * p->value_dim, p->value_dim);
    return 1;
}

static void merge_parts(const exact_call *call) {
    const icecore_attention *p = call->problem;
    for (int64_t head = 0; head < p->batch * p->key_heads; head++)
        for (int64_t row = 0; row < ice_query_rows(p); row++) {
            ice_state *whole = part_of(call, 0, head, row);
            for (int64_t split = 1; split < call->splits; split++)
                ice_state_merge(whole, p->value_dim, part_of(call, split, head, row));
            ice_state_write(whole, p, call->kernels, ice_row_at(p, head / p->key_heads, head % p->key_heads, row));
        }
}

static int64_t splits_of(const icecore_attention *p) {
    const int64_t tiles = p->batch * p->key_heads * ((ice_query_rows(p) + ICE_PANEL - 1) / ICE_PANEL);
    const int64_t by_tasks = (WANTED_TASKS + tiles - 1) / tiles, by_keys = p->keys / MIN_KEYS;
    return ice_max(1, ice_min(by_tasks, by_keys));
}

icecore_status icecore_attend_exact(const icecore_attention *problem) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    if (ice_is_empty(problem)) return ICECORE_OK;
    exact_call call = {.problem = problem,
                       .without_sinks = *problem,
                       .kernels = ice_active_kernels(),
                       .tiles = (ice_query_rows(problem) + ICE_PANEL - 1) / ICE_PANEL,
                       .splits = splits_of(problem)};
    call.without_sinks.sink_logits = NULL;
    if (call.splits > 1 && !begin_parts(&call)) status = ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK) status = attend_tiles(&call);
    if (status == ICECORE_OK && call.splits > 1) merge_parts(&call);
    ice_free(call.part);
    ice_free(call.accumulators);
    return status;
}
