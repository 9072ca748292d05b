/* Attending from caches: block by block of the queries, each head sealing first what its block's queries see by cells.
 * By tolerance, queries that have been attended are measured when the next blocks are sealed, on the segments that they
 * saw.  Caches of a call go through their blocks side by side, each as if it were alone. */
#include "cache/attend.h"

#include "base/memory.h"
#include "base/numbers.h"
#include "base/parallel.h"

typedef struct {
    ice_cache_call *call;
    int64_t count, heads;
    int64_t max_tiles, max_parts; /* of any call */
    _Atomic int status;
} attend_calls;

ice_exact_keys ice_cache_exact_keys(const ice_cache_call *call, int64_t head) {
    const icecore_cache *c = call->cache;
    const int64_t open_begin = ice_max(c->head[head].sealed * c->options.block, c->evicted);
    return (ice_exact_keys){
        .sink_end = ice_cache_sinks(c, open_begin), .open_begin = open_begin, .sinks = &call->sinks};
}

static icecore_status seal(ice_cache_call *call, int64_t head, void *scratch) {
    icecore_status status = ice_cache_fit_means(call->cache, head);
    if (status == ICECORE_OK && call->measuring == MEASURED_BEFORE) ice_cache_measure(call, head, scratch);
    if (status == ICECORE_OK) status = ice_cache_seal(call->cache, head, call->blocks);
    if (status == ICECORE_OK) status = ice_cache_fit_means(call->cache, head);
    if (status == ICECORE_OK && call->measuring == MEASURED_AFTER) ice_cache_measure(call, head, scratch);
    if (status == ICECORE_OK && call->by_threshold) ice_cache_apply_rules(call, head);
    if (status == ICECORE_OK && call->last) status = ice_cache_prepare(call->cache, head);
    return status;
}

static ice_head_view view_of(const ice_cache_call *call, int64_t head) {
    const icecore_cache *c = call->cache;
    return (ice_head_view){.problem = &call->problem,
                           .options = &call->options,
                           .report = &call->report,
                           .rules = call->by_threshold ? c->queries.applied + head * c->queries.group : NULL,
                           .kernels = ice_active_kernels(),
                           .stack = c->head[head].stack,
                           .exact = ice_cache_exact_keys(call, head),
                           .head = head};
}

static void attend_tile(const ice_cache_call *call, int64_t head, int64_t tile, void *scratch) {
    const int64_t group = ice_group(&call->problem), first = call->first_query * group + tile * ICE_PANEL;
    const ice_head_view view = view_of(call, head);
    ice_near_far_attend(&view, first, call->end_query * group, scratch);
}

/* ---- Decode steps, which have one tile a head ---- */

/* How many parts a head's tile has.  Where something is sealed first it is attended as a whole. */
static int64_t parts_of(const ice_cache_call *call) {
    const icecore_cache *c = call->cache;
    const int64_t rows = (call->end_query - call->first_query) * ice_group(&call->problem);
    if (call->tiles != 1 || !call->by_threshold) return 1;
    for (int64_t h = 0; h < c->options.heads; h++)
        if (c->head[h].sealed < call->blocks) return 1;
    return ice_split_parts(&call->problem, &call->report, c->head[0].stack, rows);
}

static icecore_status begin_splits(ice_cache_call *call) {
    const int64_t heads = call->cache->options.heads;
    const int64_t rows = (call->end_query - call->first_query) * ice_group(&call->problem);
    size_t bytes = ice_round_up((size_t)heads * sizeof *call->split), each = 0;
    for (int64_t h = 0; h < heads; h++) {
        const ice_head_view view = view_of(call, h);
        const size_t own = ice_split_bytes(&view, rows, call->parts);
        if (own > each) each = own;
    }
    call->split = ice_alloc(1, bytes + (size_t)heads * each);
    if (!call->split) return ICECORE_ERROR_MEMORY;
    for (int64_t h = 0; h < heads; h++)
        ice_split_place(&call->split[h], rows, call->parts, (char *)call->split + bytes + (size_t)h * each);
    return ICECORE_OK;
}

/* In the same go as its head is sealed, a tile is attended, or begun where it has parts. */
static void seal_task(void *context, int64_t index, void *scratch) {
    attend_calls *all = context;
    ice_cache_call *call = &all->call[index / all->heads];
    const int64_t head = index % all->heads;
    ice_split *split = call->tiles && call->parts > 1 ? &call->split[head] : NULL;
    if (scratch && call->tiles) {
        const icecore_status status = seal(call, head, scratch);
        const ice_head_view view = view_of(call, head);
        if (status != ICECORE_OK) atomic_store(&all->status, (int)status);
        else if (split) ice_split_begin(split, &view, call->first_query * ice_group(&call->problem), scratch);
        else if (call->tiles == 1 && atomic_load(&all->status) == ICECORE_OK) attend_tile(call, head, 0, scratch);
    }
    if (split) ice_signal(&split->settled);
}

/* Parts behind the tiles that they belong to. */
static void seal_or_part_task(void *context, int64_t index, void *scratch) {
    const attend_calls *all = context;
    const int64_t tasks = all->count * all->heads, part = index / tasks - 1;
    const ice_cache_call *call = &all->call[index % tasks / all->heads];
    if (part < 0) {
        seal_task(context, index, scratch);
    } else if (call->tiles && part < call->parts && call->parts > 1) {
        ice_split *split = &call->split[index % all->heads];
        ice_wait(&split->settled);
        if (scratch) ice_split_attend(split, part, scratch);
    }
}

static void attend_task(void *context, int64_t index, void *scratch) {
    const attend_calls *all = context;
    const int64_t head = index % all->heads, tile = index / all->heads / all->count;
    const ice_cache_call *call = &all->call[index / all->heads % all->count];
    if (scratch && call->tiles > 1 && tile < call->tiles) attend_tile(call, head, tile, scratch);
}

/* So many that any head's stack of `blocks` has no more. */
static int64_t max_nodes(const icecore_cache *c, int64_t blocks) {
    int64_t maximum = 0;
    for (int64_t h = 0; h < c->options.heads; h++) {
        if (c->head[h].sealed < blocks) return ice_stack_max_nodes(blocks * c->options.block, c->options.cell_size);
        if (c->head[h].stack->nodes > maximum) maximum = c->head[h].stack->nodes;
    }
    return maximum;
}

static size_t scratch_bytes(const ice_cache_call *call) {
    const icecore_cache *c = call->cache;
    const int64_t levels = ice_stack_max_levels(c->length, c->options.block), nodes = max_nodes(c, call->blocks);
    const size_t bytes = ice_selection_bytes(&call->problem, levels, nodes);
    const size_t measuring = call->measuring ? ice_measure_bytes(&call->problem, levels, nodes, call->measured) : 0;
    return bytes < measuring ? measuring : bytes;
}

static icecore_status attend_tasks(attend_calls *all, size_t bytes) {
    const int threads = all->call->problem.threads;
    const int64_t tasks = all->count * all->heads, parts = all->max_parts > 1 ? all->max_parts : 0;
    icecore_status status = ice_parallel_for(tasks * (1 + parts), threads, bytes, seal_or_part_task, all);
    if (status == ICECORE_OK) status = (icecore_status)all->status;
    if (status != ICECORE_OK || all->max_tiles == 1) return status;
    return ice_parallel_for(tasks * all->max_tiles, threads, bytes, attend_task, all);
}

/* The block of each call that has one. */
static icecore_status attend_blocks(attend_calls *all) {
    icecore_status status = ICECORE_OK;
    size_t bytes = 0;
    all->max_parts = 1;
    for (int64_t i = 0; i < all->count; i++) {
        ice_cache_call *call = &all->call[i];
        const size_t own = call->tiles ? scratch_bytes(call) : 0;
        call->parts = call->tiles ? parts_of(call) : 1;
        if (own > bytes) bytes = own;
        if (call->parts > all->max_parts) all->max_parts = call->parts;
    }
    for (int64_t i = 0; i < all->count && status == ICECORE_OK; i++)
        if (all->call[i].parts > 1) status = begin_splits(&all->call[i]);
    if (status == ICECORE_OK) status = attend_tasks(all, bytes);
    for (int64_t i = 0; i < all->count; i++) {
        ice_free(all->call[i].split);
        all->call[i].split = NULL;
    }
    return status;
}

static icecore_tensor rows_of(const ice_open_rows *r, int values) {
    const int64_t width = values ? r->value_dim : r->dim;
    return (icecore_tensor){values ? ice_open_value(r, 0, 0) : ice_open_key(r, 0, 0), 0, r->capacity * width, width};
}

/* ---- Calls ---- */

/* A request's part of one cache, behind that of `before` rows of other caches. */
static icecore_attention part_of(const icecore_attention *p, int64_t entry, icecore_rows rows, int64_t before) {
    icecore_attention part = *p;
    part.queries = rows.count;
    if (rows.count && p->query.data) part.query.data = ice_address(&p->query, p->dtype, entry, 0, rows.first);
    if (rows.count && p->out.data) part.out.data = ice_address(&p->out, p->dtype, entry, 0, rows.first);
    if (p->lse) part.lse = p->lse + before * p->query_heads;
    return part;
}

static icecore_report report_part(const icecore_report *r, int64_t heads, int64_t entry, int64_t before) {
    const int64_t row = before * heads, head = entry * heads;
    return (icecore_report){
        .near_count = r->near_count ? r->near_count + row : NULL,
        .captured_mass = r->captured_mass ? r->captured_mass + row : NULL,
        .missed_bound = r->missed_bound ? r->missed_bound + row : NULL,
        .summaries = r->summaries ? r->summaries + row : NULL,
        .error = r->error ? r->error + head : NULL,
        .standard_error = r->standard_error ? r->standard_error + head : NULL,
        .error_rows = r->error_rows ? r->error_rows + head : NULL,
    };
}

/* With what the cache has; checks without changing anything. */
static icecore_status check_call(ice_cache_call *call, icecore_cache *c, const icecore_near_far *options) {
    const icecore_cache_options *o = &c->options;
    icecore_attention *p = &call->problem;
    call->cache = c;
    call->options = (icecore_near_far){.near_keys = o->near_keys,
                                       .tolerance = o->tolerance,
                                       .head_tolerance = options->head_tolerance,
                                       .head_threshold = options->head_threshold};
    call->by_tolerance = ice_is_measuring(&call->options);
    call->by_threshold = ice_by_threshold(&call->options);
    p->batch = 1;
    p->key_heads = o->heads;
    p->keys = c->length;
    p->dim = o->dim;
    p->value_dim = o->value_dim;
    p->key_dtype = ice_open_dtype(o, c->offset);
    p->causal = 1;
    p->window_left = p->window_right = -1;
    p->sinks = 0;
    p->ranges = NULL;
    p->mask_kind = ICECORE_MASK_NONE;
    if (c->open) {
        p->key = rows_of(c->open, 0);
        p->value = rows_of(c->open, 1);
    }
    const icecore_status status = ice_check_problem(p);
    call->position = c->length;
    if (status != ICECORE_OK || ice_is_empty(p)) return status;
    call->position = c->length - p->queries;
    if (call->position < 0 || (p->alibi_slopes && ice_cache_max_sealed(c)) ||
        ice_cache_max_sealed(c) * o->block > call->position + 1 ||
        !ice_all_positive(options->head_tolerance, p->query_heads) ||
        !ice_all_positive(options->head_threshold, p->query_heads))
        return ICECORE_ERROR_VALUE;
    return ICECORE_OK;
}

static icecore_status begin_call(ice_cache_call *call) {
    icecore_cache *c = call->cache;
    if (call->position == c->length) return ICECORE_OK;
    const icecore_status status = ice_queries_begin(c, ice_group(&call->problem));
    if (status == ICECORE_OK && call->options.head_threshold && !c->queries.known) ice_cache_take_thresholds(call);
    return status;
}

/* Plans the next block, if one is left. */
static void begin_block(ice_cache_call *call) {
    icecore_cache *c = call->cache;
    icecore_attention *p = &call->problem;
    const int64_t block = c->options.block, first = c->length - p->queries;
    const int64_t end = ice_min((call->position / block + 1) * block, c->length);
    call->first_query = call->position - first;
    call->end_query = end - first;
    call->tiles = ((call->end_query - call->first_query) * ice_group(p) + ICE_PANEL - 1) / ICE_PANEL;
    if (!call->tiles) return;
    call->last = end == c->length;
    call->blocks = ice_max(ice_sealed_blocks(call->position, block), c->sealed);
    p->key = rows_of(c->open, 0); /* they may move when blocks have been sealed */
    p->value = rows_of(c->open, 1);
    call->sinks = *p;
    if (c->sinks) {
        call->sinks.key = rows_of(c->sinks, 0);
        call->sinks.value = rows_of(c->sinks, 1);
    }
    ice_cache_plan_measuring(call);
}

static icecore_status end_block(ice_cache_call *call) {
    icecore_cache *c = call->cache;
    const icecore_attention *p = &call->problem;
    const int64_t count = call->end_query - call->first_query;
    if (!call->tiles) return ICECORE_OK;
    if (call->measuring) ice_cache_note_measuring(call);
    if (call->blocks > c->sealed) ice_cache_sealed(c, call->blocks);
    icecore_tensor queries = p->query;
    queries.data = ice_address(&p->query, p->dtype, 0, 0, call->first_query);
    const icecore_status status = ice_queries_note(c, p->dtype, queries, call->position, count);
    call->position += count;
    return status;
}

static icecore_status run(attend_calls *all) {
    icecore_status status = ICECORE_OK;
    for (int64_t i = 0; i < all->count && status == ICECORE_OK; i++) status = begin_call(&all->call[i]);
    while (status == ICECORE_OK) {
        all->max_tiles = 0;
        for (int64_t i = 0; i < all->count; i++) {
            begin_block(&all->call[i]);
            if (all->call[i].tiles > all->max_tiles) all->max_tiles = all->call[i].tiles;
        }
        if (!all->max_tiles) break;
        status = attend_blocks(all);
        for (int64_t i = 0; i < all->count && status == ICECORE_OK; i++) status = end_block(&all->call[i]);
    }
    for (int64_t i = 0; i < all->count && status == ICECORE_OK; i++) ice_cache_report_errors(&all->call[i]);
    return status;
}

/* With ALiBi: over the open rows, which are all, in the order of their places; nothing is sealed or measured. */
static icecore_status attend_open(attend_calls *all) {
    icecore_status status = ICECORE_OK;
    for (int64_t i = 0; i < all->count && status == ICECORE_OK; i++)
        status = icecore_attend_exact(&all->call[i].problem);
    return status;
}

/* Whose shapes are one request's. */
static int are_alike(icecore_cache *const *caches, int64_t count) {
    const icecore_cache_options *o = &caches[0]->options;
    for (int64_t i = 1; i < count; i++) {
        const icecore_cache_options *other = &caches[i]->options;
        if (o->heads != other->heads || o->dim != other->dim || o->value_dim != other->value_dim) return 0;
    }
    return 1;
}

icecore_status icecore_cache_attend(icecore_cache *const *caches, int64_t count, const icecore_rows *rows,
                                    const icecore_attention *problem, const icecore_near_far *options,
                                    const icecore_report *report) {
    static const icecore_near_far no_options = {0};
    if (!ice_active_kernels()) return ICECORE_ERROR_ISA;
    if (count < 1 || !are_alike(caches, count)) return ICECORE_ERROR_VALUE;
    attend_calls all = {.call = ice_alloc(count, sizeof *all.call), .count = count, .heads = caches[0]->options.heads};
    if (!all.call) return ICECORE_ERROR_MEMORY;
    icecore_status status = ICECORE_OK;
    int64_t locked = 0, before = 0;
    for (int64_t i = 0; i < count && status == ICECORE_OK; i++) {
        const icecore_rows own = rows ? rows[i] : (icecore_rows){0, problem->queries};
        if (own.first < 0 || own.count < 0 || own.count > problem->queries - own.first) status = ICECORE_ERROR_VALUE;
        if (status == ICECORE_OK) status = ice_lock_write(&caches[i]->lock);
        if (status != ICECORE_OK) break;
        locked++;
        all.call[i] = (ice_cache_call){
            .problem = part_of(problem, i, own, before),
            .report = report_part(report ? report : &ice_no_report, problem->query_heads, i, before),
        };
        status = check_call(&all.call[i], caches[i], options ? options : &no_options);
        before += own.count;
    }
    if (status == ICECORE_OK) status = problem->alibi_slopes ? attend_open(&all) : run(&all);
    while (locked > 0) ice_unlock(&caches[--locked]->lock);
    ice_free(all.call);
    return status;
}
