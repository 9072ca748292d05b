/* Attention to keys that the caller chose: (batch, key head, chunk of units) tasks.
 *
 * A unit is a row with a list of indices of its own, or up to ICE_PANEL heads of one query that share a list, and goes
 * through its list in blocks.  What no query may see is left out of the blocks, so that nothing is masked.  Lists of
 * neighbouring keys (icecore_indices.block) are read where they lie. */
#include "attend/run.h"
#include "base/parallel.h"
#include "select/check_indices.h"

/* Units in a task at most, and tasks wanted where there are fewer units. */
#define MAX_UNITS 16
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

/* Attends to runs of neighbouring keys, those of a list that touch together. */
static void attend_runs(ice_tile *tile, const gather_block *b) {
    const icecore_indices *x = b->indices;
    const int64_t limit = ice_index_limit(b->problem, x);
    int64_t first = 0, end = 0; /* the run in hand */
    for (int64_t i = 0; i < x->count && !ice_interrupted(); i++) {
        const int64_t number = ice_index_at(x, b->list + i * x->index_stride);
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
        block.list = ice_list_offset(call->indices, block.batch, block.key_head, member, query);
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
        status = ice_check_indices(problem, indices, place);
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
