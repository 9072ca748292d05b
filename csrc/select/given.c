/* Attention to keys that the caller chose: (batch, key head, chunk of units) tasks.
 *
 * A unit is a row with a list of indices of its own, or up to ICE_PANEL heads of one query that share a list, and goes
 * through its list in blocks.  What no query may see is left out of the blocks, so that nothing is masked.  Lists of
 * neighbouring keys (icecore_indices.block) are read where they lie. */
#include <stdatomic.h>

#include "attend/run.h"
#include "base/parallel.h"

/* Units in a task at most, and tasks wanted where there are fewer units. */
#define MAX_UNITS 16
#define WANTED_TASKS 64
/* Indices checked in a task, about. */
#define CHECK_INDICES 16384

/* ---- Whether lists name keys ---- */

/* Where a row's list begins, in elements. */
static int64_t list_offset(const icecore_indices *x, int64_t batch, int64_t key_head, int64_t member, int64_t query) {
    return batch * x->batch_stride + key_head * x->key_head_stride + member * x->member_stride + query * x->row_stride;
}

static int64_t index_at(const icecore_indices *x, int64_t offset) {
    return x->is_int64 ? ((const int64_t *)x->data)[offset] : ((const int32_t *)x->data)[offset];
}

/* Indices are below this: the number of keys, or of blocks of them. */
static int64_t index_limit(const icecore_attention *p, const icecore_indices *x) {
    return x->block ? p->keys / x->block + (p->keys % x->block > 0) : p->keys;
}

typedef struct {
    const icecore_indices *indices;
    int64_t limit;
    int64_t batch, key_heads, members, queries; /* lists along each axis; 1 where they are all the same one */
    int64_t chunk;                              /* lists in a task */
    atomic_llong first;                         /* list * count + place of the first bad index so far */
} check_call;

/* Whether any index of a list is neither -1 nor below the limit: one branch at the end, so that the compiler can use
 * vectors. */
static int any_outside(const icecore_indices *x, int64_t list, int64_t limit) {
    int outside = 0;
    if (x->is_int64) {
        for (int64_t i = 0; i < x->count; i++)
            outside |= (uint64_t)index_at(x, list + i * x->index_stride) + 1 > (uint64_t)limit;
        return outside;
    }
    /* index + 1 in 32 bits: from 0 to the limit */
    const uint32_t maximum = limit <= INT32_MAX ? (uint32_t)limit : (uint32_t)INT32_MAX + 1;
    const int32_t *own = (const int32_t *)x->data + list;
    if (x->index_stride == 1)
        for (int64_t i = 0; i < x->count; i++) outside |= (uint32_t)own[i] + 1 > maximum;
    else
        for (int64_t i = 0; i < x->count; i++) outside |= (uint32_t)own[i * x->index_stride] + 1 > maximum;
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
        if (!any_outside(x, list, call->limit)) continue;
        int64_t i = 0;
        while (i < x->count - 1 && (uint64_t)index_at(x, list + i * x->index_stride) + 1 <= (uint64_t)call->limit) i++;
        long long found = n * x->count + i, minimum = atomic_load(&call->first);
        while (found < minimum && !atomic_compare_exchange_weak(&call->first, &minimum, found)) {}
        return;
    }
}

/* ICECORE_ERROR_INDEX and the place of the first index that is neither -1 nor names keys. */
static icecore_status check_indices(const icecore_attention *p, const icecore_indices *x, int64_t *place) {
    check_call call = {.indices = x,
                       .limit = index_limit(p, x),
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

/* ---- Attending ---- */

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

/* Reads on until there are ICE_KEY_BLOCK visible keys or the list ends; 0 when there are none.  An index outside the
 * keys is never used as an address, whatever has happened to the array since it was checked. */
static int next_block(gather_block *b) {
    const icecore_indices x = *b->indices; /* a copy, which no store can change: its fields stay in registers */
    const icecore_attention *p = b->problem;
    const int64_t list = b->list, end = b->end;
    int64_t chosen[ICE_KEY_BLOCK], found = 0, i = b->next; /* found < ICE_KEY_BLOCK wherever it is an index */
    for (; i < x.count && found < ICE_KEY_BLOCK; i++) {
        chosen[found] = index_at(&x, list + i * x.index_stride);
        found += (uint64_t)chosen[found] < (uint64_t)end;
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

/* Attends to runs of neighbouring keys, those of a list that touch together. */
static void attend_runs(ice_tile *tile, const gather_block *b) {
    const icecore_indices *x = b->indices;
    const int64_t limit = index_limit(b->problem, x);
    int64_t first = 0, end = 0; /* the run in hand */
    for (int64_t i = 0; i < x->count && !ice_interrupted(); i++) {
        const int64_t number = index_at(x, b->list + i * x->index_stride);
        if ((uint64_t)number >= (uint64_t)limit) continue;
        const int64_t next = number * x->block, next_end = next + x->block;
        if (next != end) {
            ice_tile_attend_keys(tile, b->problem, first, end);
            first = next;
        }
        end = ice_max(first, ice_min(next_end, b->end));
    }
    ice_tile_attend_keys(tile, b->problem, first, end);
}

static void attend_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const gather_call *call = context;
    const icecore_attention *p = call->problem;
    const int64_t group = ice_group(p), units = p->queries * call->lots,
                  chunks = (units + call->chunk - 1) / call->chunk;
    /* head after head, so that all threads gather from the same keys */
    const int64_t head = index / chunks, first = index % chunks * call->chunk;
    const int64_t last = ice_min(first + call->chunk, units);
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t query = unit / call->lots, member = unit % call->lots * call->unit_rows;
        const int64_t rows = ice_min(group - member, call->unit_rows);
        gather_block block;
        block.problem = p, block.indices = call->indices;
        block.batch = head / p->key_heads, block.key_head = head % p->key_heads;
        block.list = list_offset(call->indices, block.batch, block.key_head, member, query);
        block.next = 0, block.end = ice_visible_keys(p, 0, query).end;
        ice_tile tile;
        ice_tile_begin(&tile, p, call->kernels, block.batch, block.key_head, query * group + member, rows, scratch);
        if (call->indices->block) attend_runs(&tile, &block);
        else
            while (next_block(&block) && !ice_interrupted())
                ice_tile_attend_gathered(&tile, block.keys, block.values, block.count);
        ice_tile_write(&tile);
    }
}

icecore_status icecore_attend_indices(const icecore_attention *problem, const icecore_indices *indices,
                                      int64_t *place) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    if (ice_hides_keys(problem) || problem->alibi_slopes || indices->count < 0 || indices->block < 0)
        return ICECORE_ERROR_VALUE;
    if (ice_is_empty(problem)) return ICECORE_OK;
    if (indices->count > 0) {
        if (!indices->data) return ICECORE_ERROR_VALUE;
        status = check_indices(problem, indices, place);
        if (status != ICECORE_OK) return status;
    }
    gather_call call = {.problem = problem, .indices = indices, .kernels = ice_active_kernels()};
    const int64_t heads = problem->batch * problem->key_heads, group = ice_group(problem);
    call.unit_rows = ice_min(group, ICE_PANEL);
    if (indices->member_stride) call.unit_rows = 1;
    call.lots = (group + call.unit_rows - 1) / call.unit_rows;
    const int64_t units = problem->queries * call.lots, by_tasks = heads * units / WANTED_TASKS;
    call.chunk = ice_max(1, ice_min(by_tasks, MAX_UNITS));
    return ice_parallel_for(heads * ((units + call.chunk - 1) / call.chunk), problem->threads, ice_tile_bytes(problem),
                            attend_task, &call);
}
