/* Near/far attention (the treecode of icecore.h, one level of cells).
 *
 * Keys are sealed block by block; the queries of a block, a step, see the same sealed keys.  A panel of their rows is a task:
 *   1. sinks and open blocks, exactly, by the panel kernels;
 *   2. scores of all cells, their masses and risks, a threshold of risk per row;
 *   3. the far field: the masses of unopened cells times their mean values, by the panel kernels;
 *   4. the near field: cell by cell, for each row that opened it, by the row kernels;
 *   5. the merge of both by their log-sum-exp.
 * Step 4 with far_field = 0 first picks the largest scores among the visited keys. */
#include <string.h>

#include "attention/panel.h"
#include "attention/single.h"
#include "attention/top_k.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "segment/stack.h"
#include "segment/threshold.h"

/* The queries of one block, which see the same sealed keys. */
typedef struct {
    int64_t first_query, end_query;
    int64_t blocks;            /* sealed for them; -1: one segment over all keys */
    int64_t sink_end, open_begin;   /* exact keys: [0, sink_end) and from open_begin on */
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
    const icecore_near_far *options;
    const ice_kernels *kernels;
    int64_t heads, steps;      /* heads: batch x key heads */
    step *step;                /* steps + 1: the last one only ends the task list */
    sealed *sealed;            /* steps x heads */
} near_far_call;

/* ---- Sealing ---- */

static void let_go(sealed *s) {
    if (atomic_fetch_sub(&s->holders, 1) == 1) ice_stack_free(s->stack);
}

static icecore_status build_stack(const near_far_call *call, int64_t blocks, int64_t head, const ice_stack *previous,
                                  ice_stack **stack) {
    const icecore_attention *p = call->problem;
    ice_source source = {
        .dtype = p->dtype,
        .keys = ice_address(&p->key, p->dtype, head / p->key_heads, head % p->key_heads, 0),
        .values = ice_address(&p->value, p->dtype, head / p->key_heads, head % p->key_heads, 0),
        .key_stride = p->key.row_stride,
        .value_stride = p->value.row_stride,
        .dim = p->dim,
        .value_dim = p->value_dim,
        .skip = p->sinks,
        .block = call->options->block,
        .cell_size = call->options->cell_size,
        .seed = call->options->seed,
    };
    return blocks < 0 ? ice_stack_seal_all(&source, p->keys, stack) : ice_stack_seal(&source, blocks, previous, stack);
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

/* A panel's work over the cells; memory from the task's scratch. */
typedef struct {
    const near_far_call *call;
    const ice_stack *stack;
    ice_panel panel;
    float *scores, *risk;      /* cells x ICE_PANEL */
    uint64_t *open;            /* cells */
    float *near_accumulator;   /* ICE_PANEL x value_dim */
    float *query;              /* ICE_PANEL x dim */
    float *spread;             /* ICE_PANEL: scale^2 |q|^2 */
    float *visited, *visited_copy;   /* far_field = 0: scores of a row's visited keys */
    const float **visited_value;
    float far[ICE_PANEL], dropped[ICE_PANEL];
    float far_maximum[ICE_PANEL];    /* what `far` is relative to, log2 */
    ice_single near_field[ICE_PANEL];
    int64_t near_count[ICE_PANEL];
} tile;

static char *after(char **scratch, size_t bytes) {
    char *taken = *scratch;
    *scratch += ice_round_up(bytes);
    return taken;
}

static size_t tile_bytes(const near_far_call *call) {
    const icecore_attention *p = call->problem;
    size_t cells = (size_t)ice_stack_most_cells(p->keys, call->options->cell_size);
    size_t keys = call->options->far_field ? 0 : (size_t)p->keys;
    size_t lanes = (size_t)(p->dim + p->value_dim + 1) * ICE_PANEL * sizeof(float);
    return ice_round_up(sizeof(tile)) + ice_panel_bytes(p) + cells * (2 * ICE_PANEL * sizeof(float) + sizeof(uint64_t)) + lanes +
           keys * (2 * sizeof(float) + sizeof(float *)) + 12 * ICE_ALIGNMENT;
}

static tile *lay_out_tile(const near_far_call *call, const ice_stack *stack, char *scratch, char **rest) {
    const icecore_attention *p = call->problem;
    size_t cells = (size_t)stack->cells, keys = call->options->far_field ? 0 : (size_t)stack->keys;
    tile *t = (tile *)after(&scratch, sizeof *t);
    t->call = call;
    t->stack = stack;
    t->scores = (float *)after(&scratch, cells * ICE_PANEL * sizeof(float));
    t->risk = (float *)after(&scratch, cells * ICE_PANEL * sizeof(float));
    t->open = (uint64_t *)after(&scratch, cells * sizeof(uint64_t));
    t->near_accumulator = (float *)after(&scratch, (size_t)p->value_dim * ICE_PANEL * sizeof(float));
    t->query = (float *)after(&scratch, (size_t)p->dim * ICE_PANEL * sizeof(float));
    t->spread = (float *)after(&scratch, ICE_PANEL * sizeof(float));
    t->visited = (float *)after(&scratch, keys * sizeof(float));
    t->visited_copy = (float *)after(&scratch, keys * sizeof(float));
    t->visited_value = (const float **)after(&scratch, keys * sizeof(float *));
    *rest = scratch;
    return t;
}

/* Step 2: which cells each row opens.  Leaves masses in t->scores (0 where opened) and bits in t->open. */
static void choose_cells(tile *t) {
    const icecore_near_far *options = t->call->options;
    const ice_kernels *kernels = t->call->kernels;
    ice_panel *panel = &t->panel;
    const ice_stack *stack = t->stack;
    float threshold[ICE_PANEL];
    memcpy(t->far_maximum, panel->maximum, sizeof t->far_maximum);
    int64_t c = 0;
    for (int level = 0; level < stack->levels; level++) {
        const icecore_segment *s = stack->level[level].segment;
        if (!s) continue;
        kernels->scores(panel->queries, s->dim, panel->lanes, s->mean_key, s->dim, s->cells, t->scores + c * ICE_PANEL);
        kernels->cell_maximum(t->scores + c * ICE_PANEL, s->cells, panel->lanes, s->log2_count, t->far_maximum);
        c += s->cells;
    }
    c = 0;
    for (int level = 0; level < stack->levels; level++) {
        const icecore_segment *s = stack->level[level].segment;
        if (!s) continue;
        kernels->cell_risk(t->scores + c * ICE_PANEL, s->cells, panel->lanes, s->log2_count, s->variance, t->spread,
                           t->far_maximum, t->risk + c * ICE_PANEL);
        c += s->cells;
    }
    int64_t wanted = options->far_field ? options->near_keys : options->visit;
    if (wanted >= stack->keys)
        for (int lane = 0; lane < ICE_PANEL; lane++) threshold[lane] = 0.0f;
    else
        ice_risk_threshold(kernels, t->risk, stack->cells, panel->lanes, stack->count, wanted, threshold);
    kernels->open_cells(t->scores, t->risk, stack->cells, panel->lanes, threshold, t->open, t->far);
}

/* Step 3: the panel's state moves to the cells' maximum and takes in the unopened cells. */
static void add_far_field(tile *t) {
    const ice_kernels *kernels = t->call->kernels;
    ice_panel *panel = &t->panel;
    float one[ICE_PANEL];
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        float before = panel->maximum[lane];
        panel->correction[lane] = before == -INFINITY ? 1.0f : exp2f(before - t->far_maximum[lane]);
        panel->sum[lane] = panel->sum[lane] * panel->correction[lane] + t->far[lane];
        panel->maximum[lane] = t->far_maximum[lane];
        one[lane] = 1.0f;
    }
    const float *correction = panel->correction;
    int64_t c = 0;
    for (int level = 0; level < t->stack->levels; level++) {
        const icecore_segment *s = t->stack->level[level].segment;
        if (!s) continue;
        kernels->weighted_sum(t->scores + c * ICE_PANEL, s->cells, panel->lanes, s->mean_value, s->value_dim, s->value_dim,
                              correction, panel->accumulator);
        correction = one;
        c += s->cells;
    }
}

/* Step 4: the keys of opened cells, cell by cell so that a cell's rows stay in cache for all queries that opened it. */
static void add_near_field(tile *t) {
    const icecore_attention *p = t->call->problem;
    int64_t c = 0;
    for (int level = 0; level < t->stack->levels; level++) {
        const icecore_segment *s = t->stack->level[level].segment;
        for (int64_t i = 0; s && i < s->cells; i++, c++) {
            int64_t first = s->offset[i], count = s->offset[i + 1] - first;
            for (uint64_t lanes = t->open[c]; lanes; lanes &= lanes - 1) {
                int lane = __builtin_ctzll(lanes);
                if (lane >= t->panel.lanes) break;
                ice_single_attend_run(&t->near_field[lane], t->call->kernels, t->query + lane * p->dim, p->dim, p->value_dim,
                                      s->keys + first * s->dim, s->values + first * s->value_dim, count);
                t->near_count[lane] += count;
            }
        }
    }
}

/* Step 4 with far_field = 0, for one row: the near_keys largest scores of the visited keys; the rest of them is counted as dropped. */
static void add_largest(tile *t, int lane) {
    const icecore_attention *p = t->call->problem;
    const ice_kernels *kernels = t->call->kernels;
    ice_single *state = &t->near_field[lane];
    int64_t visited = 0, c = 0;
    for (int level = 0; level < t->stack->levels; level++) {
        const icecore_segment *s = t->stack->level[level].segment;
        for (int64_t i = 0; s && i < s->cells; i++, c++) {
            if (!((t->open[c] >> lane) & 1)) continue;
            int64_t first = s->offset[i], count = s->offset[i + 1] - first;
            kernels->row_scores(t->query + lane * p->dim, p->dim, ICECORE_FLOAT32, s->keys + first * s->dim, s->dim, count,
                                t->visited + visited);
            for (int64_t j = 0; j < count; j++) {
                float score = t->visited[visited];
                t->visited_copy[visited] = score != score ? INFINITY : score;   /* a NaN is kept and shows */
                t->visited_value[visited++] = s->values + (first + j) * s->value_dim;
            }
        }
    }
    if (!visited) return;
    int64_t kept = visited;
    if (visited > t->call->options->near_keys) {
        kept = t->call->options->near_keys;
        float least = ice_kth_largest(t->visited_copy, visited, kept);
        int64_t above = 0, n = 0;
        float maximum = -INFINITY, sum = 0.0f, correction;
        for (int64_t j = 0; j < visited; j++) above += !(t->visited[j] <= least);
        int64_t ties = kept - above;   /* of the keys equal to the least, the first ones */
        for (int64_t j = 0; j < visited; j++) {
            float score = t->visited[j];
            if (!(score < least) && (score != least || ties-- > 0)) {
                t->visited_value[n] = t->visited_value[j];
                t->visited[n++] = score;
            } else {
                t->visited_copy[j - n] = score;
            }
        }
        kernels->row_softmax(t->visited_copy, visited - n, &maximum, &sum, &correction);
        t->dropped[lane] = sum * exp2f(maximum - t->far_maximum[lane]);
        kept = n;
    }
    float correction;
    kernels->row_softmax(t->visited, kept, &state->maximum, &state->sum, &correction);
    for (int64_t j = 0; j < kept; j++)
        kernels->row_weighted_sum(t->visited + j, 1, ICECORE_FLOAT32, t->visited_value[j], p->value_dim, p->value_dim, 1.0f,
                                  state->accumulator);
    t->near_count[lane] = kept;
}

/* Step 5. */
static void finish_row(tile *t, int lane) {
    const icecore_attention *p = t->call->problem;
    const icecore_near_far *options = t->call->options;
    ice_panel *panel = &t->panel;
    ice_row row = ice_row_at(p, panel->batch, panel->key_head, panel->first_row + lane);
    ice_single *state = &t->near_field[lane];
    float accumulator[ICECORE_MAX_DIM];
    ice_panel_row(panel, lane, accumulator);
    ice_single_merge(state, p->value_dim, panel->maximum[lane], panel->sum[lane], accumulator);
    int64_t at = (row.batch * p->query_heads + row.head) * p->queries + row.query;
    if (options->near_count) options->near_count[at] = (int32_t)t->near_count[lane];
    if (options->captured_mass) {
        float not_near = t->far[lane] + t->dropped[lane];
        if (not_near > 0.0f) not_near *= exp2f(t->far_maximum[lane] - state->maximum);
        float total = options->far_field ? state->sum : state->sum + not_near;
        options->captured_mass[at] = total > 0.0f ? (total - not_near) / total : 0.0f;
    }
    ice_write_row(p, t->call->kernels, row, state->maximum, state->sum, state->accumulator);
}

static void attend_rows(const near_far_call *call, const step *now, int64_t head, int64_t number, const ice_stack *stack,
                        void *scratch) {
    const icecore_attention *p = call->problem;
    int64_t first_row = now->first_query * ice_group(p) + number * ICE_PANEL;
    int64_t rest = now->end_query * ice_group(p) - first_row;
    char *free_space;
    tile *t = lay_out_tile(call, stack, scratch, &free_space);
    ice_panel *panel = &t->panel;
    ice_panel_begin(panel, p, call->kernels, head / p->key_heads, head % p->key_heads, first_row,
                    rest < ICE_PANEL ? (int)rest : ICE_PANEL, free_space);
    memset(t->near_accumulator, 0, (size_t)p->value_dim * ICE_PANEL * sizeof(float));
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        float *query = t->query + lane * p->dim;
        double squared = 0.0;
        for (int64_t i = 0; i < p->dim; i++) {
            query[i] = panel->queries[i * ICE_PANEL + lane];
            squared += (double)query[i] * query[i];
        }
        t->spread[lane] = (float)(squared * ICE_LN_2 * ICE_LN_2);   /* back from log2 units */
        t->near_field[lane] = (ice_single){-INFINITY, 0.0f, t->near_accumulator + lane * p->value_dim};
        t->near_count[lane] = 0;
        t->far[lane] = t->dropped[lane] = 0.0f;
        t->far_maximum[lane] = -INFINITY;
    }
    ice_visible visible = ice_panel_visible(panel);
    ice_panel_attend(panel, 0, now->sink_end);
    ice_panel_attend(panel, now->open_begin, visible.end);
    if (stack->cells) {
        choose_cells(t);
        if (call->options->far_field) {
            add_far_field(t);
            add_near_field(t);
        } else {
            for (int lane = 0; lane < panel->lanes; lane++) add_largest(t, lane);
        }
    }
    for (int lane = 0; lane < panel->lanes; lane++) finish_row(t, lane);
}

static void attend_task(near_far_call *call, int64_t number, int64_t index, void *scratch) {
    int64_t head = index % call->heads;
    sealed *seen = &call->sealed[number * call->heads + head];
    if (scratch) {
        ice_wait(&seen->ready);
        if (seen->status == ICECORE_OK)
            attend_rows(call, &call->step[number], head, index / call->heads, seen->stack, scratch);
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
    if (low < call->steps && offset < call->heads)
        seal_task(call, low, offset, !scratch);
    else
        attend_task(call, low - 1, low < call->steps ? offset - call->heads : offset, scratch);
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
            now->open_begin = now->blocks * block;
            if (now->open_begin <= p->sinks) now->open_begin = 0;
            now->sink_end = now->open_begin ? p->sinks : 0;
        } else {
            now->end_query = p->queries;
            now->blocks = -1;
            now->sink_end = p->sinks < p->keys ? p->sinks : p->keys;
            now->open_begin = p->keys;
        }
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

icecore_status icecore_attend_near_far(const icecore_attention *problem, const icecore_near_far *options) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    if (problem->window != -1 || problem->mask_kind != ICECORE_MASK_NONE || options->near_keys < 1 || options->cell_size < 1 ||
        (problem->causal && options->block < 1) || (!options->far_field && options->visit < options->near_keys))
        return ICECORE_ERROR_VALUE;
    if (ice_is_empty(problem)) return ICECORE_OK;
    /* a block longer than everything never ends; clipped, so that its end cannot overflow */
    icecore_near_far clipped = *options;
    if (clipped.block > problem->keys + problem->queries) clipped.block = problem->keys + problem->queries;
    near_far_call call = {.problem = problem, .options = &clipped, .kernels = ice_active_kernels(),
                          .heads = problem->batch * problem->key_heads, .steps = count_steps(problem, clipped.block)};
    call.step = ice_alloc(call.steps + 1, sizeof *call.step);
    call.sealed = ice_alloc(call.steps * call.heads, sizeof *call.sealed);
    if (call.step && call.sealed) {
        int64_t tasks = plan_steps(&call);
        status = ice_parallel_for(tasks, problem->threads, tile_bytes(&call), run_task, &call);
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
