/* Exact attention: all keys that a row may see.
 *
 * A task is a tile of rows, or some tiles that read a stretch of packed keys one after the other, while a level-2 cache
 * has it: matrix tiles multiply faster than far caches are read.  Where there are so few tiles that there are not
 * enough tasks to share, each tile's keys are split as well, and the parts are merged in order.  The split depends on
 * the shapes alone, so results do not depend on the threads. */
#include "attend/run.h"
#include "base/parallel.h"

/* Tasks wanted where there are few tiles, and the least keys worth a task. */
#define WANTED_TASKS 32
#define MIN_KEYS 2048
/* Products that make a thread worth waking: on a machine of two, 13 us of one thread's work. */
#define MIN_PRODUCTS ((int64_t)1 << 18)
/* Heads are packed once for all their tiles, as many at a time as take this many bytes, at least one. */
#define MAX_PACKED_BYTES ((int64_t)64 << 20)
/* From so many tiles on, panels multiply float32 in thirds: splitting keys and values costs as much as four tiles gain.
 */
#define MIN_TILES_IN_THIRDS 6
/* Tiles of a task, at most, tasks that each thread is to have for them to be more than one, and bytes of the packed
 * keys and values of a stretch. */
#define MAX_TOGETHER 4
#define TASKS_PER_THREAD 8
#define STRETCH_BYTES ((int64_t)512 << 10)

typedef struct {
    const icecore_attention *problem;
    icecore_attention without_sinks; /* the same but for its sink logits, which count in the first split alone */
    const ice_kernels *kernels;
    int64_t tiles;             /* per key head */
    int64_t together;          /* tiles of a task */
    int64_t stretch;           /* keys that they read one after the other */
    int64_t first_head, heads; /* batch x key heads in hand */
    uint16_t *packed;          /* these heads, packed; NULL: each tile packs its own values */
    int64_t splits;            /* of the keys */
    ice_state *part;           /* splits > 1: of each split, head and row */
    float *accumulators;       /* of these */
} exact_call;

/* The tiles attend to a split's keys, stretch by stretch; where splits end depends on the number of keys alone. */
static void attend_split(const exact_call *call, ice_tile *tiles, int64_t count, int64_t split) {
    const icecore_attention *p = call->problem;
    const int64_t blocks = (p->keys + ICE_KEY_BLOCK - 1) / ICE_KEY_BLOCK;
    const int64_t size = (blocks + call->splits - 1) / call->splits * ICE_KEY_BLOCK, first = split * size,
                  end = ice_min(first + size, p->keys);
    for (int64_t low = first, high; low < end; low = high) {
        high = ice_min(low + call->stretch, end);
        for (int64_t i = 0; i < count; i++) {
            const ice_visible visible = ice_tile_visible(&tiles[i]);
            ice_tile_attend_keys(&tiles[i], p, low, ice_min(visible.sink_end, high));
            ice_tile_attend_keys(&tiles[i], p, ice_max(visible.begin, low), ice_min(visible.end, high));
        }
    }
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
    const int64_t groups = (call->tiles + call->together - 1) / call->together, split = rest / groups,
                  first = rest % groups * call->together, count = ice_min(call->tiles - first, call->together);
    ice_tile tiles[MAX_TOGETHER];
    for (int64_t i = 0; i < count; i++) {
        /* causal: the last rows see most, so they go first */
        const int64_t first_row = (call->tiles - 1 - first - i) * ICE_PANEL;
        ice_tile_begin(&tiles[i], split ? &call->without_sinks : p, call->kernels, head / p->key_heads,
                       head % p->key_heads, first_row, ice_query_rows(p) - first_row,
                       (char *)scratch + (size_t)i * ice_tile_bytes(p));
        tiles[i].packed = ice_packed_head_of(p, call->packed, number);
    }
    attend_split(call, tiles, count, split);
    for (int64_t i = 0; i < count; i++) {
        if (call->splits == 1) {
            ice_tile_write(&tiles[i]);
            continue;
        }
        ice_tile_finish(&tiles[i]);
        for (int lane = 0; lane < tiles[i].lanes; lane++)
            ice_state_merge(part_of(call, split, head, tiles[i].first_row + lane), p->value_dim, &tiles[i].state[lane]);
    }
}

/* So many threads as have enough to do: for fewer keys than some hundred one is faster. */
static int threads_for(const icecore_attention *p) {
    const int threads = p->threads <= 0 ? icecore_default_threads() : p->threads;
    const double products =
        (double)(p->batch * p->query_heads) * (double)p->queries * (double)p->keys * (double)(p->dim + p->value_dim);
    const double worth = products / (double)MIN_PRODUCTS;
    if (threads <= 1 || worth >= (double)threads) return threads;
    return worth < 1.0 ? 1 : (int)worth;
}

/* Where a head's packed keys are more than one stretch.  A row's sums depend on where stretches end, but not on how
 * many tiles share them. */
static void share_stretches(exact_call *call) {
    const icecore_attention *p = call->problem;
    const int64_t parts = p->key_dtype == ICECORE_BFLOAT16 ? 1 : ICE_THIRDS,
                  row_bytes = parts * (p->dim + p->value_dim) * (int64_t)sizeof *call->packed;
    const int64_t fit = STRETCH_BYTES / row_bytes / ICE_KEY_BLOCK * ICE_KEY_BLOCK;
    call->stretch = ice_max(fit, ICE_KEY_BLOCK);
    if (p->keys <= call->stretch || call->splits > 1) return;
    const int64_t each = call->heads * call->tiles / (TASKS_PER_THREAD * threads_for(p));
    call->together = ice_max(1, ice_min(each, MAX_TOGETHER));
}

static int64_t tiles_of(int64_t rows) { return (rows + ICE_PANEL - 1) / ICE_PANEL; }

int icecore_multiplies_in_thirds(int64_t dim, int64_t value_dim, int64_t rows) {
    const icecore_attention p = {.dim = dim, .value_dim = value_dim};
    const ice_kernels *kernels = ice_active_kernels();
    return kernels && ice_in_thirds(&p, kernels) && tiles_of(rows) >= MIN_TILES_IN_THIRDS;
}

int icecore_multiplies_bfloat16(int64_t dim, int64_t value_dim) {
    const icecore_attention p = {.dim = dim, .value_dim = value_dim, .key_dtype = ICECORE_BFLOAT16};
    const ice_kernels *kernels = ice_active_kernels();
    return kernels && ice_panel_dtype(&p, kernels) == ICECORE_BFLOAT16;
}

static int are_packed(const exact_call *call) {
    const icecore_attention *p = call->problem;
    if (p->keys == 0 || call->tiles == 1) return 0;
    if (ice_in_thirds(p, call->kernels)) return call->tiles >= MIN_TILES_IN_THIRDS;
    return ice_panel_dtype(p, call->kernels) == ICECORE_BFLOAT16;
}

/* Heads by the group, so that packed ones take no more than their share of memory. */
static icecore_status attend_tiles(exact_call *call) {
    const icecore_attention *p = call->problem;
    const int64_t heads = p->batch * p->key_heads;
    icecore_status status = ICECORE_OK;
    call->heads = heads;
    if (are_packed(call)) {
        const int64_t maximum = MAX_PACKED_BYTES / (ice_packed_numbers(p) * (int64_t)sizeof *call->packed);
        if (maximum < heads) call->heads = ice_max(maximum, 1);
        call->packed = ice_alloc(call->heads * ice_packed_numbers(p), sizeof *call->packed);
        if (!call->packed) return ICECORE_ERROR_MEMORY;
        share_stretches(call);
    }
    for (; status == ICECORE_OK && call->first_head < heads; call->first_head += call->heads) {
        if (call->heads > heads - call->first_head) call->heads = heads - call->first_head;
        if (call->packed) status = ice_pack_heads(p, call->kernels, call->first_head, call->heads, call->packed);
        if (status == ICECORE_OK)
            status =
                ice_parallel_for(call->heads * ((call->tiles + call->together - 1) / call->together) * call->splits,
                                 threads_for(p), (size_t)call->together * ice_tile_bytes(p), attend_task, call);
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
    const int64_t tiles = p->batch * p->key_heads * tiles_of(ice_query_rows(p));
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
                       .tiles = tiles_of(ice_query_rows(problem)),
                       .together = 1,
                       .stretch = problem->keys,
                       .splits = splits_of(problem)};
    call.without_sinks.sink_logits = NULL;
    if (call.splits > 1 && !begin_parts(&call)) status = ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK) status = attend_tiles(&call);
    if (status == ICECORE_OK && call.splits > 1) merge_parts(&call);
    ice_free(call.part);
    ice_free(call.accumulators);
    return status;
}
