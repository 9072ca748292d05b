/* The cells of a parent that few rows of a panel expand: by the row kernels, where many lanes of a panel would stand
 * empty. */
#include <string.h>

#include "select/selection.h"

/* As many as row_open_cells can do. */
#define CELLS_AT_ONCE 64

/* The cells of which one key is expected to hold a row's key_share, a bit each. */
static uint64_t doubtful_cells(const ice_selection *t, int lane, float norm, const float *radius, int64_t count,
                               const float *scores) {
    const float mass = t->mass[lane], wanted = t->key_share[lane], dim = (float)t->view.problem->dim;
    float share[CELLS_AT_ONCE];
    uint64_t doubtful = 0;
    for (int64_t c = 0; c < count; c++) share[c] = ice_expected_share(mass - scores[c], norm * radius[c], dim);
    for (int64_t c = 0; c < count; c++) doubtful |= (uint64_t)(share[c] >= wanted) << c;
    return doubtful;
}

/* Step 2 for one row; its scores become those of the cells that it does not open.  Returns the others, a bit each. */
static uint64_t open_cells_of(ice_selection *t, int lane, const ice_stacked *from, int64_t node, int64_t count,
                              float *scores) {
    const icecore_segment *s = from->segment;
    const ice_nodes *cells = &s->cell;
    const ice_spread *spread = ice_spread_of(t, from);
    float copy[CELLS_AT_ONCE], correction;
    ice_tile_score_row(&t->tile, lane, s->mean_dtype, ice_row_of(s->mean_dtype, cells->mean_key, node, s->dim), count,
                       scores);
    for (int64_t c = 0; c < count; c++) scores[c] += spread->shift[lane];
    ice_tile_cap_row(&t->tile, scores, count);
    const ice_node_facts facts = ice_facts_of(cells, node);
    const ice_spreads row = {&spread->variance[lane], &spread->half_log2[lane], &spread->norm[lane]};
    uint64_t doubtful = 0;
    if (t->doubts) doubtful = doubtful_cells(t, lane, spread->norm[lane], cells->radius + node, count, scores);
    const uint64_t open = t->view.kernels->row_open_cells(scores, count, &facts, &row, t->threshold[lane]) | doubtful;
    for (; doubtful; doubtful &= doubtful - 1) scores[__builtin_ctzll(doubtful)] = -INFINITY;
    if (t->view.report->missed_bound) {
        for (int64_t c = 0; c < count; c++)
            copy[c] = ice_largest_score(scores[c], spread->norm[lane], cells->radius[node + c]);
        t->view.kernels->row_softmax(copy, count, &t->bound_maximum[lane], &t->bound[lane], &correction);
    }
    if (t->view.report->captured_mass || t->view.report->missed_bound || t->view.problem->lse) {
        memcpy(copy, scores, (size_t)count * sizeof *copy);
        t->view.kernels->row_softmax(copy, count, &t->few_far_maximum[lane], &t->few_far[lane], &correction);
    }
    t->few_scored[lane] += count;
    return open;
}

/* Steps 2 to 4 for at most CELLS_AT_ONCE cells. */
static void attend_cells(ice_selection *t, uint64_t lanes, const ice_stacked *from, int64_t node, int64_t count) {
    const icecore_segment *s = from->segment;
    float *scores = t->tile.scores;     /* CELLS_AT_ONCE for each lane */
    uint64_t open[CELLS_AT_ONCE] = {0}; /* the lanes of each cell */
    for (uint64_t left = lanes; left; left &= left - 1) {
        const int lane = __builtin_ctzll(left);
        uint64_t opened = open_cells_of(t, lane, from, node, count, scores + lane * CELLS_AT_ONCE);
        for (; opened; opened &= opened - 1) {
            const int cell = __builtin_ctzll(opened);
            if (!open[cell]) ice_prefetch_cell(s, node + cell);
            open[cell] |= (uint64_t)1 << lane;
        }
    }
    ice_tile_add_means_to(&t->tile, lanes, s->mean_dtype, scores, CELLS_AT_ONCE,
                          ice_row_of(s->mean_dtype, s->cell.mean_value, node, s->value_dim), count);
    for (int64_t c = 0, end; c < count; c = end) {
        for (end = c + 1; end < count && open[end] == open[c] && !s->relative;) end++;
        const int64_t first = s->cell.offset[node + c];
        if (open[c]) ice_attend_stored(t, open[c], s, node + c, first, s->cell.offset[node + end] - first, NULL);
    }
}

void ice_attend_cells_of_few(ice_selection *t, uint64_t lanes, const ice_stacked *from, int64_t node, int64_t count) {
    for (int64_t c = 0; c < count; c += CELLS_AT_ONCE)
        attend_cells(t, lanes, from, node + c, ice_min(count - c, CELLS_AT_ONCE));
}

/* Attends to the cells of expanded parents first .. end - 1; returns how many are expanded. */
static int64_t attend_parents(ice_selection *t, int64_t first, int64_t end) {
    int64_t expanded = 0;
    for (int64_t r = 0; r < t->parent_runs; r++) {
        const ice_node_run *parents = &t->run[r];
        const icecore_segment *s = parents->from->segment;
        for (int64_t p = 0; p < parents->count; p++) {
            const uint64_t lanes = t->open[parents->row + p] & ice_tile_lanes(&t->tile);
            const int64_t node = s->parent.offset[p];
            if (!lanes) continue;
            if (expanded >= first && expanded < end)
                ice_attend_cells_of_few(t, lanes, parents->from, node, s->parent.offset[p + 1] - node);
            expanded++;
        }
    }
    return expanded;
}

void ice_attend_expanded(ice_selection *t, int64_t part, int64_t parts) {
    const int64_t expanded = attend_parents(t, 0, 0);
    attend_parents(t, expanded * part / parts, expanded * (part + 1) / parts);
}

_Static_assert(CELLS_AT_ONCE <= ICE_KEY_BLOCK, "a tile's scores have room for those of its rows");
