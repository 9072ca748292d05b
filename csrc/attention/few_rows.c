/* The cells of a parent that few rows of a panel expand: row by row, where the lanes of a panel would stand empty.  At 128k a third of all
 * expanded parents are so for fewer than 8 of 48 rows. */
#include <string.h>

#include "attention/treecode_state.h"

/* As many as row_open_cells can do. */
#define CELLS_AT_ONCE 64

/* Steps 3 to 5 for one row and at most CELLS_AT_ONCE cells of a segment. */
static void attend_cells(ice_treecode *t, int lane, const icecore_segment *s, int64_t node, int64_t count, float threshold) {
    const ice_nodes *cells = &s->cell;
    float scores[CELLS_AT_ONCE], copy[CELLS_AT_ONCE], correction;
    ice_single_scores(t->kernels, t->query + lane * s->dim, ice_rounded_query(t, lane), t->panel.scale, s->dim, s->mean_dtype,
                      ice_row_of(s->mean_dtype, cells->mean_key, node, s->dim), count, scores);
    uint64_t open = t->kernels->row_open_cells(scores, count, cells->log2_risk + node, cells->variance + node, cells->log2_count + node,
                                               t->spread[lane], threshold);
    for (uint64_t left = open; left; left &= left - 1) ice_prefetch_cell(s, node + __builtin_ctzll(left));
    if (t->options->missed_bound) {
        for (int64_t c = 0; c < count; c++) copy[c] = scores[c] + ice_query_norm(t, lane) * cells->radius[node + c];
        t->kernels->row_softmax(copy, count, &t->bound_maximum[lane], &t->bound[lane], &correction);
    }
    if (t->options->captured_mass || t->options->missed_bound) {
        memcpy(copy, scores, (size_t)count * sizeof *copy);
        t->kernels->row_softmax(copy, count, &t->singly_far_maximum[lane], &t->singly_far[lane], &correction);
    }
    ice_single_add(&t->near_field[lane], t->kernels, s->value_dim, s->mean_dtype, scores,
                   ice_row_of(s->mean_dtype, cells->mean_value, node, s->value_dim), count);
    while (open) {
        int64_t cell = __builtin_ctzll(open), end = cell + 1;
        for (open &= open - 1; end < count && (open >> end) & 1; end++) open &= open - 1;
        ice_attend_stored(t, lane, s, cells->offset[node + cell], cells->offset[node + end] - cells->offset[node + cell], NULL);
    }
    t->singly_scored[lane] += count;
}

void ice_attend_cells_singly(ice_treecode *t, uint64_t lanes, const icecore_segment *s, int64_t node, int64_t count, const float *threshold) {
    for (; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctzll(lanes);
        for (int64_t c = 0; c < count; c += CELLS_AT_ONCE)
            attend_cells(t, lane, s, node + c, count - c < CELLS_AT_ONCE ? count - c : CELLS_AT_ONCE, threshold[lane]);
    }
}
