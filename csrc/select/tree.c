/* A panel's way:
 *   1. sinks and open blocks, exactly; with a mask, which nodes it hides from which rows, or cuts;
 *   2. scores and risks of all parents; which of them each row expands, so that their cells stand for them;
 *   3. scores and risks of the cells of every parent that some row expands; which of them each row opens; for parents
 *      that few rows expand all that follows as well, by the row kernels (few_rows.c);
 *   4. the near field: the keys of opened cells, for each row that opened them;
 *   5. the far field: parents not expanded and cells not opened, each as one key of its mean value;
 *   6. the merge of both by their log-sum-exp.
 * What a row expands and opens depends on that row alone, so but for rounding its result does not depend on the panel
 * it happens to be in. All scores, masses and risks are logarithms to base 2. */
#include "select/tree.h"

#include <float.h>
#include <string.h>

#include "attend/key_block.h"
#include "attend/finite.h"
#include "select/tree_state.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "select/threshold.h"

/* With a count of near keys: parents are expanded until they hold so many times as many, and at least so many. */
#define EXPAND_FACTOR 16
#define LEAST_EXPANDED 2048
/* With at most so many rows the exact keys go by the row kernels: decode steps. */
#define SINGLE_ROWS 8
/* A cell that so many rows of a panel open goes through the panel kernels, with the others hidden; else by the row
 * kernels.  This is where rows are multiplied as float32 (with AVX2 16 is 1 to 2 % slower, 32 at 8k too); kernels for
 * bfloat16 have a number of their own. */
#define PANEL_LANES 24
/* Lanes of the widest vectors. */
#define WIDEST 16

size_t ice_selection_bytes(const icecore_attention *p, const icecore_near_far *options, int64_t levels, int64_t nodes) {
    size_t keys = options->far_field ? 0 : (size_t)p->keys, all = (size_t)nodes;
    size_t lanes = (size_t)(p->value_dim * 2) * ICE_PANEL * sizeof(float);
    return ice_round_up(sizeof(ice_selection)) + ice_tile_bytes(p) +
           all * (2 * ICE_PANEL * sizeof(float) + 3 * sizeof(uint64_t) + sizeof(float) + sizeof(ice_node_run)) + lanes +
           (size_t)levels * sizeof(ice_spread) + keys * (2 * sizeof(float) + sizeof(void *)) + 19 * ICE_ALIGNMENT;
}

ice_selection *ice_selection_lay_out(const icecore_attention *p, const icecore_near_far *options,
                                     const ice_stack *stack, char *scratch, char **rest) {
    size_t nodes = (size_t)stack->nodes, keys = options->far_field ? 0 : (size_t)stack->keys;
    ice_selection *t = ice_take(&scratch, sizeof *t);
    t->problem = p;
    t->options = options;
    t->rules = NULL;
    t->stack = stack;
    t->scores = ice_take(&scratch, nodes * ICE_PANEL * sizeof(float));
    t->risk = ice_take(&scratch, nodes * ICE_PANEL * sizeof(float));
    t->open = ice_take(&scratch, nodes * sizeof(uint64_t));
    t->mask.hidden = ice_take(&scratch, nodes * sizeof(uint64_t));
    t->mask.cut = ice_take(&scratch, nodes * sizeof(uint64_t));
    t->count = ice_take(&scratch, nodes * sizeof(float));
    t->run = ice_take(&scratch, nodes * sizeof(ice_node_run));
    t->spread = ice_take(&scratch, (size_t)stack->levels * sizeof(ice_spread));
    t->near_accumulator = ice_take(&scratch, (size_t)p->value_dim * ICE_PANEL * sizeof(float));
    t->guess = ice_take(&scratch, (size_t)p->value_dim * ICE_PANEL * sizeof(float));
    t->visited = ice_take(&scratch, keys * sizeof(float));
    t->visited_copy = ice_take(&scratch, keys * sizeof(float));
    t->visited_value = ice_take(&scratch, keys * sizeof(void *));
    *rest = scratch;
    return t;
}

/* ---- Step 1 ---- */

static int attends_by_rows(const ice_selection *t) {
    const icecore_attention *p = t->problem;
    return t->tile.lanes <= SINGLE_ROWS && !ice_is_masked(t) && p->key.row_stride == p->dim &&
           p->value.row_stride == p->value_dim;
}

static void attend_rows(ice_selection *t, const icecore_attention *from, uint64_t lanes, int64_t first, int64_t count) {
    const ice_tile *panel = &t->tile;
    ice_rows_attend(t->near_field, lanes, t->kernels, panel->query_rows, ice_rounded_query(t, 0), panel->scale,
                    from->dim, from->value_dim, from->key_dtype,
                    ice_address(&from->key, from->key_dtype, panel->batch, panel->key_head, first),
                    ice_address(&from->value, from->key_dtype, panel->batch, panel->key_head, first), count, NULL);
}

/* By the row kernels: the lanes of a panel would stand empty.  Block by block, so that a row's sums do not depend on
 * what the others see. */
static void attend_by_rows(ice_selection *t, const icecore_attention *from, int64_t first, int64_t end) {
    for (int64_t block = first, last; block < end; block = last) {
        uint64_t lanes = 0; /* that see all of the block */
        last = end - block < ICE_KEY_BLOCK ? end : block + ICE_KEY_BLOCK;
        for (int lane = 0; lane < t->tile.lanes; lane++) {
            const int64_t own = t->tile.visible[lane].end;
            if (own >= last) lanes |= (uint64_t)1 << lane;
            else if (own > block) attend_rows(t, from, (uint64_t)1 << lane, block, own - block);
        }
        if (lanes) attend_rows(t, from, lanes, block, last - block);
    }
}

void ice_selection_attend_exact_keys(ice_selection *t, ice_exact_keys exact) {
    ice_tile *panel = &t->tile;
    const int64_t end = ice_tile_visible(panel).end, value_dim = t->problem->value_dim;
    if (!attends_by_rows(t)) {
        panel->problem = exact.sinks;
        ice_tile_attend(panel, 0, exact.sink_end);
        panel->problem = t->problem;
        ice_tile_attend(panel, exact.open_begin, end);
        return;
    }
    attend_by_rows(t, exact.sinks, 0, exact.sink_end);
    attend_by_rows(t, t->problem, exact.open_begin, end);
    /* the result goes into the panel, whose state the steps that follow build on */
    for (int lane = 0; lane < panel->lanes; lane++) {
        ice_state *state = &t->near_field[lane];
        panel->maximum[lane] = state->maximum;
        panel->sum[lane] = state->sum;
        for (int64_t i = 0; i < value_dim; i++) panel->accumulator[i * ICE_PANEL + lane] = state->accumulator[i];
        memset(state->accumulator, 0, (size_t)value_dim * sizeof(float));
        state->maximum = -INFINITY;
        state->sum = 0.0f;
    }
}

/* ---- The mask ---- */

/* Lanes for which a node stands for nothing, or is opened whatever its risk. */
static void leave_out_marked(ice_selection *t, int64_t number, int64_t count, float *scores, float *risk) {
    const ice_node_mask *mask = &t->mask;
    for (int64_t i = 0; i < count; i++) {
        uint64_t marked = (mask->hidden[number + i] | mask->cut[number + i] | mask->dense) & ice_used_lanes(t);
        for (; marked; marked &= marked - 1) {
            int64_t at = i * ICE_PANEL + __builtin_ctzll(marked);
            scores[at] = risk[at] = -INFINITY;
        }
    }
}

/* ---- Steps 2 and 3 ---- */

void ice_selection_score(ice_selection *t, const ice_node_run *now, uint64_t lanes) {
    const ice_nodes *nodes = now->nodes;
    const icecore_segment *s = now->from->segment;
    const ice_spread *spread = ice_spread_of(t, now->from);
    const ice_node_facts facts = ice_facts_of(nodes, now->node);
    const ice_spreads rows = {spread->variance, spread->half_log2, spread->norm};
    float *scores = t->scores + now->row * ICE_PANEL, *risk = t->risk + now->row * ICE_PANEL, added[ICE_PANEL];
    ice_tile_hiding(lanes | ~ice_used_lanes(t), added);
    for (int lane = 0; lane < ICE_PANEL; lane++) added[lane] += spread->shift[lane];
    ice_tile_scores(&t->tile, ice_row_of(s->mean_dtype, nodes->mean_key, now->node, s->dim), s->dim, now->count,
                    scores);
    t->kernels->cell_risk(scores, now->count, t->tile.lanes, &facts, &rows, added, risk);
    if (ice_is_masked(t)) leave_out_marked(t, now->number, now->count, scores, risk);
    t->rows += now->count;
}

void ice_selection_score_parents(ice_selection *t) {
    int64_t number = 0;
    t->rows = t->runs = 0;
    for (int64_t level = 0; level < t->stack->levels; level++) {
        const ice_stacked *from = &t->stack->level[level];
        if (!from->segment) continue;
        const ice_nodes *parents = &from->segment->parent, *cells = &from->segment->cell;
        t->run[t->runs] = (ice_node_run){from, parents, 0, parents->count, t->rows, number};
        for (int64_t p = 0; !t->rules && p < parents->count; p++)
            t->count[t->rows + p] = (float)(cells->offset[parents->offset[p + 1]] - cells->offset[parents->offset[p]]);
        ice_selection_score(t, &t->run[t->runs++], ice_used_lanes(t));
        number += parents->count + cells->count;
    }
    t->parents = t->rows;
    t->parent_runs = t->runs;
}

/* Raises the risks of nodes of which one key may hold a row's key_share to what opens them. */
static void raise_doubtful(ice_selection *t, const ice_node_run *now, const float *threshold) {
    const ice_spread *spread = ice_spread_of(t, now->from);
    float reach[ICE_PANEL];
    for (int lane = 0; lane < ICE_PANEL; lane++) reach[lane] = ice_reach(t->problem->dim) * spread->norm[lane];
    for (int64_t i = 0; i < now->count; i++) {
        const float radius = now->nodes->radius[now->node + i], *scores = t->scores + (now->row + i) * ICE_PANEL;
        float *risk = t->risk + (now->row + i) * ICE_PANEL;
        for (int lane = 0; lane < t->tile.lanes; lane++)
            if (scores[lane] + reach[lane] * radius >= t->doubt[lane] && risk[lane] < threshold[lane])
                risk[lane] = threshold[lane];
    }
}

static int panel_lanes(const ice_selection *t, icecore_dtype dtype) {
    return t->tile.query_pairs && dtype == ICECORE_BFLOAT16 ? t->kernels->bf16->panel_lanes : PANEL_LANES;
}

/* Whether so few rows expand a parent that its cells go by the row kernels: at 128k two fifths of all expanded ones. It
 * takes 8 to 12 % off the time there and less at 8k, with 5/8 of panel_lanes as with 3/4. */
static int are_few(const ice_selection *t, icecore_dtype dtype, uint64_t lanes) {
    return __builtin_popcountll(lanes) * 8 <= panel_lanes(t, dtype) * 5;
}

/* The cells of every parent that some lane expands. */
static void score_cells(ice_selection *t, const float *threshold) {
    const uint64_t lanes = ice_used_lanes(t);
    const int by_threshold = t->rules != NULL, few_apart = by_threshold && !ice_is_masked(t);
    for (int64_t r = 0; r < t->parent_runs; r++) {
        const ice_node_run *parents = &t->run[r];
        const icecore_segment *s = parents->from->segment;
        for (int64_t p = 0; p < parents->count; p++) {
            uint64_t open = t->open[parents->row + p] & lanes;
            if (!open) continue;
            int64_t node = s->parent.offset[p], count = s->parent.offset[p + 1] - node;
            if (few_apart && are_few(t, s->mean_dtype, open)) {
                ice_attend_cells_of_few(t, open, parents->from, node, count, threshold);
                continue;
            }
            const ice_node_run cells = {parents->from, &s->cell, node,
                                        count,         t->rows,  parents->number + parents->count + node};
            ice_node_run *last = &t->run[t->runs - 1];
            for (int64_t c = 0; !by_threshold && c < count; c++)
                t->count[t->rows + c] = (float)(s->cell.offset[node + c + 1] - s->cell.offset[node + c]);
            ice_selection_score(t, &cells, open);
            if (t->doubts) raise_doubtful(t, &cells, threshold);
            if (t->runs > t->parent_runs && last->from == cells.from && last->node + last->count == node)
                last->count += count;
            else t->run[t->runs++] = cells;
        }
    }
}

/* Opens what is at or above a row's threshold, and what the mask cuts. */
static void open_nodes(ice_selection *t, int64_t first_run, int64_t end_run, const float *threshold) {
    for (int64_t r = first_run; r < end_run; r++) {
        const ice_node_run *now = &t->run[r];
        t->kernels->open_cells(t->scores + now->row * ICE_PANEL, t->risk + now->row * ICE_PANEL, now->count,
                               t->tile.lanes, threshold, now->nodes->log2_count + now->node, t->open + now->row);
        for (int64_t i = 0; ice_is_masked(t) && i < now->count; i++)
            t->open[now->row + i] = (t->open[now->row + i] | t->mask.cut[now->number + i] | t->mask.dense) &
                                    ~t->mask.hidden[now->number + i];
    }
}

void ice_selection_guess(ice_selection *t, float log2_norm[ICE_PANEL], float log2_mass[ICE_PANEL]) {
    const icecore_attention *p = t->problem;
    float maximum[ICE_PANEL], sum[ICE_PANEL], *weights = t->tile.scores;
    ice_tile guess = t->tile;
    guess.accumulator = t->guess;
    guess.maximum = maximum;
    guess.sum = sum;
    memcpy(guess.accumulator, t->tile.accumulator, (size_t)(p->value_dim * ICE_PANEL) * sizeof(float));
    memcpy(maximum, t->tile.maximum, sizeof maximum);
    memcpy(sum, t->tile.sum, sizeof sum);
    for (int64_t r = 0; r < t->parent_runs; r++) {
        const ice_node_run *now = &t->run[r];
        for (int64_t i = 0; i < now->count; i += ICE_KEY_BLOCK) {
            int64_t count = now->count - i < ICE_KEY_BLOCK ? now->count - i : ICE_KEY_BLOCK;
            for (int64_t j = 0; j < count; j++)
                for (int lane = 0; lane < ICE_PANEL; lane++)
                    weights[j * ICE_PANEL + lane] =
                        t->scores[(now->row + i + j) * ICE_PANEL + lane] + now->nodes->log2_count[i + j];
            ice_tile_add(&guess, weights, count, ice_mean_value_of(now, i));
        }
    }
    float squared[ICE_PANEL] = {0};
    for (int64_t i = 0; i < p->value_dim; i++)
        for (int lane = 0; lane < ICE_PANEL; lane++) {
            float component = guess.accumulator[i * ICE_PANEL + lane];
            squared[lane] += component * component;
        }
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        log2_norm[lane] = maximum[lane] + 0.5f * log2f(squared[lane]);
        log2_mass[lane] = maximum[lane] + log2f(sum[lane]);
    }
}

/* The risks from which on each row opens cells and expands parents. */
static void find_thresholds(ice_selection *t, float *threshold, float *expand) {
    float log2_mass[ICE_PANEL];
    ice_selection_guess(t, threshold, log2_mass);
    t->doubts = 0;
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        const ice_rule *rule = ice_rule_of(t, lane);
        t->doubt[lane] = rule->key_share > 0.0f ? log2_mass[lane] + log2f(rule->key_share) : INFINITY;
        t->doubts |= rule->key_share > 0.0f;
        threshold[lane] = rule->exact ? INFINITY : threshold[lane] + log2f(rule->threshold);
        expand[lane] = rule->exact ? INFINITY : rule->all_cells ? -INFINITY : threshold[lane] + log2f(ICE_EXPAND_SHARE);
    }
}

static void choose(ice_selection *t) {
    const icecore_near_far *options = t->options;
    float threshold[ICE_PANEL], expand[ICE_PANEL];
    ice_selection_score_parents(t);
    int64_t wanted = options->far_field ? options->near_keys : options->visit;
    if (t->rules) {
        find_thresholds(t, threshold, expand);
        for (int64_t r = 0; t->doubts && r < t->parent_runs; r++) raise_doubtful(t, &t->run[r], expand);
    } else if (options->far_field && wanted < t->stack->keys / EXPAND_FACTOR && LEAST_EXPANDED < t->stack->keys) {
        int64_t reached = wanted * EXPAND_FACTOR > LEAST_EXPANDED ? wanted * EXPAND_FACTOR : LEAST_EXPANDED;
        ice_risk_threshold(t->kernels, t->risk, t->parents, t->tile.lanes, t->count, reached, expand);
    } else {
        for (int lane = 0; lane < ICE_PANEL; lane++) expand[lane] = -INFINITY;
    }
    open_nodes(t, 0, t->parent_runs, expand);
    score_cells(t, threshold);
    if (!t->rules) {
        if (wanted >= t->stack->keys)
            for (int lane = 0; lane < ICE_PANEL; lane++) threshold[lane] = -INFINITY;
        else
            ice_risk_threshold(t->kernels, t->risk + t->parents * ICE_PANEL, t->rows - t->parents, t->tile.lanes,
                               t->count + t->parents, wanted, threshold);
    }
    open_nodes(t, t->parent_runs, t->runs, threshold);
}

/* ---- Step 4 ---- */

/* Whether a weight of 0 takes the keys away from the rows that do not see them. */
static int can_be_hidden(const ice_selection *t, const icecore_segment *s, int64_t first, int64_t count) {
    return !ice_is_masked(t) || (ice_all_finite(s->dtype, ice_key_of(s, first), s->dim, count, s->dim) &&
                                 ice_all_finite(s->dtype, ice_value_of(s, first), s->value_dim, count, s->value_dim));
}

/* The keys first .. first + count - 1 of a cell for the rows in `lanes`. */
static void attend_cell(ice_selection *t, ice_key_block *block, uint64_t lanes, const icecore_segment *s, int64_t cell,
                        int64_t first, int64_t count) {
    if (__builtin_popcountll(lanes) < panel_lanes(t, s->dtype) ||
        (lanes != ice_used_lanes(t) && !can_be_hidden(t, s, first, count))) {
        ice_attend_stored(t, lanes, s, cell, first, count, NULL);
        return;
    }
    ice_key_block_add(block, s->dtype, ice_key_of(s, first), ice_base_of(s, cell), ice_value_of(s, first), count,
                      lanes);
    for (; lanes; lanes &= lanes - 1) t->near_count[__builtin_ctzll(lanes)] += count;
}

/* The keys that a row of the mask leaves of a cell, run by run. */
static void attend_cut_cell(ice_selection *t, ice_key_block *block, uint64_t lanes, const ice_mask_row *row,
                            const ice_stacked *from, int64_t cell, int64_t first, int64_t end) {
    const icecore_segment *s = from->segment;
    float bias[ICE_KEY_BLOCK];
    while (first < end) {
        int64_t count = 0;
        while (count < ICE_KEY_BLOCK && first + count < end) {
            bias[count] = ice_mask_at(t->problem, row, from->end - s->count + s->order[first + count]);
            if (bias[count] == -INFINITY) break;
            count++;
        }
        if (count && t->problem->mask_kind == ICECORE_MASK_BOOL) attend_cell(t, block, lanes, s, cell, first, count);
        else if (count) ice_attend_stored(t, lanes, s, cell, first, count, bias);
        first += count < ICE_KEY_BLOCK ? count + 1 : count;
    }
}

/* The next cell of a run that some lane opens. */
static void prefetch_next(const ice_selection *t, const ice_node_run *now, int64_t after) {
    const uint64_t lanes = ice_used_lanes(t);
    while (after < now->count && !(t->open[now->row + after] & lanes)) after++;
    if (after < now->count) ice_prefetch_cell(now->from->segment, now->node + after);
}

/* Cell by cell, so that a cell's rows stay in cache for all queries that opened it. */
static void add_near_field(ice_selection *t) {
    ice_key_block block;
    ice_key_block_begin(&block, &t->tile);
    for (int64_t r = t->parent_runs; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        const icecore_segment *s = now->from->segment;
        for (int64_t i = 0; i < now->count; i++) {
            uint64_t lanes = t->open[now->row + i] & ice_used_lanes(t);
            if (i % ICE_CELLS_PER_PARENT == 0 && ice_interrupted()) return;
            if (!lanes) continue;
            prefetch_next(t, now, i + 1);
            int64_t first = s->cell.offset[now->node + i], count = s->cell.offset[now->node + i + 1] - first;
            uint64_t cut = ice_is_masked(t) ? t->mask.cut[now->number + i] & lanes : 0;
            attend_cell(t, &block, lanes & ~cut, s, now->node + i, first, count);
            for (int m = 0; cut && m < t->mask.rows; m++)
                if (cut & t->mask.row[m].lanes)
                    attend_cut_cell(t, &block, cut & t->mask.row[m].lanes, &t->mask.row[m], now->from, now->node + i,
                                    first, first + count);
        }
    }
    ice_key_block_flush(&block);
}

/* ---- Step 5 ---- */

/* No key of a node scores higher than its mean by more than the norm of the query times the radius, both in the
 * segment's metric. */
static void bound_far_field(ice_selection *t) {
    float correction[ICE_PANEL], *most = t->tile.scores;
    for (int64_t r = 0; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        const float *norm = ice_spread_of(t, now->from)->norm;
        for (int64_t i = 0; i < now->count; i += ICE_KEY_BLOCK) {
            int64_t count = now->count - i < ICE_KEY_BLOCK ? now->count - i : ICE_KEY_BLOCK;
            for (int64_t j = 0; j < count; j++)
                for (int lane = 0; lane < ICE_PANEL; lane++) {
                    float own = t->scores[(now->row + i + j) * ICE_PANEL +
                                          lane]; /* -inf: opened or hidden, whatever the radius */
                    most[j * ICE_PANEL + lane] =
                        own == -INFINITY ? own : own + norm[lane] * now->nodes->radius[now->node + i + j];
                }
            t->kernels->softmax(most, count, t->tile.lanes, t->bound_maximum, t->bound, correction);
        }
    }
}

static void add_far_field(ice_selection *t) {
    ice_tile *panel = &t->tile;
    float before[ICE_PANEL];
    for (int64_t r = 0; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        for (int64_t i = 0; i < now->count; i += ICE_KEY_BLOCK) {
            int64_t count = now->count - i < ICE_KEY_BLOCK ? now->count - i : ICE_KEY_BLOCK;
            memcpy(before, panel->sum, sizeof before);
            ice_tile_add(panel, t->scores + (now->row + i) * ICE_PANEL, count, ice_mean_value_of(now, now->node + i));
            for (int lane = 0; lane < panel->lanes; lane++)
                t->far[lane] = t->far[lane] * panel->correction[lane] +
                               (panel->sum[lane] - before[lane] * panel->correction[lane]);
        }
    }
}

/* ---- Step 6 ---- */

/* The mass of means in a row, where 2^maximum has mass 1. */
static float far_mass(const ice_selection *t, int lane, float maximum) {
    float mass = 0.0f;
    if (t->far[lane] > 0.0f) mass += t->far[lane] * exp2f(t->tile.maximum[lane] - maximum);
    if (t->few_far[lane] > 0.0f) mass += t->few_far[lane] * exp2f(t->few_far_maximum[lane] - maximum);
    return mass;
}

/* part / whole within [0, 1]; 0 also where it is NaN. */
static float share_of(float part, float whole) {
    const float share = whole > 0.0f ? part / whole : 0.0f;
    if (!(share >= 0.0f)) return 0.0f;
    return share < 1.0f ? share : 1.0f;
}

/* accumulator: the panel's. */
static void finish_row(ice_selection *t, int lane, const float *accumulator, const float *centre) {
    const icecore_attention *p = t->problem;
    const icecore_near_far *options = t->options;
    ice_tile *panel = &t->tile;
    ice_row row = ice_row_at(p, panel->batch, panel->key_head, panel->first_row + lane);
    ice_state *state = &t->near_field[lane];
    if (t->rules && ice_rule_of(t, lane)->exact) return;
    ice_state_merge(state, p->value_dim, panel->maximum[lane], panel->sum[lane], accumulator);
    int64_t at = (row.batch * p->query_heads + row.head) * p->queries + row.query;
    /* what the means lack of the mass they stand for, as measured */
    const float far = far_mass(t, lane, state->maximum),
                lacking = t->rules ? far * (exp2f(ice_rule_of(t, lane)->log2_mass) - 1.0f) : 0.0f;
    if (options->near_count) options->near_count[at] = (int32_t)t->near_count[lane];
    if (options->captured_mass) {
        float missed = far + lacking, total = state->sum + lacking;
        if (t->dropped[lane] > 0.0f) {
            missed = t->dropped[lane] * exp2f(t->dropped_maximum[lane] - state->maximum);
            total += missed;
        }
        options->captured_mass[at] = share_of(total - missed, total);
    }
    if (options->summaries) options->summaries[at] = (int32_t)(t->rows + t->few_scored[lane]);
    if (options->missed_bound) {
        float exact = state->sum - far;
        if (exact < 0.0f) exact = 0.0f;
        float missed = t->bound[lane] > 0.0f ? t->bound[lane] * exp2f(t->bound_maximum[lane] - state->maximum) : 0.0f;
        options->missed_bound[at] = missed < INFINITY && exact < INFINITY ? share_of(missed, exact + missed) : 1.0f;
    }
    ice_write_row(p, t->kernels, row, state->maximum, state->sum, state->accumulator);
    if (p->lse && lacking != 0.0f && state->sum > 0.0f) p->lse[at] += log1pf(lacking / state->sum);
    if (p->lse && centre) ice_add_centre(panel, lane, centre, &p->lse[at]);
}

/* sum[lane] = the weighted sum of squares of a row's components. */
static void add_squares(const ice_tile *panel, const float *weight, int64_t dim, int lanes, float *sum) {
    memset(sum, 0, (size_t)lanes * sizeof *sum);
    for (int64_t i = 0; i < dim; i++) {
        const float *component = panel->queries + i * ICE_PANEL;
        for (int lane = 0; lane < lanes; lane++) sum[lane] += component[lane] * (component[lane] * weight[i]);
    }
}

static void find_spreads(ice_selection *t) {
    const int64_t dim = t->problem->dim;
    /* a decode step has few; so many as the widest vectors read, and a bound reads all */
    const int lanes = t->options->missed_bound ? ICE_PANEL : (t->tile.lanes + WIDEST - 1) / WIDEST * WIDEST;
    float weight[ICECORE_MAX_DIM];
    for (int64_t l = 0; l < t->stack->levels; l++) {
        const icecore_segment *s = t->stack->level[l].segment;
        ice_spread *spread = &t->spread[l];
        if (!s) continue;
        for (int64_t i = 0; i < dim; i++) /* back from log2 units */
            weight[i] = (float)(ICE_LN_2 * ICE_LN_2) * s->component_variance[i] / (s->metric[i] * s->metric[i]);
        add_squares(&t->tile, weight, dim, lanes, spread->variance);
        for (int lane = 0; lane < lanes; lane++) /* a query of nothing but zeros leaves an order of risks */
            spread->half_log2[lane] =
                0.5f * log2f(spread->variance[lane] <= FLT_MIN ? FLT_MIN : spread->variance[lane]);
        for (int64_t i = 0; i < dim; i++) weight[i] = 1.0f / (s->metric[i] * s->metric[i]);
        add_squares(&t->tile, weight, dim, lanes, spread->norm);
        for (int lane = 0; lane < lanes; lane++) /* a little more, for the query's rounding */
            spread->norm[lane] = 1.004f * sqrtf(spread->norm[lane]);
        t->kernels->scores(t->tile.queries, dim, lanes, s->centre, dim, 1, spread->shift);
    }
}

void ice_selection_begin(ice_selection *t, const ice_kernels *kernels) {
    t->kernels = kernels;
    memset(t->near_accumulator, 0, (size_t)t->problem->value_dim * ICE_PANEL * sizeof(float));
    find_spreads(t);
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        t->near_field[lane] = (ice_state){-INFINITY, 0.0f, t->near_accumulator + lane * t->problem->value_dim};
        t->near_count[lane] = 0;
        t->few_scored[lane] = 0;
        t->far[lane] = t->few_far[lane] = t->dropped[lane] = 0.0f;
        t->few_far_maximum[lane] = t->dropped_maximum[lane] = t->bound_maximum[lane] = -INFINITY;
        t->bound[lane] = 0.0f;
    }
    t->rows = t->runs = t->parent_runs = 0;
    t->mask.dense = 0;
    t->doubts = 0;
}

void ice_selection_attend(const icecore_attention *p, const icecore_near_far *options, const ice_rule *rules,
                          const ice_kernels *kernels, const ice_stack *stack, ice_exact_keys exact, int64_t head,
                          int64_t first_row, int lanes, void *scratch) {
    char *rest;
    ice_selection *t = ice_selection_lay_out(p, options, stack, scratch, &rest);
    ice_tile *panel = &t->tile;
    t->rules = rules;
    ice_tile_begin(panel, p, kernels, head / p->key_heads, head % p->key_heads, first_row, lanes, rest);
    panel->packed = exact.packed;
    ice_selection_begin(t, kernels);
    ice_selection_attend_exact_keys(t, exact);
    if (stack->nodes && ice_is_masked(t)) ice_node_mask_read(&t->mask, panel, stack);
    if (stack->nodes && options->far_field && t->mask.dense == ice_used_lanes(t)) {
        ice_tile_attend(panel, exact.sink_end, exact.open_begin); /* never of a cache, which has no masks */
        for (int m = 0; m < t->mask.rows; m++)
            for (uint64_t left = t->mask.row[m].lanes; left; left &= left - 1)
                t->near_count[__builtin_ctzll(left)] = t->mask.row[m].seen;
    } else if (stack->nodes) {
        choose(t);
        if (options->missed_bound && options->far_field) bound_far_field(t);
        if (options->far_field) {
            add_near_field(t);
            add_far_field(t);
        } else {
            ice_attend_largest(t);
        }
    }
    const float *accumulator = ice_tile_rows(panel);
    for (int lane = 0; lane < lanes; lane++) finish_row(t, lane, accumulator + lane * p->value_dim, exact.centre);
}
