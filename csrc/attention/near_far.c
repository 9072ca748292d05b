/* Near/far attention: sealing and attending as one list of tasks.
 *
 * Keys are sealed block by block; the queries of a block, a step, see the same sealed keys.  A panel of their rows is a task
 * (treecode.h). */
#include <string.h>
#include <time.h>

#include "attention/treecode.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "base/parallel.h"

/* The queries of one block, which see the same sealed keys. */
typedef struct {
    int64_t first_query, end_query;
    int64_t blocks;            /* sealed for them; -1: one segment over all keys */
    ice_exact_keys exact;
    int64_t tiles;             /* panels of rows for each head */
    int64_t first_task;        /* of sealing for this step, then of attending in the step before */
} step;

/* One head's stack at one step.  Whoever needs it holds it; the last to let go frees it. */
typedef struct {
    ice_stack *stack;
    icecore_status status;
    atomic_int ready, holders;
} sealed;

typedef struct {
    const icecore_attention *problem;
    const icecore_attention *source;   /* whose keys and values are sealed */
    const icecore_near_far *options;
    const ice_kernels *kernels;
    int64_t heads, steps;      /* heads: batch x key heads */
    step *step;                /* steps + 1: the last one only ends the task list */
    sealed *sealed;            /* steps x heads */
    atomic_llong sealing, attending;   /* nanoseconds */
} near_far_call;

/* ---- Sealing ---- */

static void let_go(sealed *s) {
    if (atomic_fetch_sub(&s->holders, 1) == 1) ice_stack_free(s->stack);
}

static int64_t cell_size_of(const icecore_near_far *options, int64_t key_head) {
    return options->head_cell_size ? options->head_cell_size[key_head] : options->cell_size;
}

static int64_t least_cell_size(const icecore_near_far *options, int64_t key_heads) {
    int64_t least = cell_size_of(options, 0);
    for (int64_t h = 1; h < key_heads; h++)
        if (cell_size_of(options, h) < least) least = cell_size_of(options, h);
    return least;
}

static icecore_status build_stack(const near_far_call *call, int64_t blocks, int64_t head, const ice_stack *previous,
                                  ice_stack **stack) {
    const icecore_attention *p = call->source;
    const icecore_dtype stored = ice_panel_dtype(call->problem, call->kernels);
    ice_source source = {
        .dtype = p->key_dtype,
        .storage = stored,
        .means = stored,
        .keys = ice_address(&p->key, p->key_dtype, head / p->key_heads, head % p->key_heads, 0),
        .values = ice_address(&p->value, p->key_dtype, head / p->key_heads, head % p->key_heads, 0),
        .key_stride = p->key.row_stride,
        .value_stride = p->value.row_stride,
        .dim = p->dim,
        .value_dim = p->value_dim,
        .skip = p->sinks,
        .block = call->options->block,
        .cell_size = cell_size_of(call->options, head % p->key_heads),
        .metric = call->options->metric ? call->options->metric + head % p->key_heads * p->dim : NULL,
        .seed = call->options->seed,
    };
    return blocks < 0 ? ice_stack_seal_all(&source, p->keys, stack) : ice_stack_seal(&source, blocks, previous, NULL, 0, stack);
}

static void seal_task(near_far_call *call, int64_t number, int64_t head, int cancelled) {
    sealed *own = &call->sealed[number * call->heads + head], *previous = number ? own - call->heads : NULL;
    if (previous) ice_wait(&previous->ready);
    own->status = cancelled ? ICECORE_INTERRUPTED : previous ? previous->status : ICECORE_OK;
    if (own->status == ICECORE_OK)
        own->status = build_stack(call, call->step[number].blocks, head, previous ? previous->stack : NULL, &own->stack);
    ice_signal(&own->ready);
    if (previous) let_go(previous);
    let_go(own);
}

/* ---- Attending ---- */

static void attend_task(near_far_call *call, int64_t number, int64_t index, void *scratch) {
    int64_t head = index % call->heads;
    sealed *seen = &call->sealed[number * call->heads + head];
    if (scratch) {
        ice_wait(&seen->ready);
        const step *now = &call->step[number];
        int64_t group = ice_group(call->problem), first = now->first_query * group + index / call->heads * ICE_PANEL;
        int64_t rest = now->end_query * group - first;
        if (seen->status == ICECORE_OK)
            ice_treecode_attend(call->problem, call->options, call->kernels, seen->stack, now->exact, head, first,
                                rest < ICE_PANEL ? (int)rest : ICE_PANEL, scratch);
    }
    let_go(seen);
}

/* ---- The task list ---- */

/* Tasks in order: seal step 0; then for each step, seal the next one and attend in this one.  Sealing is thus ahead of the queries that
 * need it, and no thread waits at the end of a block. */
static void run_task(void *context, int64_t index, void *scratch) {
    near_far_call *call = context;
    int64_t low = 0, high = call->steps;   /* the step whose tasks include `index` */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (call->step[middle].first_task <= index) low = middle;
        else high = middle;
    }
    if (index >= call->step[call->steps].first_task) low = call->steps;
    int64_t offset = index - call->step[low].first_task;
    int sealing = low < call->steps && offset < call->heads;
    struct timespec begin, end;
    timespec_get(&begin, TIME_UTC);
    if (sealing) seal_task(call, low, offset, !scratch);
    else attend_task(call, low - 1, low < call->steps ? offset - call->heads : offset, scratch);
    timespec_get(&end, TIME_UTC);
    atomic_fetch_add(sealing ? &call->sealing : &call->attending, (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec);
}

static int64_t count_steps(const icecore_attention *p, int64_t block) {
    if (!p->causal) return 1;
    int64_t first = p->keys - p->queries, last = p->keys - 1;
    return last < 0 ? 1 : last / block - (first < 0 ? 0 : first / block) + 1;
}

/* Fills in the steps; returns the number of tasks. */
static int64_t plan_steps(near_far_call *call) {
    const icecore_attention *p = call->problem;
    const int64_t block = call->options->block, offset = p->keys - p->queries;
    int64_t query = 0, task = 0;
    for (int64_t i = 0; i < call->steps; i++) {
        step *now = &call->step[i];
        now->first_query = query;
        if (p->causal) {
            int64_t position = offset + query, number = position < 0 ? 0 : position / block;
            int64_t end = (number + 1) * block - offset;   /* the first query of the next block */
            now->end_query = end < p->queries ? end : p->queries;
            now->blocks = number > 0 ? number - 1 : 0;
            now->exact.open_begin = now->blocks * block;
            if (now->exact.open_begin <= p->sinks) now->exact.open_begin = 0;
            now->exact.sink_end = now->exact.open_begin ? p->sinks : 0;
        } else {
            now->end_query = p->queries;
            now->blocks = -1;
            now->exact.sink_end = p->sinks < p->keys ? p->sinks : p->keys;
            now->exact.open_begin = p->keys;
        }
        now->exact.sinks = p;
        query = now->end_query;
        now->tiles = ((now->end_query - now->first_query) * ice_group(p) + ICE_PANEL - 1) / ICE_PANEL;
        now->first_task = task;
        task += call->heads * (1 + (i ? call->step[i - 1].tiles : 0));
    }
    call->step[call->steps].first_task = task;
    for (int64_t i = 0; i < call->steps; i++)
        for (int64_t head = 0; head < call->heads; head++) {
            sealed *s = &call->sealed[i * call->heads + head];
            s->stack = NULL;
            atomic_init(&s->ready, 0);
            /* its own sealing, the next step's, and its queries */
            atomic_init(&s->holders, (int)(1 + (i + 1 < call->steps) + call->step[i].tiles));
        }
    return task + call->heads * call->step[call->steps - 1].tiles;
}

/* ---- Copies of keys and values, rounded to bfloat16 ---- */

typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    icecore_dtype dtype;       /* of the copies */
    char *keys, *values;
} copying;

#define COPIED_ROWS 256

static void copy_rows(const copying *c, const icecore_tensor *tensor, int64_t width, int64_t head, int64_t first, char *target) {
    const icecore_attention *p = c->problem;
    const int64_t end = first + COPIED_ROWS < p->keys ? first + COPIED_ROWS : p->keys;
    const size_t bytes = (size_t)width * ice_element_size(c->dtype);
    float buffer[ICECORE_MAX_DIM];
    for (int64_t j = first; j < end; j++) {
        const void *row = ice_address(tensor, p->key_dtype, head / p->key_heads, head % p->key_heads, j);
        if (p->key_dtype != ICECORE_FLOAT32) {
            c->kernels->to_float32(p->key_dtype, row, buffer, width);
            row = buffer;
        }
        c->kernels->from_float32(c->dtype, row, target + (size_t)(head * p->keys + j) * bytes, width);
    }
}

static void copy_task(void *context, int64_t index, void *scratch) {
    const copying *c = context;
    const icecore_attention *p = c->problem;
    const int64_t heads = p->batch * p->key_heads, head = index % heads, first = index / heads * COPIED_ROWS;
    if (!scratch) return;
    copy_rows(c, &p->key, p->dim, head, first, c->keys);
    copy_rows(c, &p->value, p->value_dim, head, first, c->values);
}

/* The same problem on copies of its keys and values. */
static icecore_status copy_problem(const icecore_attention *p, const ice_kernels *kernels, icecore_dtype dtype,
                                   icecore_attention *copied, char **copies) {
    const int64_t heads = p->batch * p->key_heads;
    const size_t element = ice_element_size(dtype);
    *copies = ice_alloc(heads * p->keys * (p->dim + p->value_dim), element);
    if (!*copies) return ICECORE_ERROR_MEMORY;
    copying c = {p, kernels, dtype, *copies, *copies + (size_t)(heads * p->keys * p->dim) * element};
    *copied = *p;
    copied->key_dtype = dtype;
    copied->key = (icecore_tensor){c.keys, p->key_heads * p->keys * p->dim, p->keys * p->dim, p->dim};
    copied->value = (icecore_tensor){c.values, p->key_heads * p->keys * p->value_dim, p->keys * p->value_dim, p->value_dim};
    return ice_parallel_for((p->keys + COPIED_ROWS - 1) / COPIED_ROWS * heads, p->threads, 1, copy_task, &c);
}

/* ---- The call ---- */

/* Whether anything but sealing reads keys and values.  Else they are not copied, and cells come from keys that are not rounded yet. */
static int reads_keys(const icecore_attention *p) { return p->causal || p->sinks > 0 || p->mask_kind != ICECORE_MASK_NONE; }

static icecore_status attend(const icecore_attention *problem, const icecore_attention *source, const icecore_near_far *options,
                             const ice_kernels *kernels) {
    icecore_status status = ICECORE_OK;
    near_far_call call = {.problem = problem, .source = source, .options = options, .kernels = kernels,
                          .heads = problem->batch * problem->key_heads, .steps = count_steps(problem, options->block)};
    call.step = ice_alloc(call.steps + 1, sizeof *call.step);
    call.sealed = ice_alloc(call.steps * call.heads, sizeof *call.sealed);
    if (call.step && call.sealed) {
        int64_t tasks = plan_steps(&call);
        const int64_t cell_size = least_cell_size(options, problem->key_heads);
        int64_t nodes = ice_stack_most_nodes(problem->keys, cell_size);
        const int64_t levels = problem->causal ? ice_stack_most_levels(problem->keys, options->block) : 1;
        size_t bytes = ice_treecode_bytes(problem, options, levels, nodes);
        status = ice_parallel_for(tasks, problem->threads, bytes, run_task, &call);
        if (options->seconds) {
            options->seconds[0] = 1e-9 * (double)call.sealing;
            options->seconds[1] = 1e-9 * (double)call.attending;
        }
        /* a failure passes from step to step, so the last one tells */
        for (int64_t head = 0; head < call.heads && status == ICECORE_OK; head++)
            status = call.sealed[(call.steps - 1) * call.heads + head].status;
    } else {
        status = ICECORE_ERROR_MEMORY;
    }
    ice_free(call.step);
    ice_free(call.sealed);
    return status;
}

icecore_status icecore_attend_near_far(const icecore_attention *problem, const icecore_near_far *options) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    const int by_tolerance = ice_by_tolerance(options);
    if (problem->key_heads > 0 && least_cell_size(options, problem->key_heads) < 1) return ICECORE_ERROR_VALUE;
    if (problem->window != -1 || !(options->cell_tolerance >= 0.0f) ||
        (problem->causal && options->block < 1) || (!by_tolerance && options->near_keys < 1) || (by_tolerance && !options->far_field) ||
        (!options->far_field && options->visit < options->near_keys) || !ice_all_positive(options->head_tolerance, problem->query_heads) ||
        !ice_all_positive(options->metric, problem->key_heads * problem->dim))
        return ICECORE_ERROR_VALUE;
    if (ice_is_empty(problem)) return ICECORE_OK;
    /* a block longer than everything never ends; clipped, so that its end cannot overflow */
    icecore_near_far clipped = *options;
    if (clipped.block > problem->keys + problem->queries) clipped.block = problem->keys + problem->queries;
    const ice_kernels *kernels = ice_active_kernels();
    icecore_attention used = *problem;
    char *copies = NULL;
    if (options->rounding) used.key_dtype = ICECORE_BFLOAT16;
    const icecore_dtype dtype = ice_panel_dtype(&used, kernels);
    const icecore_attention *source = problem;
    used.key_dtype = problem->key_dtype;
    if (dtype == ICECORE_BFLOAT16 && problem->key_dtype != dtype) {
        if (reads_keys(problem)) {
            status = copy_problem(problem, kernels, dtype, &used, &copies);
            source = &used;
        } else {
            used.key_dtype = dtype;   /* what panels multiply */
            used.key.data = used.value.data = NULL;
        }
    }
    if (status == ICECORE_OK) status = attend(&used, source, &clipped, kernels);
    ice_free(copies);
    return status;
}
