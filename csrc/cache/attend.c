/* Attending from a cache: block by block of the queries, each head sealing first what its block's queries see by cells. */
#include "attention/treecode.h"
#include "base/numbers.h"
#include "base/parallel.h"
#include "cache/cache.h"

typedef struct {
    icecore_cache *cache;
    icecore_attention problem, sinks;  /* equal but for where keys and values lie */
    icecore_near_far options;
    int64_t first_query, end_query;    /* of one block */
    int64_t blocks;                    /* wanted in the stacks */
    int last;                          /* whether the newest token is among them */
    int64_t tiles;                     /* panels of rows for each head */
    _Atomic int status;
} attend_call;

static void seal_task(void *context, int64_t head, void *scratch) {
    attend_call *call = context;
    if (!scratch) return;
    icecore_status status = ice_cache_seal(call->cache, call->options.metric, head, call->blocks);
    if (status == ICECORE_OK) status = ice_cache_fit_means(call->cache, head);
    if (status == ICECORE_OK && call->last) status = ice_cache_prepare(call->cache, call->options.metric, head);
    if (status != ICECORE_OK) atomic_store(&call->status, (int)status);
}

static void attend_task(void *context, int64_t index, void *scratch) {
    const attend_call *call = context;
    if (!scratch) return;
    const icecore_cache *c = call->cache;
    const int64_t heads = c->options.heads, head = index % heads, group = ice_group(&call->problem);
    const int64_t first = call->first_query * group + index / heads * ICE_PANEL, rest = call->end_query * group - first;
    int64_t open_begin = c->head[head].sealed * c->options.block;
    if (open_begin < c->evicted) open_begin = c->evicted;
    const ice_exact_keys exact = {c->options.sinks < open_begin ? c->options.sinks : open_begin, open_begin, &call->sinks};
    ice_treecode_attend(&call->problem, &call->options, ice_active_kernels(), c->head[head].stack, exact, head, first,
                        rest < ICE_PANEL ? (int)rest : ICE_PANEL, scratch);
}

/* Decode steps: one panel a head, so both in one go. */
static void seal_and_attend_task(void *context, int64_t head, void *scratch) {
    attend_call *call = context;
    seal_task(context, head, scratch);
    if (atomic_load(&call->status) == ICECORE_OK) attend_task(context, head, scratch);
}

/* So many that any head's stack of `blocks` has no more. */
static int64_t most_nodes(const icecore_cache *c, int64_t blocks) {
    int64_t most = 0;
    for (int64_t h = 0; h < c->options.heads; h++) {
        if (c->head[h].sealed < blocks) return ice_stack_most_nodes(blocks * c->options.block, c->options.cell_size);
        if (c->head[h].stack->nodes > most) most = c->head[h].stack->nodes;
    }
    return most;
}

static icecore_status attend_block(attend_call *call) {
    const icecore_cache *c = call->cache;
    const int64_t heads = c->options.heads;
    const int64_t levels = ice_stack_most_levels(c->length, c->options.block);
    const size_t bytes = ice_treecode_bytes(&call->problem, &call->options, levels, most_nodes(c, call->blocks));
    icecore_status status;
    call->tiles = ((call->end_query - call->first_query) * ice_group(&call->problem) + ICE_PANEL - 1) / ICE_PANEL;
    if (call->tiles == 1) {
        status = ice_parallel_for(heads, call->problem.threads, bytes, seal_and_attend_task, call);
        return status == ICECORE_OK ? (icecore_status)call->status : status;
    }
    status = ice_parallel_for(heads, call->problem.threads, 1, seal_task, call);
    if (status == ICECORE_OK) status = (icecore_status)call->status;
    return status == ICECORE_OK ? ice_parallel_for(heads * call->tiles, call->problem.threads, bytes, attend_task, call) : status;
}

static icecore_tensor rows_of(const ice_open_rows *r, int values) {
    const int64_t width = values ? r->value_dim : r->dim;
    return (icecore_tensor){values ? ice_open_value(r, 0, 0) : ice_open_key(r, 0, 0), 0, r->capacity * width, width};
}

static icecore_status attend(icecore_cache *c, const icecore_attention *problem, const icecore_near_far *report) {
    const icecore_cache_options *o = &c->options;
    attend_call call = {.cache = c, .problem = *problem, .options = *report};
    icecore_attention *p = &call.problem;
    p->batch = 1;
    p->key_heads = o->heads;
    p->keys = c->length;
    p->dim = o->dim;
    p->value_dim = o->value_dim;
    p->key_dtype = ice_open_dtype(&c->options);
    p->causal = 1;
    p->window = -1;
    p->sinks = 0;
    p->mask_kind = ICECORE_MASK_NONE;
    if (c->open) {
        p->key = rows_of(c->open, 0);
        p->value = rows_of(c->open, 1);
    }
    icecore_status status = ice_check_problem(p);
    if (status != ICECORE_OK || ice_is_empty(p)) return status;
    const int64_t first = c->length - p->queries;
    if (first < 0 || !ice_all_positive(report->head_tolerance, p->query_heads) || !ice_all_positive(report->metric, o->heads * o->dim))
        return ICECORE_ERROR_VALUE;
    for (int64_t h = 0; h < o->heads; h++)
        if (c->head[h].sealed * o->block > first + 1) return ICECORE_ERROR_VALUE;
    call.options.near_keys = o->near_keys;
    call.options.cell_tolerance = o->cell_tolerance;
    call.options.far_field = 1;
    for (int64_t position = first; position < c->length && status == ICECORE_OK;) {
        int64_t end = (position / o->block + 1) * o->block;
        if (end > c->length) end = c->length;
        call.first_query = position - first;
        call.end_query = end - first;
        call.last = end == c->length;
        call.blocks = ice_wanted_blocks(c, position);
        if (call.blocks < c->sealed) call.blocks = c->sealed;
        p->key = rows_of(c->open, 0);   /* they may move when blocks have been sealed */
        p->value = rows_of(c->open, 1);
        call.sinks = *p;
        if (c->sinks) {
            call.sinks.key = rows_of(c->sinks, 0);
            call.sinks.value = rows_of(c->sinks, 1);
        }
        status = attend_block(&call);
        if (status == ICECORE_OK && call.blocks > c->sealed) ice_cache_sealed(c, call.blocks);
        position = end;
    }
    return status;
}

icecore_status icecore_cache_attend(icecore_cache *c, const icecore_attention *problem, const icecore_near_far *report) {
    if (!ice_active_kernels()) return ICECORE_ERROR_ISA;
    pthread_mutex_lock(&c->lock);
    icecore_status status = attend(c, problem, report);
    pthread_mutex_unlock(&c->lock);
    return status;
}
