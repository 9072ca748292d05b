/* Attention to keys that the caller chose: (batch, key head, chunk of units) tasks.
 *
 * A unit is a row with a list of indices of its own, or up to ICE_PANEL heads of one query that share a list, and goes
 * through its list in blocks with an online softmax.  Few rows read keys and values where they lie, one row after the
 * other, the first of them from memory and the rest from the cache.  Many rows fill a panel: then the block is copied
 * side by side for the panel kernels. What no query may see is left out of the blocks, so that nothing is masked. */
#include <stdatomic.h>
#include <string.h>

#include "attend/tile.h"
#include "base/parallel.h"

/* A unit of at most this many rows goes row by row (bench_attend_indices.py --heads). */
#define SINGLE_ROWS 8
/* Units in a task at most, and tasks wanted where there are fewer units. */
#define MOST_UNITS 16
#define WANTED_TASKS 64

typedef struct {
    const icecore_attention *problem;
    const icecore_indices *indices;
    const ice_kernels *kernels;
    int64_t unit_rows; /* rows in a unit at most */
    int64_t lots;      /* units of one query */
    int64_t chunk;     /* units in a task */
} gather_call;

/* What one list leads to, a block at a time. */
typedef struct {
    const icecore_attention *problem;
    const icecore_indices *indices;
    int64_t batch, key_head;
    int64_t list, next; /* where the list begins, and the place of the first index not yet read */
    int64_t end;        /* keys from here on are not visible */
    int64_t count;      /* rows in the block */
    const void *keys[ICE_KEY_BLOCK], *values[ICE_KEY_BLOCK];
} gather_block;

static int64_t index_at(const icecore_indices *x, int64_t offset) {
    return x->is_int64 ? ((const int64_t *)x->data)[offset] : ((const int32_t *)x->data)[offset];
}

static int64_t list_offset(const icecore_indices *x, int64_t batch, int64_t key_head, int64_t member, int64_t query) {
    return batch * x->batch_stride + key_head * x->key_head_stride + member * x->member_stride + query * x->row_stride;
}

/* Reads on until there are ICE_KEY_BLOCK visible keys or the list ends; 0 when there are none.  An index outside the
 * keys is never used as an address, whatever has happened to the array since it was checked. */
static int next_block(gather_block *b) {
    const icecore_indices *x = b->indices;
    const icecore_attention *p = b->problem;
    const int64_t step = x->index_stride;
    int64_t chosen[ICE_KEY_BLOCK], found = 0, i = b->next; /* found < ICE_KEY_BLOCK wherever it is an index */
    if (x->is_int64) {
        const int64_t *own = (const int64_t *)x->data + b->list;
        for (; i < x->count && found < ICE_KEY_BLOCK; i++) {
            chosen[found] = own[i * step];
            found += (uint64_t)chosen[found] < (uint64_t)b->end;
        }
    } else {
        const int32_t *own = (const int32_t *)x->data + b->list;
        for (; i < x->count && found < ICE_KEY_BLOCK; i++) {
            chosen[found] = own[i * step];
            found += (uint64_t)chosen[found] < (uint64_t)b->end;
        }
    }
    const int64_t element = (int64_t)ice_element_size(p->key_dtype);
    const int64_t key_step = p->key.row_stride * element, value_step = p->value.row_stride * element;
    const char *key = ice_address(&p->key, p->key_dtype, b->batch, b->key_head, 0);
    const char *value = ice_address(&p->value, p->key_dtype, b->batch, b->key_head, 0);
    for (int64_t j = 0; j < found; j++) {
        b->keys[j] = key + chosen[j] * key_step;
        b->values[j] = value + chosen[j] * value_step;
    }
    b->next = i;
    b->count = found;
    return found > 0;
}

/* scratch: SINGLE_ROWS queries and as many accumulators. */
static void attend_by_rows(const gather_call *call, gather_block *block, int64_t first_row, int64_t rows,
                           float *scratch) {
    const icecore_attention *p = call->problem;
    const ice_kernels *kernels = call->kernels;
    float *queries = scratch, *accumulators = scratch + SINGLE_ROWS * p->dim;
    float maximum[SINGLE_ROWS], sum[SINGLE_ROWS], scores[SINGLE_ROWS][ICE_KEY_BLOCK], correction;
    memset(accumulators, 0, (size_t)(rows * p->value_dim) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        ice_load_query(p, kernels, ice_row_at(p, block->batch, block->key_head, first_row + r),
                       (float)(p->scale * ICE_LOG2_E), queries + r * p->dim);
        maximum[r] = -INFINITY;
        sum[r] = 0.0f;
    }
    while (next_block(block) && !ice_interrupted()) {
        for (int64_t r = 0; r < rows; r++)
            kernels->gathered_scores(queries + r * p->dim, p->dim, 0.0f, p->key_dtype, block->keys, block->count,
                                     scores[r]);
        for (int64_t r = 0; r < rows; r++) {
            kernels->row_softmax(scores[r], block->count, &maximum[r], &sum[r], &correction);
            kernels->gathered_weighted_sum(scores[r], block->count, p->key_dtype, block->values, p->value_dim,
                                           correction, accumulators + r * p->value_dim);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        ice_write_row(p, kernels, ice_row_at(p, block->batch, block->key_head, first_row + r), maximum[r], sum[r],
                      accumulators + r * p->value_dim);
}

/* Rows side by side, as the panel wants them: as they are or widened to float32. */
static void copy_rows(const ice_tile *panel, const void *const *rows, int64_t count, int64_t width, void *target) {
    const icecore_dtype dtype = panel->problem->key_dtype;
    const int as_is = panel->query_pairs || dtype == ICECORE_FLOAT32;
    const size_t size = (size_t)width * (panel->query_pairs ? sizeof(uint16_t) : sizeof(float));
    for (int64_t j = 0; j < count; j++) {
        void *copy = (char *)target + (size_t)j * size;
        if (as_is) memcpy(copy, rows[j], size);
        else panel->kernels->to_float32(dtype, rows[j], copy, width);
    }
}

static void attend_by_panel(const gather_call *call, gather_block *block, int64_t first_row, int64_t rows,
                            void *scratch) {
    const icecore_attention *p = call->problem;
    ice_tile panel;
    ice_tile_begin(&panel, p, call->kernels, block->batch, block->key_head, first_row, (int)rows, scratch);
    while (next_block(block) && !ice_interrupted()) {
        copy_rows(&panel, block->keys, block->count, p->dim, panel.keys);
        copy_rows(&panel, block->values, block->count, p->value_dim, panel.values);
        ice_tile_attend_rows(&panel, panel.keys, panel.values, block->count, NULL);
    }
    float *accumulator = ice_tile_rows(&panel);
    for (int lane = 0; lane < panel.lanes; lane++)
        ice_write_row(p, call->kernels, ice_row_at(p, block->batch, block->key_head, first_row + lane),
                      panel.maximum[lane], panel.sum[lane], accumulator + lane * p->value_dim);
}

static void attend_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const gather_call *call = context;
    const icecore_attention *p = call->problem;
    const int64_t group = ice_group(p), units = p->queries * call->lots,
                  chunks = (units + call->chunk - 1) / call->chunk;
    /* head after head, so that all threads gather from the same keys */
    const int64_t head = index / chunks, first = index % chunks * call->chunk;
    const int64_t last = first + call->chunk < units ? first + call->chunk : units;
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t query = unit / call->lots, member = unit % call->lots * call->unit_rows;
        const int64_t rows = group - member < call->unit_rows ? group - member : call->unit_rows;
        gather_block block;
        block.problem = p, block.indices = call->indices;
        block.batch = head / p->key_heads, block.key_head = head % p->key_heads;
        block.list = list_offset(call->indices, block.batch, block.key_head, member, query);
        block.next = 0, block.end = ice_visible_keys(p, query).end;
        if (rows <= SINGLE_ROWS) attend_by_rows(call, &block, query * group + member, rows, scratch);
        else attend_by_panel(call, &block, query * group + member, rows, scratch);
    }
}

/* ---- The check ---- */

/* Indices checked in a task, about. */
#define CHECK_INDICES 16384

typedef struct {
    const icecore_indices *indices;
    int64_t keys;
    int64_t batch, key_heads, members, queries; /* lists along each axis; 1 where they are all the same one */
    int64_t chunk;                              /* lists in a task */
    atomic_llong first;                         /* list * count + place of the first bad index so far */
} check_call;

/* Whether any index of a list is neither -1 nor a key: one branch at the end, so that the compiler can use vectors. */
static int any_outside(const icecore_indices *x, int64_t list, int64_t keys) {
    int outside = 0;
    if (x->is_int64) {
        for (int64_t i = 0; i < x->count; i++)
            outside |= (uint64_t)index_at(x, list + i * x->index_stride) + 1 > (uint64_t)keys;
        return outside;
    }
    /* index + 1 in 32 bits: from 0 to the number of keys */
    const uint32_t most = keys <= INT32_MAX ? (uint32_t)keys : (uint32_t)INT32_MAX + 1;
    const int32_t *own = (const int32_t *)x->data + list;
    if (x->index_stride == 1)
        for (int64_t i = 0; i < x->count; i++) outside |= (uint32_t)own[i] + 1 > most;
    else
        for (int64_t i = 0; i < x->count; i++) outside |= (uint32_t)own[i * x->index_stride] + 1 > most;
    return outside;
}

static void check_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    check_call *call = context;
    const icecore_indices *x = call->indices;
    const int64_t lists = call->batch * call->key_heads * call->members * call->queries, first = index * call->chunk;
    for (int64_t n = first; n < lists && n < first + call->chunk; n++) {
        const int64_t head = n / call->queries, key_head = head / call->members;
        const int64_t list = list_offset(x, key_head / call->key_heads, key_head % call->key_heads,
                                         head % call->members, n % call->queries);
        if (!any_outside(x, list, call->keys)) continue;
        int64_t i = 0;
        while (i < x->count - 1 && (uint64_t)index_at(x, list + i * x->index_stride) + 1 <= (uint64_t)call->keys) i++;
        long long found = n * x->count + i, least = atomic_load(&call->first);
        while (found < least && !atomic_compare_exchange_weak(&call->first, &least, found)) {}
        return;
    }
}

/* ICECORE_ERROR_INDEX and the place of the first index that is neither -1 nor a key. */
static icecore_status check_indices(const icecore_attention *p, const icecore_indices *x, int64_t *place) {
    check_call call = {.indices = x,
                       .keys = p->keys,
                       .batch = x->batch_stride ? p->batch : 1,
                       .key_heads = x->key_head_stride ? p->key_heads : 1,
                       .members = x->member_stride ? ice_group(p) : 1,
                       .queries = x->row_stride ? p->queries : 1,
                       .chunk = CHECK_INDICES / (x->count + 1) + 1,
                       .first = INT64_MAX};
    const int64_t lists = call.batch * call.key_heads * call.members * call.queries;
    icecore_status status = ice_parallel_for((lists + call.chunk - 1) / call.chunk, p->threads, 0, check_task, &call);
    const int64_t found = atomic_load(&call.first);
    if (status != ICECORE_OK || found == INT64_MAX) return status;
    /* from the lists that differ to all of them */
    const int64_t n = found / x->count, head = n / call.queries, key_head = head / call.members;
    const int64_t all_heads = key_head / call.key_heads * p->key_heads + key_head % call.key_heads;
    *place = ((all_heads * ice_group(p) + head % call.members) * p->queries + n % call.queries) * x->count +
             found % x->count;
    return ICECORE_ERROR_INDEX;
}

icecore_status icecore_attend_indices(const icecore_attention *problem, const icecore_indices *indices,
                                      int64_t *place) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    if (problem->window >= 0 || problem->mask_kind != ICECORE_MASK_NONE || indices->count < 0)
        return ICECORE_ERROR_VALUE;
    if (ice_is_empty(problem)) return ICECORE_OK;
    if (indices->count > 0) {
        if (!indices->data) return ICECORE_ERROR_VALUE;
        status = check_indices(problem, indices, place);
        if (status != ICECORE_OK) return status;
    }
    gather_call call = {.problem = problem, .indices = indices, .kernels = ice_active_kernels()};
    const int64_t heads = problem->batch * problem->key_heads, group = ice_group(problem);
    call.unit_rows = indices->member_stride ? 1 : group < ICE_PANEL ? group : ICE_PANEL;
    call.lots = (group + call.unit_rows - 1) / call.unit_rows;
    const int64_t units = problem->queries * call.lots, by_tasks = heads * units / WANTED_TASKS;
    call.chunk = by_tasks < 1 ? 1 : by_tasks < MOST_UNITS ? by_tasks : MOST_UNITS;
    const size_t by_rows = (size_t)(SINGLE_ROWS * (problem->dim + problem->value_dim)) * sizeof(float),
                 by_panel = ice_tile_bytes(problem);
    return ice_parallel_for(heads * ((units + call.chunk - 1) / call.chunk), problem->threads,
                            by_rows > by_panel ? by_rows : by_panel, attend_task, &call);
}
