/* Near/far attention: sealing, measuring and attending as one list of tasks.
 *
 * Keys are sealed block by block; the queries of a block, a step, see the same sealed keys.  A tile of their rows is a
 * task (near_far_tile.h).  By tolerance, some rows of a step are measured (measure.h) when the next one is sealed, and
 * say how far that one's open. */
#include <string.h>

#include "attention/exact_heads.h"
#include "attention/query_moments.h"
#include "attention/rounding.h"
#include "base/parallel.h"

/* One head's stack at one step.  Whoever needs it holds it; the last to let go frees it. */
typedef struct {
    ice_stack *stack;
    ice_rule *rules; /* of the key head's query heads; NULL: by near_keys */
    int lags;        /* all its query heads are exact: the stack is that of an earlier step */
    icecore_status status;
    atomic_int ready, holders;
} sealed;

typedef struct {
    const icecore_attention *problem;
    const icecore_attention *given;  /* by the caller, of his types */
    const icecore_attention *source; /* whose keys and values are sealed */
    const float *centre;             /* of each head, which `problem`'s keys lack; NULL: nothing */
    uint16_t *packed;                /* all heads, packed; NULL: each panel packs what it reads */
    const icecore_near_far *options;
    const icecore_report *report;
    const ice_kernels *kernels;
    int64_t heads, steps;                       /* heads: batch x key heads */
    ice_step *step;                             /* steps + 1: the last one only ends the task list */
    sealed *sealed;                             /* steps x heads */
    ice_rule *rules;                            /* steps x heads x query heads of a key head; NULL: by near_keys */
    ice_measured *measured;                     /* heads x query heads of a key head; NULL: nothing is measured */
    atomic_llong sealing, attending, measuring; /* nanoseconds */
} near_far_call;

static int64_t now(void) { return (int64_t)(1e9 * ice_seconds()); }

/* ---- Measuring ---- */

/* Measures rows of a step, which become the rules of the next. */
static void measure(near_far_call *call, const ice_step *s, const ice_stack *stack, int64_t head, ice_rule *rules,
                    void *scratch) {
    const icecore_attention *p = call->problem;
    if (!s->measured) return;
    const int64_t begin = now(), queries = s->end_query - s->first_query, stride = queries / s->measured;
    const int64_t first = s->end_query - 1 - (s->measured - 1) * stride;
    int64_t position[ICE_MAX_PANELS_MEASURED * ICE_PANEL];
    for (int64_t i = 0; i < s->measured; i++) position[i] = p->keys - p->queries + first + i * stride;
    ice_sample sample = {
        .problem = p,
        .given = call->given,
        .query = p->query,
        .position = position,
        .count = s->measured,
        .options = call->options,
        .kernels = call->kernels,
        .stack = stack,
        .exact = s->exact,
        .batch = head / p->key_heads,
        .key_head = head % p->key_heads,
        .stands_for = (double)s->stands_for / (double)s->measured,
        .renew = s->renews,
        .fading = ICE_FADING,
    };
    sample.query.data = ice_address(&p->query, p->dtype, 0, 0, first);
    sample.exact.packed = ice_packed_head_of(p, call->packed, head);
    sample.query.row_stride *= stride;
    ice_measure(&sample, call->measured + head * ice_group(p), rules, scratch);
    atomic_fetch_add(&call->measuring, now() - begin);
}

/* ---- Sealing ---- */

static void let_go(sealed *s) {
    if (atomic_fetch_sub(&s->holders, 1) == 1) ice_stack_free(s->stack);
}

static int64_t cell_size_of(const icecore_near_far *options, int64_t key_head) {
    return options->head_cell_size ? options->head_cell_size[key_head] : options->cell_size;
}

static int64_t min_cell_size(const icecore_near_far *options, int64_t key_heads) {
    int64_t minimum = cell_size_of(options, 0);
    for (int64_t h = 1; h < key_heads; h++) minimum = ice_min(minimum, cell_size_of(options, h));
    return minimum;
}

/* Whose queries a segment's metric is made of. */
typedef struct {
    const near_far_call *call;
    int64_t head;
} metric_source;

static int find_moments(const void *context, int64_t first, int64_t end, float *moments) {
    const metric_source *own = context;
    const near_far_call *call = own->call;
    const icecore_attention *p = call->problem;
    const int64_t batch = own->head / p->key_heads, key_head = own->head % p->key_heads, offset = p->keys - p->queries;
    int64_t first_query = first - offset, end_query = end - offset;
    if (call->options->moments) {
        memcpy(moments, call->options->moments + key_head * p->dim * p->dim,
               (size_t)(p->dim * p->dim) * sizeof *moments);
        return 1;
    }
    if (!p->causal) {
        first_query = 0;
        end_query = p->queries;
    } else if (end_query <= 0 && call->measured && !call->options->head_threshold) {
        first_query = 0; /* rows of the first step are exact */
        end_query = call->step[0].end_query;
    }
    first_query = ice_max(first_query, 0);
    end_query = ice_min(end_query, p->queries);
    if (first_query >= end_query) return 0;
    const ice_query_range range = {p, call->kernels, batch, key_head, first_query, end_query};
    return ice_find_query_moments(&range, moments);
}

static icecore_status build_stack(const near_far_call *call, int64_t blocks, int64_t head, const ice_stack *previous,
                                  ice_stack **stack) {
    const metric_source moments = {call, head};
    const icecore_attention *p = call->source;
    const icecore_dtype stored = ice_panel_dtype(call->problem, call->kernels);
    ice_source source = {
        .dtype = p->key_dtype,
        .storage = stored,
        .means = stored,
        .keys = ice_key_at(p, head, 0),
        .values = ice_value_at(p, head, 0),
        .key_stride = p->key.row_stride,
        .value_stride = p->value.row_stride,
        .dim = p->dim,
        .value_dim = p->value_dim,
        .centre = call->centre && call->source == call->given ? call->centre + head * p->dim : NULL,
        .skip = p->sinks,
        .block = call->options->block,
        .cell_size = cell_size_of(call->options, head % p->key_heads),
        .moments = find_moments,
        .moments_context = &moments,
        .seed = call->options->seed,
    };
    return blocks < 0 ? ice_stack_seal_all(&source, p->keys, stack)
                      : ice_stack_seal(&source, blocks, previous, NULL, 0, stack);
}

static int all_exact(const ice_rule *rules, int64_t group) {
    int all = rules != NULL;
    for (int64_t i = 0; i < group && all; i++) all &= rules[i].exact != 0;
    return all;
}

static void seal_task(near_far_call *call, int64_t number, int64_t head, void *scratch) {
    sealed *own = &call->sealed[number * call->heads + head], *previous = number ? own - call->heads : NULL;
    if (previous) ice_wait(&previous->ready);
    own->status = previous ? previous->status : ICECORE_OK;
    if (!scratch) own->status = ICECORE_INTERRUPTED;
    const size_t rules = (size_t)ice_group(call->problem) * sizeof *own->rules;
    if (own->rules && previous) memcpy(own->rules, previous->rules, rules);
    const ice_step *own_step = &call->step[number];
    if (own->status == ICECORE_OK && call->measured && previous && !previous->lags)
        measure(call, own_step - 1, previous->stack, head, own->rules, scratch);
    /* heads that are exact look again when there are twice as many keys */
    own->lags = own->status == ICECORE_OK && previous && previous->stack->nodes &&
                all_exact(own->rules, ice_group(call->problem)) && !own_step->renews;
    if (own->status == ICECORE_OK && own->lags) own->status = ice_stack_share(previous->stack, &own->stack);
    else if (own->status == ICECORE_OK)
        own->status = build_stack(call, own_step->blocks, head, previous ? previous->stack : NULL, &own->stack);
    if (own->status == ICECORE_OK && call->measured && !call->problem->causal)
        measure(call, own_step, own->stack, head, own->rules, scratch);
    ice_signal(&own->ready);
    if (previous) let_go(previous);
    let_go(own);
}

/* ---- Attending ---- */

static void attend_task(near_far_call *call, int64_t number, int64_t index, void *scratch) {
    const int64_t head = index % call->heads, tile = index / call->heads;
    sealed *seen = &call->sealed[number * call->heads + head];
    if (scratch) {
        ice_wait(&seen->ready);
        const ice_step *now = &call->step[number];
        const int64_t group = ice_group(call->problem), first = now->first_query * group + tile * ICE_PANEL;
        const int rounded_first = now->is_first && call->centre; /* also where nothing is measured */
        ice_head_view view = {.problem = call->problem,
                              .options = call->options,
                              .report = call->report,
                              .rules = rounded_first ? NULL : seen->rules,
                              .kernels = call->kernels,
                              .stack = seen->stack,
                              .exact = now->exact,
                              .head = head};
        if (call->centre) view.exact.centre = call->centre + head * call->problem->dim;
        view.exact.packed = ice_packed_head_of(call->problem, call->packed, head);
        if (seen->status == ICECORE_OK && !rounded_first && !all_exact(seen->rules, group))
            ice_near_far_attend(&view, first, now->end_query * group, scratch);
        if (seen->status == ICECORE_OK && (rounded_first || seen->rules))
            ice_attend_exact_heads(&view, call->given, now, tile, scratch);
    }
    let_go(seen);
}

/* ---- The task list ---- */

/* Tasks in order: seal step 0; then for each step, seal the next one and attend in this one.  Sealing is thus ahead of
 * the queries that need it, and no thread waits at the end of a block. */
static void run_task(void *context, int64_t index, void *scratch) {
    near_far_call *call = context;
    int64_t low = 0, high = call->steps + 1; /* the step whose tasks include `index`, or the end of the list */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (call->step[middle].first_task <= index) low = middle;
        else high = middle;
    }
    int64_t offset = index - call->step[low].first_task;
    int sealing = low < call->steps && offset < call->heads;
    const int64_t begin = now();
    if (sealing) seal_task(call, low, offset, scratch);
    else attend_task(call, low - 1, low < call->steps ? offset - call->heads : offset, scratch);
    atomic_fetch_add(sealing ? &call->sealing : &call->attending, now() - begin);
}

/* Fills in the steps; returns the number of tasks. */
static int64_t plan_steps(near_far_call *call) {
    ice_schedule schedule = ice_schedule_begin(call->problem, call->options);
    int64_t task = 0, tiles = 0;
    for (ice_step *now = call->step; ice_schedule_next(&schedule, now); now++) {
        now->first_task = task;
        task += call->heads * (1 + tiles);
        tiles = now->tiles;
    }
    call->step[call->steps].first_task = task;
    for (int64_t i = 0; i < call->steps; i++)
        for (int64_t head = 0; head < call->heads; head++) {
            sealed *s = &call->sealed[i * call->heads + head];
            s->stack = NULL;
            s->rules = call->rules ? call->rules + (i * call->heads + head) * ice_group(call->problem) : NULL;
            atomic_init(&s->ready, 0);
            /* its own sealing, the next step's, and its queries */
            atomic_init(&s->holders, (int)(1 + (i + 1 < call->steps) + call->step[i].tiles));
        }
    return task + call->heads * tiles;
}

/* ---- The call ---- */

/* Whether anything but sealing reads keys and values: exact heads do, which only measuring finds.  Else they are not
 * copied. */
static int reads_keys(const near_far_call *call) {
    const icecore_attention *p = call->given;
    return p->causal || p->sinks > 0 || ice_hides_keys(p) || ice_is_measuring(call->options);
}

/* Before anything is measured. */
static void begin_rules(near_far_call *call) {
    const int64_t group = ice_group(call->problem);
    const icecore_near_far *options = call->options;
    for (int64_t head = 0; call->rules && head < call->heads; head++)
        for (int64_t i = 0; i < group; i++) {
            const float *given =
                options->head_threshold ? options->head_threshold + head % call->problem->key_heads * group + i : NULL;
            call->rules[head * group + i] =
                (ice_rule){.threshold = given ? *given : 1.0f, .exact = given ? 0 : ICE_UNKNOWN};
        }
}

static void report_call(const near_far_call *call) {
    const icecore_report *report = call->report;
    const ice_error_sums none = {0};
    for (int64_t i = 0; i < call->heads * ice_group(call->problem); i++)
        ice_report_error(report, i, call->measured ? &call->measured[i].tested : &none);
    if (!report->seconds) return;
    report->seconds[0] = 1e-9 * (double)(call->sealing - call->measuring);
    report->seconds[1] = 1e-9 * (double)call->attending;
    report->seconds[2] = 1e-9 * (double)call->measuring;
}

static icecore_status attend(near_far_call *call) {
    const icecore_attention *problem = call->problem;
    const icecore_near_far *options = call->options;
    const int64_t query_heads = problem->batch * problem->query_heads;
    const int measuring = ice_is_measuring(options);
    icecore_status status = ICECORE_OK;
    call->heads = problem->batch * problem->key_heads;
    call->steps = ice_count_steps(problem, options);
    call->step = ice_alloc(call->steps + 1, sizeof *call->step);
    call->sealed = ice_alloc(call->steps * call->heads, sizeof *call->sealed);
    if (ice_by_threshold(options)) call->rules = ice_alloc(call->steps * query_heads, sizeof *call->rules);
    if (measuring) call->measured = ice_alloc(query_heads, sizeof *call->measured);
    if (call->step && call->sealed && (call->rules || !ice_by_threshold(options)) && (call->measured || !measuring)) {
        int64_t tasks = plan_steps(call);
        begin_rules(call);
        if (measuring) memset(call->measured, 0, (size_t)query_heads * sizeof *call->measured);
        const int64_t cell_size = min_cell_size(options, problem->key_heads);
        int64_t nodes = ice_stack_max_nodes(problem->keys, cell_size);
        const int64_t levels = problem->causal ? ice_stack_max_levels(problem->keys, options->block) : 1;
        int64_t measured = 0; /* queries at once */
        for (int64_t i = 0; i < call->steps && measuring; i++) measured = ice_max(measured, call->step[i].measured);
        const size_t bytes = measured ? ice_measure_bytes(problem, levels, nodes, measured)
                                      : ice_selection_bytes(problem, levels, nodes);
        status = ice_parallel_for(tasks, problem->threads, bytes, run_task, call);
        report_call(call);
        /* a failure passes from step to step, so the last one tells */
        for (int64_t head = 0; head < call->heads && status == ICECORE_OK; head++)
            status = call->sealed[(call->steps - 1) * call->heads + head].status;
    } else {
        status = ICECORE_ERROR_MEMORY;
    }
    ice_free(call->step);
    ice_free(call->sealed);
    ice_free(call->rules);
    ice_free(call->measured);
    return status;
}

static int are_right(const icecore_attention *p, const icecore_near_far *o) {
    if (p->key_heads > 0 && min_cell_size(o, p->key_heads) < 1) return 0;
    if (p->keys > INT32_MAX) return 0; /* their numbers are of 32 bits */
    if (ice_has_window(p) || p->alibi_slopes) return 0;
    return o->tolerance >= 0.0f && o->near_price >= 0.0f && o->node_price >= 0.0f && o->rounded_price >= 0.0f &&
           (!p->causal || o->block >= 1) && (ice_by_threshold(o) || o->near_keys >= 1) &&
           ice_all_positive(o->head_tolerance, p->query_heads) && ice_all_positive(o->head_threshold, p->query_heads) &&
           ice_are_moments(o->moments, p->key_heads, p->dim);
}

/* Where panels multiply bfloat16 and keys are of another type, these are rounded, less a centre if they have one. */
static icecore_status round_keys(near_far_call *call, ice_rounded *rounded) {
    const icecore_attention *given = call->given;
    if (!call->options->rounding || !ice_can_be_rounded(given, call->kernels)) return ICECORE_OK;
    const icecore_status status = ice_round(given, call->kernels, call->options->block, reads_keys(call), rounded);
    call->centre = rounded->centre;
    if (given->causal || given->sinks > 0 || ice_hides_keys(given)) call->source = call->problem;
    return status;
}

static icecore_status pack_heads(near_far_call *call) {
    const icecore_attention *p = call->problem;
    const int64_t heads = p->batch * p->key_heads;
    if (!reads_keys(call) || p->keys == 0 || ice_panel_dtype(p, call->kernels) != ICECORE_BFLOAT16) return ICECORE_OK;
    call->packed = ice_alloc(heads * ice_packed_numbers(p), sizeof *call->packed);
    return call->packed ? ice_pack_heads(p, call->kernels, 0, heads, call->packed) : ICECORE_ERROR_MEMORY;
}

icecore_status icecore_attend_near_far(const icecore_attention *problem, const icecore_near_far *options,
                                       const icecore_report *report) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    if (!are_right(problem, options)) return ICECORE_ERROR_VALUE;
    if (ice_is_empty(problem)) return ICECORE_OK;
    icecore_near_far clipped = *options;
    clipped.block = ice_clipped_block(problem, options->block);
    ice_rounded rounded = {*problem, NULL, NULL};
    near_far_call call = {.problem = &rounded.problem,
                          .given = problem,
                          .source = problem,
                          .options = &clipped,
                          .report = report ? report : &ice_no_report,
                          .kernels = ice_active_kernels()};
    status = round_keys(&call, &rounded);
    if (status == ICECORE_OK) status = pack_heads(&call);
    if (status == ICECORE_OK) status = attend(&call);
    ice_free(call.packed);
    ice_free_rounded(&rounded);
    return status;
}
