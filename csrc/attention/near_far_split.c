#include "attention/near_far_split.h"

#include <string.h>

/* Keys of a part, and tasks wanted of all heads. */
#define KEYS_PER_PART 2048
#define WANTED_TASKS 32

int64_t ice_split_parts(const icecore_attention *p, const icecore_report *report, const ice_stack *stack,
                        int64_t rows) {
    const int is_reported = report->near_count || report->captured_mass || report->missed_bound || report->summaries;
    const int64_t by_tasks = (WANTED_TASKS + p->key_heads - 1) / p->key_heads, by_keys = stack->keys / KEYS_PER_PART;
    const int64_t parts = ice_min(by_tasks, by_keys);
    return rows > ICE_FEW_ROWS || is_reported || p->lse || parts < 1 ? 1 : parts;
}

/* Measures and lays out by the same code. */
static void lay_out(ice_split *split, const ice_head_view *view, int64_t rows, int64_t parts, ice_arena *a) {
    const int64_t states = (1 + parts) * rows, levels = view->stack->levels;
    split->chosen.open = ice_arena_take(a, view->stack->parents, sizeof *split->chosen.open);
    split->chosen.run = ice_arena_take(a, levels, sizeof *split->chosen.run);
    split->chosen.spread = ice_arena_take(a, levels, sizeof *split->chosen.spread);
    split->state = ice_arena_take(a, states, sizeof *split->state);
    split->accumulators = ice_arena_take(a, states * view->problem->value_dim, sizeof *split->accumulators);
}

size_t ice_split_bytes(const ice_head_view *view, int64_t rows, int64_t parts) {
    ice_split none;
    ice_arena arena = {NULL, 0};
    lay_out(&none, view, rows, parts, &arena);
    return arena.used;
}

void ice_split_place(ice_split *split, int64_t rows, int64_t parts, char *memory) {
    split->rows = rows;
    split->parts = parts;
    split->memory = memory;
    split->begun = 0;
    atomic_init(&split->settled, 0);
    atomic_init(&split->left, parts);
}

/* What a tile has attended to, as states of its rows. */
static void keep(ice_split *split, ice_tile *tile, int64_t place) {
    ice_tile_finish(tile);
    for (int64_t lane = 0; lane < split->rows; lane++)
        ice_state_merge(&split->state[place * split->rows + lane], tile->problem->value_dim, &tile->state[lane]);
}

void ice_split_begin(ice_split *split, const ice_head_view *view, int64_t first_row, void *scratch) {
    const int64_t value_dim = view->problem->value_dim;
    ice_arena arena = {split->memory, 0};
    ice_selection *t = ice_near_far_begin(view, first_row, split->rows, scratch);
    ice_choose_parents(t);
    ice_add_far_field(t);
    split->chosen = *t;
    lay_out(split, view, split->rows, split->parts, &arena);
    memcpy(split->chosen.open, t->open, (size_t)t->view.stack->parents * sizeof *t->open);
    memcpy(split->chosen.run, t->run, (size_t)t->parent_runs * sizeof *t->run);
    memcpy(split->chosen.spread, t->spread, (size_t)view->stack->levels * sizeof *t->spread);
    for (int64_t i = 0; i < (1 + split->parts) * split->rows; i++)
        split->state[i] = ice_state_start(split->accumulators + i * value_dim, value_dim);
    keep(split, &t->tile, 0);
    split->begun = 1;
}

static void write_rows(const ice_split *split, const ice_tile *tile) {
    for (int64_t lane = 0; lane < split->rows; lane++) {
        ice_state *whole = &split->state[lane];
        for (int64_t part = 1; part <= split->parts; part++)
            ice_state_merge(whole, tile->problem->value_dim, &split->state[part * split->rows + lane]);
        ice_state_write(whole, tile->problem, tile->kernels, ice_tile_row(tile, (int)lane));
    }
}

void ice_split_attend(ice_split *split, int64_t part, void *scratch) {
    if (!split->begun) return;
    ice_arena arena = {scratch, 0};
    ice_selection *t = ice_arena_take(&arena, 1, sizeof *t);
    const ice_tile *before = &split->chosen.tile;
    *t = split->chosen;
    ice_tile_begin(&t->tile, before->problem, before->kernels, before->batch, before->key_head, before->first_row,
                   split->rows, arena.memory + arena.used);
    for (int lane = 0; lane < t->tile.lanes; lane++) /* sink logits count in the first state alone */
        t->tile.state[lane] = ice_state_start(t->tile.state[lane].accumulator, before->problem->value_dim);
    ice_attend_expanded(t, part, split->parts);
    keep(split, &t->tile, 1 + part);
    if (atomic_fetch_sub(&split->left, 1) == 1) write_rows(split, &t->tile);
}
