/* Near/far attention (the treecode of icecore.h, one level of cells).
 *
 * Keys are sealed block by block; between two seals all queries of a block are independent tasks, one panel of rows each:
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

/* One head's segments, and its cells' numbers side by side. */
typedef struct {
    ice_stack stack;
    int64_t cells, keys;
    float *count;              /* cells: keys in each */
} sealed_head;

typedef struct {
    const icecore_attention *problem;
    const icecore_near_far *options;
    const ice_kernels *kernels;
    sealed_head *heads;        /* batch x key heads */
    icecore_status *status;    /* the same */
    int64_t blocks;            /* sealed for the queries in hand; -1: one segment over all keys */
    int64_t first_query, end_query;   /* the queries in hand */
    int64_t sink_end, open_begin;     /* exact keys: [0, sink_end) and from open_begin on */
    int64_t tiles;             /* panels per head for these queries */
    int64_t most_cells;        /* of any head now */
    int64_t most_keys;
} near_far_call;

/* ---- Sealing ---- */

static void seal_task(void *context, int64_t head, void *scratch) {
    (void)scratch;
    near_far_call *call = context;
    const icecore_attention *p = call->problem;
    sealed_head *sealed = &call->heads[head];
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
    icecore_status status = call->blocks < 0 ? ice_stack_seal_all(&sealed->stack, &source, p->keys)
                                             : ice_stack_seal(&sealed->stack, &source, call->blocks);
    sealed->cells = sealed->keys = 0;
    ice_free(sealed->count);
    sealed->count = NULL;
    for (int level = 0; level < sealed->stack.levels; level++)
        if (sealed->stack.level[level].segment) {
            sealed->cells += sealed->stack.level[level].segment->cells;
            sealed->keys += sealed->stack.level[level].segment->count;
        }
    if (status == ICECORE_OK && sealed->cells) {
        sealed->count = ice_alloc(sealed->cells, sizeof(float));
        if (!sealed->count) status = ICECORE_ERROR_MEMORY;
    }
    int64_t c = 0;
    if (sealed->count)
        for (int level = 0; level < sealed->stack.levels; level++) {
            const icecore_segment *s = sealed->stack.level[level].segment;
            for (int64_t i = 0; s && i < s->cells; i++) sealed->count[c++] = (float)(s->offset[i + 1] - s->offset[i]);
        }
    call->status[head] = status;
}

static icecore_status seal(near_far_call *call) {
    int64_t heads = call->problem->batch * call->problem->key_heads;
    icecore_status status = ice_parallel_for(heads, call->problem->threads, 0, seal_task, call);
    call->most_cells = call->most_keys = 0;
    for (int64_t head = 0; head < heads && status == ICECORE_OK; head++) {
        status = call->status[head];
        if (call->heads[head].cells > call->most_cells) call->most_cells = call->heads[head].cells;
        if (call->heads[head].keys > call->most_keys) call->most_keys = call->heads[head].keys;
    }
    return status;
}

/* ---- Attending ---- */

/* A panel's work over the cells; memory from the task's scratch. */
typedef struct {
    const near_far_call *call;
    const sealed_head *sealed;
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
    size_t cells = (size_t)call->most_cells, keys = call->options->far_field ? 0 : (size_t)call->most_keys;
    size_t lanes = (size_t)(p->dim + p->value_dim + 1) * ICE_PANEL * sizeof(float);
    return ice_round_up(sizeof(tile)) + ice_panel_bytes(p) + cells * (2 * ICE_PANEL * sizeof(float) + sizeof(uint64_t)) + lanes +
           keys * (2 * sizeof(float) + sizeof(float *)) + 12 * ICE_ALIGNMENT;
}

static tile *lay_out_tile(const near_far_call *call, const sealed_head *sealed, char *scratch, char **rest) {
    const icecore_attention *p = call->problem;
    size_t cells = (size_t)sealed->cells, keys = call->options->far_field ? 0 : (size_t)sealed->keys;
    tile *t = (tile *)after(&scratch, sizeof *t);
    t->call = call;
    t->sealed = sealed;
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
    const ice_stack *stack = &t->sealed->stack;
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
    if (wanted >= t->sealed->keys)
        for (int lane = 0; lane < ICE_PANEL; lane++) threshold[lane] = 0.0f;
    else
        ice_risk_threshold(kernels, t->risk, t->sealed->cells, panel->lanes, t->sealed->count, wanted, threshold);
    kernels->open_cells(t->scores, t->risk, t->sealed->cells, panel->lanes, threshold, t->open, t->far);
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
    for (int level = 0; level < t->sealed->stack.levels; level++) {
        const icecore_segment *s = t->sealed->stack.level[level].segment;
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
    for (int level = 0; level < t->sealed->stack.levels; level++) {
        const icecore_segment *s = t->sealed->stack.level[level].segment;
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
    for (int level = 0; level < t->sealed->stack.levels; level++) {
        const icecore_segment *s = t->sealed->stack.level[level].segment;
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

static void attend_task(void *context, int64_t index, void *scratch) {
    const near_far_call *call = context;
    const icecore_attention *p = call->problem;
    int64_t heads = p->batch * p->key_heads, head = index % heads, number = index / heads;
    int64_t first_row = call->first_query * ice_group(p) + number * ICE_PANEL;
    int64_t rest = call->end_query * ice_group(p) - first_row;
    char *free_space;
    tile *t = lay_out_tile(call, &call->heads[head], scratch, &free_space);
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
    ice_panel_attend(panel, 0, call->sink_end);
    ice_panel_attend(panel, call->open_begin, visible.end);
    if (t->sealed->cells) {
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

static icecore_status attend(near_far_call *call) {
    const icecore_attention *p = call->problem;
    int64_t rows = (call->end_query - call->first_query) * ice_group(p);
    call->tiles = (rows + ICE_PANEL - 1) / ICE_PANEL;
    return ice_parallel_for(p->batch * p->key_heads * call->tiles, p->threads, tile_bytes(call), attend_task, call);
}

static icecore_status attend_causal(near_far_call *call) {
    const icecore_attention *p = call->problem;
    const int64_t block = call->options->block, offset = p->keys - p->queries;
    icecore_status status = ICECORE_OK;
    for (int64_t query = 0; query < p->queries && status == ICECORE_OK; query = call->end_query) {
        int64_t position = offset + query, number = position < 0 ? 0 : position / block;
        int64_t end = (number + 1) * block - offset;   /* the first query of the next block */
        call->blocks = number > 0 ? number - 1 : 0;
        call->first_query = query;
        call->end_query = end < p->queries ? end : p->queries;
        call->open_begin = call->blocks * block;
        if (call->open_begin <= p->sinks) call->open_begin = 0;
        call->sink_end = call->open_begin ? p->sinks : 0;
        status = seal(call);
        if (status == ICECORE_OK) status = attend(call);
    }
    return status;
}

static icecore_status attend_bidirectional(near_far_call *call) {
    const icecore_attention *p = call->problem;
    call->blocks = -1;
    call->end_query = p->queries;
    call->sink_end = p->sinks < p->keys ? p->sinks : p->keys;
    call->open_begin = p->keys;
    icecore_status status = seal(call);
    return status == ICECORE_OK ? attend(call) : status;
}

icecore_status icecore_attend_near_far(const icecore_attention *problem, const icecore_near_far *options) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    if (problem->window != -1 || problem->mask_kind != ICECORE_MASK_NONE || options->near_keys < 1 || options->cell_size < 1 ||
        (problem->causal && options->block < 1) || (!options->far_field && options->visit < options->near_keys))
        return ICECORE_ERROR_VALUE;
    if (ice_is_empty(problem)) return ICECORE_OK;
    int64_t heads = problem->batch * problem->key_heads;
    near_far_call call = {.problem = problem, .options = options, .kernels = ice_active_kernels()};
    call.heads = ice_alloc(heads, sizeof *call.heads);
    call.status = ice_alloc(heads, sizeof *call.status);
    if (call.heads && call.status) {
        memset(call.heads, 0, (size_t)heads * sizeof *call.heads);
        status = problem->causal ? attend_causal(&call) : attend_bidirectional(&call);
        for (int64_t head = 0; head < heads; head++) {
            ice_stack_clear(&call.heads[head].stack);
            ice_free(call.heads[head].count);
        }
    } else {
        status = ICECORE_ERROR_MEMORY;
    }
    ice_free(call.heads);
    ice_free(call.status);
    return status;
}
