#include "attention/curve.h"

#include <string.h>

#include "attend/rows.h"
#include "attention/near_far_tile.h"
#include "base/parallel.h"

/* Rows of the first tile whose rounding is found, against keys and values as they were given. */
#define ROUNDED_ROWS 16

/* The loosest level at which a risk reaches the threshold; ICE_GRID: none that is traced. */
static int level_of(const ice_traced_tile *own, float log2_norm, float risk, float log2_share) {
    const float level = ((float)ICE_LOG2_FIRST + log2_norm + log2_share - risk) * (float)(1.0 / ICE_LOG2_STEP);
    if (!(level > 0.0f)) return 0; /* NaN: opened */
    if (level > (float)(own->levels - 1)) return ICE_GRID;
    return (int)level + (level > (float)(int)level);
}

/* ---- Which node counts when ---- */

static int is_marked(const ice_selection *t, const uint64_t *marks, int64_t number, int lane) {
    return t->is_masked && ((marks[number] >> lane) & 1);
}

static void find_levels_of(ice_traced_tile *own, int lane, float log2_norm) {
    ice_selection *t = own->t;
    const ice_rule *rule = ice_rule_of(t, lane);
    const int dense = t->is_masked && ((t->mask.dense >> lane) & 1);
    t->halves |= (uint64_t)(rule->halves != 0) << lane;
    const float log2_share = log2f(ICE_EXPAND_SHARE);
    for (int64_t r = 0; r < t->parent_runs; r++) {
        const ice_node_run *parents = &t->run[r], *cells = &t->run[t->parent_runs + r];
        const icecore_segment *s = parents->from->segment;
        for (int64_t p = 0; p < parents->count; p++) {
            const int64_t at = (parents->row + p) * ICE_PANEL + lane, number = parents->number + p;
            const int hidden = is_marked(t, t->mask.hidden, number, lane);
            const int now = rule->all_cells || dense || is_marked(t, t->mask.cut, number, lane);
            const int expanded = hidden || now ? 0 : level_of(own, log2_norm, t->risk[at], log2_share);
            own->begin[at] = 0;
            own->end[at] = (uint8_t)expanded;
            for (int64_t c = s->parent.offset[p]; c < s->parent.offset[p + 1]; c++) {
                const int64_t cell = (cells->row + c) * ICE_PANEL + lane, cell_number = cells->number + c;
                int level = dense || is_marked(t, t->mask.cut, cell_number, lane)
                                ? 0
                                : level_of(own, log2_norm, t->risk[cell], 0.0f);
                if (is_marked(t, t->mask.hidden, cell_number, lane)) level = ICE_GRID + 1; /* never */
                own->begin[cell] = (uint8_t)(level > ICE_GRID ? level : expanded);
                own->end[cell] = (uint8_t)(level > expanded ? level : expanded);
            }
        }
    }
}

/* ---- Keys ---- */

/* All keys of all cells, for all rows. */
static void attend_sealed(ice_traced_tile *own) {
    const ice_exact_keys *exact = &own->t->view.exact;
    ice_tile *tile = &own->t->tile;
    if (own->t->is_masked || tile->packed.values) { /* never of a cache: all keys are the problem's */
        ice_tile_attend_keys(tile, &own->problem, exact->sink_end, exact->open_begin);
        return;
    }
    for (int64_t r = own->t->parent_runs; r < own->t->runs; r++) {
        const icecore_segment *s = own->t->run[r].from->segment;
        /* keys of a relative segment are less the means of their cells */
        for (int64_t c = 0, end; c < s->cells && !ice_interrupted(); c = end) {
            end = s->relative ? c + 1 : s->cells;
            const int64_t first = s->cell.offset[c];
            const ice_run run = ice_stored_run(tile, s, c, first, s->cell.offset[end] - first, ice_tile_lanes(tile));
            ice_tile_attend(tile, &run);
        }
    }
}

/* The panel's states so far, with accumulators in `sums`: ICE_PANEL x value_dim. */
static void snapshot(ice_tile *tile, ice_state *states, float *sums) {
    const int64_t value_dim = tile->problem->value_dim;
    tile->kernels->from_panel(tile->accumulator, value_dim, sums);
    for (int lane = 0; lane < tile->lanes; lane++)
        states[lane] = (ice_state){tile->maximum[lane], tile->sum[lane], sums + lane * value_dim};
}

/* Cells, each for the level that opens it. */
static void attend_cells_at(ice_traced_tile *own, uint64_t lanes, const uint8_t *level, const icecore_segment *s,
                            int64_t cell, int64_t first, int64_t count, const float *bias) {
    ice_tile *tile = &own->t->tile; /* its rows' states are free: those of all keys have been copied */
    for (uint64_t left = lanes; left; left &= left - 1) {
        const int lane = __builtin_ctzll(left);
        ice_state *opened = &own->opened[lane * ICE_GRID + level[lane]];
        if (opened->sum == 0.0f) *opened = ice_state_start(opened->accumulator, own->problem.value_dim);
        tile->state[lane] = *opened;
    }
    ice_attend_stored_by(ice_rows_attend, own->t, lanes, s, cell, first, count, bias);
    for (uint64_t left = lanes; left; left &= left - 1) {
        const int lane = __builtin_ctzll(left);
        own->opened[lane * ICE_GRID + level[lane]] = tile->state[lane];
    }
}

static void attend_masked_cell(ice_traced_tile *own, uint64_t lanes, const uint8_t *level, const ice_stacked *from,
                               int64_t cell, int64_t first, int64_t end) {
    const icecore_segment *s = from->segment;
    for (int m = 0; m < own->t->mask.rows; m++) {
        const ice_mask_row *row = &own->t->mask.row[m];
        for (int64_t j = first; j < end && (lanes & row->lanes); j++) {
            const float bias = ice_mask_at(&own->problem, row, from->end - s->count + s->order[j]);
            if (bias != -INFINITY) attend_cells_at(own, lanes & row->lanes, level, s, cell, j, 1, &bias);
        }
    }
}

/* The lanes that open a cell at some level. */
static uint64_t lanes_opening(const ice_traced_tile *own, const uint8_t *level) {
    uint64_t lanes = 0;
    for (int lane = 0; lane < own->t->tile.lanes; lane++) lanes |= (uint64_t)(level[lane] < ICE_GRID) << lane;
    return lanes;
}

static void attend_cells(ice_traced_tile *own) {
    ice_selection *t = own->t;
    for (int64_t r = t->parent_runs; r < t->runs; r++) {
        const ice_node_run *cells = &t->run[r];
        const icecore_segment *s = cells->from->segment;
        for (int64_t c = 0, end; c < cells->count && !ice_interrupted(); c = end) {
            const uint8_t *level = own->end + (cells->row + c) * ICE_PANEL;
            const uint64_t lanes = lanes_opening(own, level);
            uint64_t marked = 0;
            if (t->is_masked)
                marked = (t->mask.cut[cells->number + c] | t->mask.hidden[cells->number + c] | t->mask.dense) & lanes;
            const int together = !t->is_masked && !s->relative;
            const size_t used = (size_t)t->tile.lanes;
            for (end = c + 1; end < cells->count && together && !memcmp(level + (end - c) * ICE_PANEL, level, used);)
                end++;
            const int64_t first = s->cell.offset[c], last = s->cell.offset[end];
            if (lanes & ~marked) attend_cells_at(own, lanes & ~marked, level, s, c, first, last - first, NULL);
            if (marked & (t->mask.cut[cells->number + c] | t->mask.dense))
                attend_masked_cell(own, marked & (t->mask.cut[cells->number + c] | t->mask.dense), level, cells->from,
                                   c, first, last);
        }
    }
}

/* ---- A tile ---- */

icecore_attention ice_sampled_problem(const icecore_attention *p, const ice_sample *s) {
    const int64_t first = s->position[0] - (p->keys - p->queries),
                  step = s->count > 1 ? s->position[1] - s->position[0] : 1;
    icecore_attention own = *p;
    own.query = s->query;
    own.queries = s->count;
    own.lse = NULL;
    if (p->mask_kind != ICECORE_MASK_NONE) {
        const int64_t size = p->mask_kind == ICECORE_MASK_BOOL ? (int64_t)sizeof(uint8_t) : (int64_t)sizeof(float);
        own.mask = (const char *)p->mask + first * p->mask_row_stride * size;
        own.mask_row_stride *= step;
    }
    if (p->ranges) {
        own.ranges = p->ranges + first * p->range_row_stride;
        own.range_row_stride *= step;
    }
    return own;
}

/* Measures and lays out by the same code. */
static void lay_out(ice_traced_tile *own, const icecore_attention *problem, int64_t levels, int64_t nodes,
                    ice_arena *a) {
    const int64_t value_dim = problem->value_dim;
    own->begin = ice_arena_take(a, nodes, ICE_PANEL);
    own->end = ice_arena_take(a, nodes, ICE_PANEL);
    own->mean_value = ice_arena_take(a, nodes, sizeof(void *));
    own->log2_count = ice_arena_take(a, nodes, sizeof(float));
    own->base = ice_arena_take(a, ICE_PANEL, sizeof(ice_state));
    own->all = ice_arena_take(a, ICE_PANEL, sizeof(ice_state));
    own->opened = ice_arena_take(a, ICE_PANEL * ICE_GRID, sizeof(ice_state));
    own->sums = ice_arena_take(a, ICE_PANEL * (ICE_GRID + 1) * value_dim, sizeof(float));
    own->weight = ice_arena_take(a, 2 * nodes, sizeof(float));
    own->output = ice_arena_take(a, (ICE_GRID + 1) * value_dim, sizeof(float));
    own->rows = ice_arena_take(a, 2 * nodes, sizeof(void *));
    own->event = ice_arena_take(a, 2 * nodes, sizeof(int32_t));
    own->scratch = ice_arena_take(a, 1, ice_selection_bytes(problem, levels, nodes));
    own->outputs = ice_arena_take(a, ICE_PANEL * value_dim, sizeof(float));
}

/* Scores all cells of all segments, so that run parent_runs + r is of the cells under run r. */
static void score_all(ice_traced_tile *own) {
    ice_selection *t = own->t;
    ice_selection_score_parents(t);
    for (int64_t r = 0; r < t->parent_runs; r++) {
        const ice_node_run *parents = &t->run[r];
        const ice_nodes *cells = &parents->from->segment->cell;
        t->run[t->runs] =
            (ice_node_run){parents->from, cells, 0, cells->count, t->rows, parents->number + parents->count};
        ice_selection_score(t, &t->run[t->runs++], ice_tile_lanes(&t->tile));
    }
    for (int64_t r = 0; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        for (int64_t i = 0; i < now->count; i++) {
            own->mean_value[now->row + i] = ice_mean_value_of(now, i);
            own->log2_count[now->row + i] = now->nodes->log2_count[i];
        }
    }
}

static void trace_tile(ice_traced_tile *own, const ice_sample *s, const ice_rule *rules, int64_t first_row, int lanes,
                       ice_curve *found) {
    const int64_t value_dim = own->problem.value_dim;
    ice_head_view view = {.problem = &own->problem,
                          .options = s->options,
                          .report = &ice_no_report,
                          .rules = rules,
                          .kernels = s->kernels,
                          .stack = s->stack,
                          .exact = s->exact,
                          .head = s->batch * s->problem->key_heads + s->key_head,
                          .position = s->position};
    if (s->exact.sinks == s->problem) view.exact.sinks = &own->problem;
    ice_selection *t = own->t = ice_near_far_begin(&view, first_row, lanes, own->scratch);
    float log2_norm[ICE_PANEL], log2_mass[ICE_PANEL], squared[ICE_PANEL];
    snapshot(&t->tile, own->base, own->sums);
    if (t->is_masked) ice_node_mask_read(&t->mask, &t->tile, s->stack);
    score_all(own);
    ice_selection_guess(t, log2_norm, log2_mass);
    ice_squared_lengths(t, squared);
    attend_sealed(own);
    ice_tile_finish(&t->tile);
    memcpy(own->all, t->tile.state, (size_t)lanes * sizeof *own->all);
    for (int lane = 0; lane < lanes; lane++) {
        find_levels_of(own, lane, log2_norm[lane]);
        for (int g = 0; g < ICE_GRID; g++) {
            const int64_t at = lane * ICE_GRID + g;
            own->opened[at] = (ice_state){-INFINITY, 0.0f, own->sums + (ICE_PANEL + at) * value_dim};
        }
    }
    attend_cells(own);
    for (int lane = 0; lane < lanes; lane++) {
        found[lane].rounding = -1.0f;
        found[lane].squared_query = squared[lane];
        ice_row_curve(own, lane, &found[lane]);
        memcpy(own->outputs + lane * value_dim, own->output + ICE_GRID * value_dim, (size_t)value_dim * sizeof(float));
    }
}

/* How far rounding moves the outputs of the first rows. */
static void measure_rounding(const ice_traced_tile *own, const ice_sample *s, int lanes, ice_curve *found) {
    const icecore_attention given = ice_sampled_problem(s->given, s);
    ice_tile tile;
    ice_tile_begin(&tile, &given, s->kernels, s->batch, s->key_head, 0, lanes, own->scratch);
    ice_tile_place(&tile, s->position);
    ice_tile_attend_keys(&tile, &given, 0, ice_tile_visible(&tile).end);
    ice_tile_finish(&tile);
    for (int lane = 0; lane < lanes; lane++) {
        double squared = 0.0;
        for (int64_t i = 0; i < given.value_dim; i++) {
            const double difference = (double)tile.state[lane].accumulator[i] / (double)tile.state[lane].sum -
                                      (double)own->outputs[lane * given.value_dim + i];
            squared += difference * difference;
        }
        found[lane].rounding = (float)squared;
    }
}

size_t ice_trace_bytes(const icecore_attention *problem, int64_t levels, int64_t nodes) {
    ice_traced_tile none;
    ice_arena arena = {NULL, 0};
    lay_out(&none, problem, levels, nodes, &arena);
    return arena.used;
}

void ice_trace(const ice_sample *s, const ice_rule *rules, int levels, ice_curve *found, int with_rounding,
               void *memory) {
    const int64_t rows = s->count * ice_group(s->problem);
    ice_traced_tile own = {.problem = ice_sampled_problem(s->problem, s), .levels = levels};
    ice_arena arena = {memory, 0};
    lay_out(&own, s->problem, s->stack->levels, s->stack->nodes, &arena);
    for (int64_t row = 0; row < rows; row += ICE_PANEL) {
        const int lanes = (int)ice_min(rows - row, ICE_PANEL);
        trace_tile(&own, s, rules, row, lanes, found + row);
        if (row == 0 && with_rounding) measure_rounding(&own, s, lanes < ROUNDED_ROWS ? lanes : ROUNDED_ROWS, found);
    }
}
