/* Forgetting: the last tokens, with what was sealed of them, or the first segments. */
#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"
#include "cache/cache.h"

void ice_cache_drop_pending(ice_cache_head *head, int64_t first, int64_t end) {
    for (int i = 0; i < ICE_NEXT_RANGES; i++) {
        ice_pending *p = head->pending[i];
        if (!p || (p->first >= first && p->end <= end)) continue;
        ice_pending_release(p);
        head->pending[i] = NULL;
    }
}

typedef struct {
    icecore_cache *cache;
    int64_t blocks, length;
    ice_open_rows *open;
    ice_stack **stack;
    icecore_status *status;
} reseal_call;

/* A head's stack of fewer blocks, and the rows behind it. */
static void reseal(void *context, int64_t head, void *scratch) {
    const reseal_call *call = context;
    const icecore_cache *c = call->cache;
    const ice_kernels *kernels = ice_active_kernels();
    const ice_cache_metric metric = {c, head};
    const ice_source source = ice_cache_source(c, &metric);
    const icecore_dtype dtype = ice_open_dtype(&c->options, c->offset);
    const int64_t dim = c->options.dim, value_dim = c->options.value_dim;
    const size_t element = ice_element_size(dtype);
    call->status[head] = ICECORE_INTERRUPTED;
    if (!scratch) return;
    call->status[head] = ice_stack_seal(&source, call->blocks, c->head[head].stack, NULL, 0, &call->stack[head]);
    if (call->status[head] != ICECORE_OK) return;
    const int64_t first = call->open->first, sinks = ice_cache_sinks(c, call->length);
    int64_t start = first;
    for (; start < sinks; start++) {
        memcpy(ice_open_key(call->open, head, start), ice_open_key(c->sinks, head, start), (size_t)dim * element);
        memcpy(ice_open_value(call->open, head, start), ice_open_value(c->sinks, head, start),
               (size_t)value_dim * element);
    }
    for (; start < c->evicted && start < call->length; start++) { /* nobody reads them, but a file has them */
        memset(ice_open_key(call->open, head, start), 0, (size_t)dim * element);
        memset(ice_open_value(call->open, head, start), 0, (size_t)value_dim * element);
    }
    if (start >= call->length) return;
    ice_source_rows rows;
    call->status[head] = ice_source_begin(&rows, kernels, &source, start, call->length);
    if (call->status[head] != ICECORE_OK) return;
    float buffer[ICECORE_MAX_DIM];
    for (int64_t j = start; j < call->length; j++) {
        if (j % ICE_UNASKED == 0 && ice_interrupted()) break; /* the loop over heads ends then, too */
        kernels->from_float32(dtype, ice_read_source_key(&rows, j - start, buffer), ice_open_key(call->open, head, j),
                              dim);
        kernels->from_float32(dtype, ice_read_source_value(&rows, j - start, buffer),
                              ice_open_value(call->open, head, j), value_dim);
    }
    ice_source_end(&rows);
}

static icecore_status reseal_all(icecore_cache *c, int64_t length, int threads) {
    const int64_t heads = c->options.heads, blocks = length ? ice_sealed_blocks(length - 1, c->options.block) : 0,
                  first = blocks * c->options.block;
    reseal_call call = {c,
                        blocks,
                        length,
                        ice_cache_new_rows(c, first, length - first),
                        ice_alloc(heads, sizeof *call.stack),
                        ice_alloc(heads, sizeof *call.status)};
    icecore_status status = call.open && call.stack && call.status ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    if (call.stack) memset(call.stack, 0, (size_t)heads * sizeof *call.stack);
    if (status == ICECORE_OK) status = ice_parallel_for(heads, threads, 1, reseal, &call);
    for (int64_t h = 0; h < heads && status == ICECORE_OK; h++) status = call.status[h];
    if (status == ICECORE_OK) {
        for (int64_t h = 0; h < heads; h++) {
            ice_stack_free(c->head[h].stack);
            ice_cache_drop_pending(&c->head[h], INT64_MAX, 0);
            c->head[h] = (ice_cache_head){.stack = call.stack[h], .sealed = blocks};
        }
        call.open->filled = length;
        ice_open_rows_release(c->open, 1);
        c->open = call.open;
        c->sealed = blocks;
        c->length = length;
        /* what is open again has no sums of its own */
        ice_queries_forget(c, blocks, (length + c->options.block - 1) / c->options.block);
    } else {
        for (int64_t h = 0; call.stack && h < heads; h++) ice_stack_free(call.stack[h]);
        ice_open_rows_release(call.open, 1);
    }
    ice_free(call.stack);
    ice_free(call.status);
    return status;
}

int64_t ice_cache_max_sealed(const icecore_cache *c) {
    int64_t maximum = c->sealed;
    for (int64_t h = 0; h < c->options.heads; h++)
        if (c->head[h].sealed > maximum) maximum = c->head[h].sealed;
    return maximum;
}

static icecore_status forget(icecore_cache *c, int64_t length, int threads) {
    const int64_t block = c->options.block, sealed = ice_cache_max_sealed(c);
    const int64_t wanted = length ? ice_sealed_blocks(length - 1, c->options.block) : 0;
    if (length > c->length || (length < c->evicted && length > c->options.sinks)) return ICECORE_ERROR_VALUE;
    if (length <= c->options.sinks && length < c->evicted) {
        /* none of what was evicted is left */
        int64_t evicted = c->evicted;
        c->evicted = 0;
        icecore_status status = reseal_all(c, length, threads);
        if (status != ICECORE_OK) c->evicted = evicted;
        return status;
    }
    if (sealed > wanted && length - sealed * block < block - block / 8) return reseal_all(c, length, threads);
    for (int64_t h = 0; h < c->options.heads; h++) ice_cache_drop_pending(&c->head[h], 0, length);
    c->length = length;
    return ICECORE_OK;
}

icecore_status icecore_cache_truncate(icecore_cache *c, int64_t length, int threads) {
    if (length < 0) return ICECORE_ERROR_VALUE;
    if (!ice_active_kernels()) return ICECORE_ERROR_ISA;
    icecore_status status = ice_lock_write(&c->lock);
    if (status != ICECORE_OK) return status;
    if (length != c->length) status = forget(c, length, threads);
    if (status == ICECORE_OK) ice_queries_truncate(c, length);
    ice_unlock(&c->lock);
    return status;
}

/* Where the last segment ends that every head can drop for a bound of `before`.  Heads may be sealed unequally far
 * after an interruption, and their segments then end elsewhere. */
static int64_t evictable(const icecore_cache *c, int64_t before) {
    int64_t end = c->sealed * c->options.block;
    if (before < end) end = before;
    for (int64_t h = 0; h < c->options.heads && end > c->evicted;) {
        const int64_t own = ice_stack_droppable(c->head[h].stack, end);
        if (own == end) {
            h++;
        } else {
            end = own;
            h = 0;
        }
    }
    return end > c->evicted ? end : c->evicted;
}

icecore_status icecore_cache_evict(icecore_cache *c, int64_t before, int64_t *evicted) {
    icecore_status status = ice_lock_write(&c->lock);
    if (status != ICECORE_OK) return status;
    const int64_t end = evictable(c, before);
    for (int64_t h = 0; h < c->options.heads; h++) {
        ice_stack_drop(c->head[h].stack, end);
        ice_cache_drop_pending(&c->head[h], end, INT64_MAX); /* it would hold what is forgotten */
    }
    c->evicted = *evicted = end;
    ice_unlock(&c->lock);
    return ICECORE_OK;
}
