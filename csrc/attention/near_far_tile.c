/* The order of a tile: exact keys, which nodes a mask hides, the choice of cells, near field, far field, report. */
#include "attention/near_far_tile.h"

static void attend_exact_keys(ice_tile *tile, const ice_exact_keys *exact) {
    ice_tile_attend_keys(tile, exact->sinks, 0, exact->sink_end);
    ice_tile_attend_keys(tile, tile->problem, exact->open_begin, ice_tile_visible(tile).end);
    ice_tile_move_to_panel(tile);
}

/* Rows to which the mask leaves so little of every cell that they see all keys. */
static void attend_all(ice_selection *t) {
    const ice_exact_keys *exact = &t->view.exact;
    ice_tile_attend_keys(&t->tile, t->view.problem, exact->sink_end,
                         exact->open_begin); /* never of a cache: no masks */
    for (int m = 0; m < t->mask.rows; m++)
        for (uint64_t left = t->mask.row[m].lanes; left; left &= left - 1)
            t->near_count[__builtin_ctzll(left)] = t->mask.row[m].seen;
}

static void attend_cells(ice_selection *t) {
    ice_choose_cells(t);
    if (t->view.report->missed_bound) ice_bound_far_field(t);
    ice_add_near_field(t);
    ice_add_far_field(t);
}

ice_selection *ice_near_far_begin(const ice_head_view *view, int64_t first_row, int64_t rows, void *scratch) {
    ice_selection *t = ice_selection_begin(view, first_row, rows, scratch);
    attend_exact_keys(&t->tile, &view->exact);
    return t;
}

void ice_near_far_attend(const ice_head_view *view, int64_t first_row, int64_t end_row, void *scratch) {
    ice_selection *t = ice_near_far_begin(view, first_row, end_row - first_row, scratch);
    if (view->stack->nodes && t->is_masked) ice_node_mask_read(&t->mask, &t->tile, view->stack);
    if (view->stack->nodes) {
        if (t->mask.dense == ice_tile_lanes(&t->tile)) attend_all(t);
        else attend_cells(t);
    }
    ice_tile_finish(&t->tile);
    for (int lane = 0; lane < t->tile.lanes; lane++) ice_report_row(t, lane);
}
