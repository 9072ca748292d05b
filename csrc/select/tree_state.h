/* The state of a panel of queries on its way through a stack (tree.c), and the parts of that way that have files of
 * their own. */
#ifndef ICE_TREE_STATE_H
#define ICE_TREE_STATE_H

#include <math.h>

#include "select/node_mask.h"
#include "attend/tile.h"
#include "attend/rows.h"
#include "select/tree.h"

/* Neighbouring nodes of one segment, whose rows lie together in `scores`. */
typedef struct {
    const ice_stacked *from;
    const ice_nodes *nodes;
    int64_t node, count, row;
    int64_t number; /* of the first node among all of the stack: each segment's parents, then its cells */
} ice_node_run;

/* How much the scores of a panel's rows vary against a segment's keys. */
typedef struct {
    float variance[ICE_PANEL];  /* against keys of variance 1 per dimension: x_c / variance_c in icecore.h */
    float half_log2[ICE_PANEL]; /* of `variance` */
    float norm[ICE_PANEL];  /* how much the score of a key at distance 1 from a mean may exceed the mean's; base 2 */
    float shift[ICE_PANEL]; /* the scores of the segment's centre, which those of its means lack */
} ice_spread;

typedef struct {
    const icecore_attention *problem;
    const icecore_near_far *options;
    const ice_rule *rules; /* NULL: by near_keys */
    const ice_kernels *kernels;
    const ice_stack *stack;
    ice_tile tile;
    int64_t parents, rows; /* rows of `scores`: the parents', then those of the cells of expanded ones */
    float *scores, *risk;  /* rows x ICE_PANEL */
    uint64_t *open;        /* rows: the lanes that expand or open */
    float *count;          /* rows: keys; with a count of near keys only */
    ice_node_run *run;     /* of parents, one for each segment; then of cells */
    int64_t parent_runs, runs;
    ice_node_mask mask;            /* with a mask only */
    ice_spread *spread;            /* of each of the stack's levels */
    float *near_accumulator;       /* ICE_PANEL x value_dim */
    float *guess;                  /* value_dim x ICE_PANEL */
    float *visited, *visited_copy; /* far_field = 0: scores of a row's visited keys */
    const void **visited_value;
    int doubts;             /* whether single keys are looked for: some rule has a key_share */
    float doubt[ICE_PANEL]; /* the score from which on a key would hold it; inf for a row that looks for none */
    float far[ICE_PANEL];   /* of the panel's sum */
    float few_far[ICE_PANEL],
        few_far_maximum[ICE_PANEL]; /* few_rows.c: the same of the near field's sum, where it is asked for */
    int64_t few_scored[ICE_PANEL];  /* and the cells scored there */
    float bound[ICE_PANEL], bound_maximum[ICE_PANEL]; /* missed_bound: the most that the far field can stand for */
    float dropped[ICE_PANEL], dropped_maximum[ICE_PANEL];
    ice_state near_field[ICE_PANEL];
    int64_t near_count[ICE_PANEL];
} ice_selection;

static inline const void *ice_row_of(icecore_dtype dtype, const void *rows, int64_t row, int64_t dim) {
    return (const char *)rows + (size_t)row * ice_row_bytes(dtype, dim);
}
static inline const void *ice_key_of(const icecore_segment *s, int64_t row) {
    return ice_row_of(s->dtype, s->keys, row, s->dim);
}
static inline const void *ice_value_of(const icecore_segment *s, int64_t row) {
    return ice_row_of(s->dtype, s->values, row, s->value_dim);
}
static inline const void *ice_mean_value_of(const ice_node_run *r, int64_t node) {
    const icecore_segment *s = r->from->segment;
    return ice_row_of(s->mean_dtype, r->nodes->mean_value, node, s->value_dim);
}

static inline const ice_rule *ice_rule_of(const ice_selection *t, int lane) {
    const ice_tile *panel = &t->tile; /* spare lanes are the last row's */
    return &t->rules[(panel->first_row + (lane < panel->lanes ? lane : panel->lanes - 1)) % ice_group(t->problem)];
}

static inline int ice_is_masked(const ice_selection *t) { return t->problem->mask_kind != ICECORE_MASK_NONE; }

static inline uint64_t ice_used_lanes(const ice_selection *t) { return ((uint64_t)1 << t->tile.lanes) - 1; }

/* NULL where keys are not multiplied as bfloat16. */
static inline const uint16_t *ice_rounded_query(const ice_selection *t, int lane) {
    return t->tile.query_pairs ? t->tile.rounded_rows + lane * t->problem->dim : NULL;
}

static inline const ice_spread *ice_spread_of(const ice_selection *t, const ice_stacked *from) {
    return &t->spread[from - t->stack->level];
}

/* So much of a large cell: the processor sees the rest coming. */
#define PREFETCHED 8192

static inline void ice_prefetch(const char *rows, const char *end) {
    if (end - rows > PREFETCHED) end = rows + PREFETCHED;
    for (; rows < end; rows += 64) __builtin_prefetch(rows);
}

/* A cell's rows: on their way from memory while others are summed (measured: 4 to 9 % of a call's time at 8k to 128k).
 */
static inline void ice_prefetch_cell(const icecore_segment *s, int64_t cell) {
    const int64_t first = s->cell.offset[cell], end = s->cell.offset[cell + 1];
    ice_prefetch(ice_key_of(s, first), ice_key_of(s, end));
    ice_prefetch(ice_value_of(s, first), ice_value_of(s, end));
}

/* Attends to stored keys first .. first + count - 1 of a segment, all of them in `cell` where they are less its mean
 * (ice_base_of).  The mean's score, which they lack, is the same for all: a row's maximum is lowered by it meanwhile.
 */
static inline void ice_stored_attend(const ice_selection *t, ice_state *state, uint64_t lanes, const icecore_segment *s,
                                     int64_t cell, int64_t first, int64_t count, const float *bias) {
    const float *base = ice_base_of(s, cell);
    float score[ICE_PANEL];
    for (uint64_t left = base ? lanes : 0; left; left &= left - 1) {
        const int lane = __builtin_ctzll(left);
        t->kernels->row_scores(t->tile.query_rows + lane * s->dim, s->dim, ICECORE_FLOAT32, base, s->dim, 1,
                               &score[lane]);
        state[lane].maximum -= score[lane];
    }
    ice_rows_attend(state, lanes, t->kernels, t->tile.query_rows, ice_rounded_query(t, 0), t->tile.scale, s->dim,
                    s->value_dim, s->dtype, ice_key_of(s, first), ice_value_of(s, first), count, bias);
    for (uint64_t left = base ? lanes : 0; left; left &= left - 1)
        state[__builtin_ctzll(left)].maximum += score[__builtin_ctzll(left)];
}

/* The same to the near field of the rows in `lanes`. */
static inline void ice_attend_stored(ice_selection *t, uint64_t lanes, const icecore_segment *s, int64_t cell,
                                     int64_t first, int64_t count, const float *bias) {
    ice_stored_attend(t, t->near_field, lanes, s, cell, first, count, bias);
    for (; lanes; lanes &= lanes - 1) t->near_count[__builtin_ctzll(lanes)] += count;
}

/* ---- tree.c, for measure.c ---- */

ice_selection *ice_selection_lay_out(const icecore_attention *problem, const icecore_near_far *options,
                                     const ice_stack *stack, char *scratch, char **rest);
/* Once the panel has begun: everything else as it is before the first key. */
void ice_selection_begin(ice_selection *t, const ice_kernels *kernels);
void ice_selection_attend_exact_keys(ice_selection *t, ice_exact_keys exact);
void ice_selection_score_parents(ice_selection *t);
/* Scores and risks of neighbouring nodes, whose rows are the next ones.  lanes: those that have to do with them. */
void ice_selection_score(ice_selection *t, const ice_node_run *nodes, uint64_t lanes);
/* Of each lane the logarithms of the norm of the sum of weighted values and of the mass, guessed from the exact keys
 * and the parents. */
void ice_selection_guess(ice_selection *t, float log2_norm[ICE_PANEL], float log2_mass[ICE_PANEL]);
/* A parent is expanded when its own risk is above this share of what opens a cell.  From 0.1 to 0.2 saves 2 to 5 % of
 * the time at 8k to 128k for an error that hardly changes (at 128k 1 to 8 %); 0.45 is better where tolerances are
 * coarse, worse at 128k where they are fine. */
#define ICE_EXPAND_SHARE 0.2f

/* How far from its mean a key of a node may reach toward a query, by the radius: a direction at random has a cosine
 * above this with another once in 160 times.  (On SmolLM2 28 of 32 cells with a key of 2 % of the mass that their means
 * do not show are found so, for 0.2 to 2 % of all cells.) */
static inline float ice_reach(int64_t dim) { return dim <= 6 ? 1.0f : 2.5f / sqrtf((float)dim); }

/* ---- few_rows.c ---- */

/* With tolerances and without a mask: the cells node .. node + count - 1 of a level's segment, for the rows in `lanes`.
 * Opens those at or above a row's threshold and adds their keys, and the other cells by their means, to the near field.
 * The panel's scores are lost. */
void ice_attend_cells_of_few(ice_selection *t, uint64_t lanes, const ice_stacked *from, int64_t node, int64_t count,
                             const float *threshold);

/* ---- largest.c ---- */

/* With far_field = 0: of the keys of opened cells, each row attends to the near_keys with the largest scores; all else
 * is dropped. */
void ice_attend_largest(ice_selection *t);

#endif
