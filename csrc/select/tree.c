/* Cells by risk, down a tree of two levels:
 *   1. scores and risks of all parents; which of them each row expands, so that their cells stand for them;
 *   2. scores and risks of the cells of every parent that some row expands; which of them each row opens; for parents
 *      that few rows expand all that follows as well, by rows (few_rows.c);
 *   3. the near field: the keys of opened cells, for each row that opened them;
 *   4. the far field: parents not expanded and cells not opened, each as one key of its mean value.
 * What a row expands and opens depends on that row alone, so but for rounding its result does not depend on the tile it
 * happens to be in.  All scores, masses and risks are logarithms to base 2. */
#include <string.h>

#include "base/parallel.h"
#include "select/selection.h"
#include "select/threshold.h"

/* With a count of near keys: parents are expanded until they hold so many times as many, and at least so many. */
#define EXPAND_FACTOR 16
#define MIN_EXPANDED 2048

/* Measures and lays out by the same code. */
static void lay_out(ice_selection *t, const icecore_attention *p, int64_t levels, int64_t nodes, ice_arena *a) {
    t->scores = ice_arena_take(a, nodes * ICE_PANEL, sizeof(float));
    t->risk = ice_arena_take(a, nodes * ICE_PANEL, sizeof(float));
    t->open = ice_arena_take(a, nodes, sizeof(uint64_t));
    t->mask.hidden = ice_arena_take(a, nodes, sizeof(uint64_t));
    t->mask.cut = ice_arena_take(a, nodes, sizeof(uint64_t));
    t->count = ice_arena_take(a, nodes, sizeof(float));
    t->run = ice_arena_take(a, nodes, sizeof(ice_node_run));
    t->spread = ice_arena_take(a, levels, sizeof(ice_spread));
    t->guess = ice_arena_take(a, p->value_dim * ICE_PANEL, sizeof(float));
}

size_t ice_selection_bytes(const icecore_attention *p, int64_t levels, int64_t nodes) {
    ice_selection none;
    ice_arena arena = {NULL, 0};
    lay_out(&none, p, levels, nodes, &arena);
    return ice_round_up(sizeof(ice_selection)) + arena.used + ice_tile_bytes(p);
}

ice_selection *ice_selection_begin(const ice_head_view *view, int64_t first_row, int64_t rows, void *scratch) {
    const icecore_attention *p = view->problem;
    ice_arena arena = {scratch, 0};
    ice_selection *t = ice_arena_take(&arena, 1, sizeof *t);
    t->view = *view;
    lay_out(t, p, view->stack->levels, view->stack->nodes, &arena);
    ice_tile_begin(&t->tile, p, view->kernels, view->head / p->key_heads, view->head % p->key_heads, first_row, rows,
                   arena.memory + arena.used);
    t->tile.packed = view->exact.packed;
    if (view->position) ice_tile_place(&t->tile, view->position);
    ice_tile_begin_panel(&t->tile);
    ice_find_spreads(t);
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        t->near_count[lane] = 0;
        t->few_scored[lane] = 0;
        t->far[lane] = t->few_far[lane] = t->bound[lane] = 0.0f;
        t->few_far_maximum[lane] = t->bound_maximum[lane] = -INFINITY;
    }
    t->rows = t->runs = t->parent_runs = 0;
    t->halves = 0;
    t->mask.dense = 0;
    t->is_masked = ice_node_mask_is_needed(&t->tile, t->view.stack);
    t->doubts = 0;
    return t;
}

/* ---- Scores and risks ---- */

/* Lanes for which a node stands for nothing, or is opened whatever its risk. */
static void leave_out_marked(ice_selection *t, int64_t number, int64_t count, float *scores, float *risk) {
    const ice_node_mask *mask = &t->mask;
    for (int64_t i = 0; i < count; i++) {
        uint64_t marked = (mask->hidden[number + i] | mask->cut[number + i] | mask->dense) & ice_tile_lanes(&t->tile);
        for (; marked; marked &= marked - 1) {
            int64_t at = i * ICE_PANEL + __builtin_ctzll(marked);
            scores[at] = risk[at] = -INFINITY;
        }
    }
}

/* Of means, whose scores lack those of the segment's centre. */
static void cap_scores(const ice_selection *t, const ice_node_run *now, float *scores) {
    const float *shift = ice_spread_of(t, now->from)->shift;
    for (int64_t i = 0; i < now->count; i++)
        for (int lane = 0; lane < t->tile.lanes; lane++) scores[i * ICE_PANEL + lane] += shift[lane];
    ice_tile_cap(&t->tile, scores, now->count);
}

void ice_selection_score(ice_selection *t, const ice_node_run *now, uint64_t lanes) {
    const ice_nodes *nodes = now->nodes;
    const icecore_segment *s = now->from->segment;
    const ice_spread *spread = ice_spread_of(t, now->from);
    const ice_node_facts facts = ice_facts_of(nodes, now->node);
    const ice_spreads rows = {spread->variance, spread->half_log2, spread->norm};
    float *scores = t->scores + now->row * ICE_PANEL, *risk = t->risk + now->row * ICE_PANEL, added[ICE_PANEL];
    ice_panel_hiding(lanes | ~ice_tile_lanes(&t->tile), added);
    ice_tile_score(&t->tile, s->mean_dtype, ice_row_of(s->mean_dtype, nodes->mean_key, now->node, s->dim), now->count,
                   scores);
    if (t->tile.cap > 0.0f) cap_scores(t, now, scores);
    else
        for (int lane = 0; lane < t->tile.lanes; lane++) added[lane] += spread->shift[lane];
    t->view.kernels->cell_risk(scores, now->count, t->tile.lanes, &facts, &rows, added, risk);
    if (t->is_masked) leave_out_marked(t, now->number, now->count, scores, risk);
    t->rows += now->count;
}

void ice_selection_score_parents(ice_selection *t) {
    int64_t number = 0;
    t->rows = t->runs = 0;
    for (int64_t level = 0; level < t->view.stack->levels; level++) {
        const ice_stacked *from = &t->view.stack->level[level];
        if (!from->segment) continue;
        const ice_nodes *parents = &from->segment->parent, *cells = &from->segment->cell;
        t->run[t->runs] = (ice_node_run){from, parents, 0, parents->count, t->rows, number};
        for (int64_t p = 0; !t->view.rules && p < parents->count; p++)
            t->count[t->rows + p] = (float)(cells->offset[parents->offset[p + 1]] - cells->offset[parents->offset[p]]);
        ice_selection_score(t, &t->run[t->runs++], ice_tile_lanes(&t->tile));
        number += parents->count + cells->count;
    }
    t->parent_runs = t->runs;
}

/* ---- What each row opens ---- */

/* Whether so few rows expand a parent that its cells go by the row kernels: at 128k two fifths of all expanded ones. It
 * takes 8 to 12 % off the time there and less at 8k, with 5/8 of the lanes that share a run as with 3/4. */
static int are_few(const ice_selection *t, icecore_dtype dtype, uint64_t lanes) {
    return __builtin_popcountll(lanes) * 8 <= ice_tile_shared_lanes(&t->tile, dtype) * 5;
}

/* The cells of every parent that some lane expands. */
static void score_cells(ice_selection *t) {
    const uint64_t lanes = ice_tile_lanes(&t->tile);
    const int by_threshold = t->view.rules != NULL, few_apart = by_threshold && !t->is_masked;
    for (int64_t r = 0; r < t->parent_runs; r++) {
        const ice_node_run *parents = &t->run[r];
        const icecore_segment *s = parents->from->segment;
        for (int64_t p = 0; p < parents->count; p++) {
            uint64_t open = t->open[parents->row + p] & lanes;
            if (!open) continue;
            int64_t node = s->parent.offset[p], count = s->parent.offset[p + 1] - node;
            if (few_apart && are_few(t, s->mean_dtype, open)) {
                ice_attend_cells_of_few(t, open, parents->from, node, count);
                continue;
            }
            const ice_node_run cells = {parents->from, &s->cell, node,
                                        count,         t->rows,  parents->number + parents->count + node};
            ice_node_run *last = &t->run[t->runs - 1];
            for (int64_t c = 0; !by_threshold && c < count; c++)
                t->count[t->rows + c] = (float)(s->cell.offset[node + c + 1] - s->cell.offset[node + c]);
            ice_selection_score(t, &cells, open);
            if (t->doubts) ice_raise_doubtful(t, &cells, t->threshold);
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
        t->view.kernels->open_cells(t->scores + now->row * ICE_PANEL, t->risk + now->row * ICE_PANEL, now->count,
                                    t->tile.lanes, threshold, now->nodes->log2_count + now->node, t->open + now->row);
        for (int64_t i = 0; t->is_masked && i < now->count; i++)
            t->open[now->row + i] = (t->open[now->row + i] | t->mask.cut[now->number + i] | t->mask.dense) &
                                    ~t->mask.hidden[now->number + i];
    }
}

void ice_choose_parents(ice_selection *t) {
    const int64_t wanted = t->view.options->near_keys;
    float expand[ICE_PANEL];
    ice_selection_score_parents(t);
    if (t->view.rules) {
        ice_find_thresholds(t, expand);
        for (int64_t r = 0; t->doubts && r < t->parent_runs; r++) ice_raise_doubtful(t, &t->run[r], expand);
    } else if (wanted < t->view.stack->keys / EXPAND_FACTOR && MIN_EXPANDED < t->view.stack->keys) {
        const int64_t reached = ice_max(wanted * EXPAND_FACTOR, MIN_EXPANDED);
        ice_risk_threshold(t->view.kernels, t->risk, t->view.stack->parents, t->tile.lanes, t->count, reached, expand);
    } else {
        for (int lane = 0; lane < ICE_PANEL; lane++) expand[lane] = -INFINITY;
    }
    open_nodes(t, 0, t->parent_runs, expand);
}

void ice_choose_cells(ice_selection *t) {
    const int64_t wanted = t->view.options->near_keys;
    ice_choose_parents(t);
    score_cells(t);
    if (!t->view.rules) {
        if (wanted >= t->view.stack->keys)
            for (int lane = 0; lane < ICE_PANEL; lane++) t->threshold[lane] = -INFINITY;
        else
            ice_risk_threshold(t->view.kernels, t->risk + t->view.stack->parents * ICE_PANEL,
                               t->rows - t->view.stack->parents, t->tile.lanes, t->count + t->view.stack->parents,
                               wanted, t->threshold);
    }
    open_nodes(t, t->parent_runs, t->runs, t->threshold);
}

/* ---- The near field ---- */

/* The keys that a row of the mask, and its range, leave of a cell, run by run. */
static void attend_cut_cell(ice_selection *t, uint64_t lanes, const ice_mask_row *row, const ice_stacked *from,
                            int64_t cell, int64_t first, int64_t end) {
    const icecore_segment *s = from->segment;
    const int is_biased = t->view.problem->mask_kind == ICECORE_MASK_FLOAT32;
    float bias[ICE_KEY_BLOCK];
    while (first < end) {
        int64_t count = 0;
        while (count < ICE_KEY_BLOCK && first + count < end) {
            bias[count] = ice_mask_at(t->view.problem, row, from->end - s->count + s->order[first + count]);
            if (bias[count] == -INFINITY) break;
            count++;
        }
        if (count) ice_attend_stored(t, lanes, s, cell, first, count, is_biased ? bias : NULL);
        first += count < ICE_KEY_BLOCK ? count + 1 : count;
    }
}

/* The next cell of a run that some lane opens. */
static void prefetch_next(const ice_selection *t, const ice_node_run *now, int64_t after) {
    const uint64_t lanes = ice_tile_lanes(&t->tile);
    while (after < now->count && !(t->open[now->row + after] & lanes)) after++;
    if (after < now->count) ice_prefetch_cell(now->from->segment, now->node + after);
}

/* Cell by cell, so that a cell's rows stay in cache for all queries that opened it. */
void ice_add_near_field(ice_selection *t) {
    for (int64_t r = t->parent_runs; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        const icecore_segment *s = now->from->segment;
        for (int64_t i = 0; i < now->count; i++) {
            uint64_t lanes = t->open[now->row + i] & ice_tile_lanes(&t->tile);
            if (i % ICE_CELLS_PER_PARENT == 0 && ice_interrupted()) return;
            if (!lanes) continue;
            prefetch_next(t, now, i + 1);
            int64_t first = s->cell.offset[now->node + i], count = s->cell.offset[now->node + i + 1] - first;
            uint64_t cut = t->is_masked ? t->mask.cut[now->number + i] & lanes : 0;
            if (lanes & ~cut) ice_attend_stored(t, lanes & ~cut, s, now->node + i, first, count, NULL);
            for (int m = 0; cut && m < t->mask.rows; m++)
                if (cut & t->mask.row[m].lanes)
                    attend_cut_cell(t, cut & t->mask.row[m].lanes, &t->mask.row[m], now->from, now->node + i, first,
                                    first + count);
        }
    }
}

/* ---- The far field ---- */

void ice_add_far_field(ice_selection *t) {
    ice_tile *tile = &t->tile;
    float before[ICE_PANEL];
    ice_tile_flush(tile); /* so that what the means add to the sums is theirs alone */
    for (int64_t r = 0; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        for (int64_t i = 0; i < now->count; i += ICE_KEY_BLOCK) {
            const int64_t count = ice_min(now->count - i, ICE_KEY_BLOCK);
            memcpy(before, tile->sum, sizeof before);
            ice_tile_add_means(tile, t->scores + (now->row + i) * ICE_PANEL, count, now->from->segment->mean_dtype,
                               ice_mean_value_of(now, now->node + i));
            for (int lane = 0; lane < tile->lanes; lane++)
                t->far[lane] =
                    t->far[lane] * tile->correction[lane] + (tile->sum[lane] - before[lane] * tile->correction[lane]);
        }
    }
}
