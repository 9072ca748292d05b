/* What near/far attention chooses for a tile of rows: cells of a stack by their risk, opened or by their means.  It
 * streams runs and means into the tile (attend/run.h) and never touches a softmax. */
#ifndef ICE_SELECTION_H
#define ICE_SELECTION_H

#include <math.h>

#include "attend/run.h"
#include "segment/stack.h"
#include "select/node_mask.h"

/* Some queries' keys: [0, sink_end) and from open_begin on exactly, the others by the cells of a stack. */
typedef struct {
    int64_t sink_end, open_begin;
    const icecore_attention *sinks; /* the problem, or one like it whose keys and values are where the sinks lie */
    const float *centre;            /* NULL, or what was taken off all keys: lse wants its score back */
    ice_packed_head packed;         /* the key head's, if it is packed; then sinks is the problem */
} ice_exact_keys;

/* How far a query head opens at present. */
typedef struct {
    float
        threshold; /* a cell is opened whose risk, by the norm of the row's estimated sum, is at least this; above 0 */
    float key_share;   /* above 0: cells are opened as well of which one key is expected to hold such a share of the
                          mass (ice_expected_share) */
    float max_squared; /* above 0: a row whose query has a larger squared length opens all cells */
    float log2_mass;   /* of what the mass of its means is multiplied by, for lse and captured mass */
    uint8_t all_cells; /* parents are not trusted: all are expanded */
    uint8_t halves;    /* of float32 rows in halves the first ones are read alone */
    uint8_t exact;     /* one of these; but for the first its rows are not written here */
} ice_rule;
/* ICE_ROUNDED: exact on the numbers that near/far attention multiplies, whose rounding keeps the tolerance.
 * ICE_UNKNOWN: nothing has been measured yet. */
enum { ICE_NOT_EXACT, ICE_EXACT, ICE_UNKNOWN, ICE_ROUNDED };

/* What all tiles of a head see. */
typedef struct {
    const icecore_attention *problem;
    const icecore_near_far *options;
    const icecore_report *report;
    const ice_rule *rules; /* of the key head's query heads; NULL where near_keys says what is opened */
    const ice_kernels *kernels;
    const ice_stack *stack;
    ice_exact_keys exact;
    int64_t head;            /* batch * key_heads + key head */
    const int64_t *position; /* where the problem's queries stand; NULL: the last one at the last key */
} ice_head_view;

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
    ice_head_view view;
    ice_tile tile;
    int64_t rows;         /* of `scores`: all parents', then those of the cells of expanded ones */
    float *scores, *risk; /* rows x ICE_PANEL */
    uint64_t *open;       /* rows: the lanes that expand or open */
    float *count;         /* rows: keys; with a count of near keys only */
    ice_node_run *run;    /* of parents, one for each segment; then of cells */
    int64_t parent_runs, runs;
    int is_masked;                               /* whether a mask or a range may hide sealed keys from some row */
    ice_node_mask mask;                          /* of these only */
    ice_spread *spread;                          /* of each of the stack's levels */
    float *guess;                                /* value_dim x ICE_PANEL */
    float threshold[ICE_PANEL];                  /* the risks from which on each row opens cells */
    uint64_t halves;                             /* the lanes that read first halves alone */
    int doubts;                                  /* whether single keys are looked for: some rule has a key_share */
    float mass[ICE_PANEL], key_share[ICE_PANEL]; /* the row's mass, guessed, and what it looks for; inf: for none */
    float far[ICE_PANEL];                        /* of the panel's sum */
    float few_far[ICE_PANEL],
        few_far_maximum[ICE_PANEL]; /* few_rows.c: the same of the near field's sum, where it is asked for */
    int64_t few_scored[ICE_PANEL];  /* and the cells scored there */
    float bound[ICE_PANEL], bound_maximum[ICE_PANEL]; /* missed_bound: the most that the far field can stand for */
    int64_t near_count[ICE_PANEL];
} ice_selection;

/* What a stored row's first bytes are numbers of. */
static inline icecore_dtype ice_stored_dtype(const icecore_segment *s) {
    return s->halves ? ICECORE_BFLOAT16 : s->dtype;
}
static inline const void *ice_key_of(const icecore_segment *s, int64_t row) {
    return ice_row_of(ice_stored_dtype(s), s->keys, row, s->dim);
}
static inline const void *ice_value_of(const icecore_segment *s, int64_t row) {
    return ice_row_of(ice_stored_dtype(s), s->values, row, s->value_dim);
}
static inline const void *ice_mean_value_of(const ice_node_run *r, int64_t node) {
    const icecore_segment *s = r->from->segment;
    return ice_row_of(s->mean_dtype, r->nodes->mean_value, node, s->value_dim);
}

static inline const ice_rule *ice_rule_of(const ice_selection *t, int lane) {
    const int64_t row = t->tile.first_row + ice_min(lane, t->tile.lanes - 1); /* spare lanes are the last row's */
    return &t->view.rules[row % ice_group(t->view.problem)];
}

/* What risks promise was measured on queries that are not much shorter. */
static inline int ice_is_unlike(const ice_rule *rule, float squared) {
    return rule->max_squared > 0.0f && squared > rule->max_squared;
}

static inline const ice_spread *ice_spread_of(const ice_selection *t, const ice_stacked *from) {
    return &t->spread[from - t->view.stack->level];
}

/* A cell's rows: on their way from memory while others are summed (measured: 4 to 9 % of a call's time at 8k to 128k).
 */
static inline void ice_prefetch_cell(const icecore_segment *s, int64_t cell) {
    const int64_t first = s->cell.offset[cell], end = s->cell.offset[cell + 1];
    ice_prefetch(ice_key_of(s, first), ice_key_of(s, end));
    ice_prefetch(ice_value_of(s, first), ice_value_of(s, end));
}

/* Stored keys first .. first + count - 1 of a segment, all of them in `cell` where they are less its mean
 * (ice_base_of), for the rows in `lanes`. */
static inline ice_run ice_stored_run(const ice_tile *tile, const icecore_segment *s, int64_t cell, int64_t first,
                                     int64_t count, uint64_t lanes) {
    ice_run run = ice_run_of(tile, ice_stored_dtype(s), ice_key_of(s, first), ice_value_of(s, first), count, lanes);
    run.base = ice_base_of(s, cell);
    run.unchecked = ice_hides_keys(tile->problem); /* else all rows open what holds a NaN */
    if (s->halves) {
        run.second_keys = ice_second_half(s, s->keys, first, s->dim);
        run.second_values = ice_second_half(s, s->values, first, s->value_dim);
    }
    return run;
}

/* Attends to them by one of the functions that take runs, the rows that read first halves alone before the others.
 * bias: of each key, or NULL. */
static inline void ice_attend_stored_by(void (*attend)(ice_tile *, const ice_run *), ice_selection *t, uint64_t lanes,
                                        const icecore_segment *s, int64_t cell, int64_t first, int64_t count,
                                        const float *bias) {
    const uint64_t rounded = s->halves == ICE_HALVES ? lanes & t->halves : 0;
    ice_run run = ice_stored_run(&t->tile, s, cell, first, count, lanes & ~rounded);
    run.bias = bias;
    if (rounded) {
        ice_run halves = run;
        halves.lanes = rounded;
        halves.second_keys = halves.second_values = NULL;
        attend(&t->tile, &halves);
    }
    if (run.lanes) attend(&t->tile, &run);
}

static inline void ice_attend_stored(ice_selection *t, uint64_t lanes, const icecore_segment *s, int64_t cell,
                                     int64_t first, int64_t count, const float *bias) {
    ice_attend_stored_by(ice_tile_attend, t, lanes, s, cell, first, count, bias);
    for (; lanes; lanes &= lanes - 1) t->near_count[__builtin_ctzll(lanes)] += count;
}

/* ---- tree.c ---- */

/* Scratch of a selection and its tile over at most so many levels, and cells and parents. */
size_t ice_selection_bytes(const icecore_attention *problem, int64_t levels, int64_t nodes);
/* A panel of a head's rows before the first key.  scratch: ice_selection_bytes. */
ice_selection *ice_selection_begin(const ice_head_view *view, int64_t first_row, int64_t rows, void *scratch);

void ice_selection_score_parents(ice_selection *t);
/* Scores and risks of neighbouring nodes, whose rows are the next ones.  lanes: those that have to do with them. */
void ice_selection_score(ice_selection *t, const ice_node_run *nodes, uint64_t lanes);

/* Scores and risks of parents, and which each row expands. */
void ice_choose_parents(ice_selection *t);
/* Which parents each row expands and which cells it opens; the cells of parents that few rows expand are attended. */
void ice_choose_cells(ice_selection *t);
/* Attends to the keys of opened cells, cell by cell. */
void ice_add_near_field(ice_selection *t);
/* Adds parents and cells that are not opened by their means. */
void ice_add_far_field(ice_selection *t);

/* ---- risk.c ---- */

/* A parent is expanded when its own risk is above this share of what opens a cell.  From 0.1 to 0.2 saves 2 to 5 % of
 * the time at 8k to 128k for an error that hardly changes (at 128k 1 to 8 %); 0.45 is better where tolerances are
 * coarse, worse at 128k where they are fine. */
#define ICE_EXPAND_SHARE 0.2f

/* The share of a row's mass that one key of a node is expected to hold: the largest, over cosines c between query and
 * key less mean, of the share that the farthest key then holds, at most 1, times exp(-dim c^2 / 2), about how often a
 * direction at random has it.  (The one cosine of 2.5 / sqrt(dim) passes over single keys with half of the mass and
 * more: in questions about 4000 tokens to SmolLM2 six times as many rows had errors above 0.3, for 4 % fewer near
 * keys.) All are logarithms to base 2; lacking: the row's mass less the mean's score; reach: the farthest key's score
 * less the mean's at c = 1. */
static inline float ice_expected_share(float lacking, float reach, float dim) {
    const float rareness = dim / (2.0f * ICE_LN_2), missing = lacking > 0.0f ? lacking : 0.0f;
    const float half = 0.5f * reach / rareness, most = half < 1.0f ? half : 1.0f, all = missing / reach;
    const float cosine = all < most ? all : most, share = cosine * reach - missing;
    return (share < 0.0f ? share : 0.0f) - rareness * cosine * cosine;
}

/* No key of a node scores higher than its mean by more than the norm of the query times the radius, both in the
 * segment's metric.  A score of -inf, of a node that is opened or hidden, stays whatever the radius. */
static inline float ice_largest_score(float score, float norm, float radius) {
    return score == -INFINITY ? score : score + norm * radius;
}

void ice_find_spreads(ice_selection *t);
/* Of each lane the logarithms of the norm of the sum of weighted values and of the mass, guessed from the exact keys
 * and the parents. */
void ice_selection_guess(ice_selection *t, float log2_norm[ICE_PANEL], float log2_mass[ICE_PANEL]);
/* Of each lane's query, its scale included. */
void ice_squared_lengths(const ice_selection *t, float squared[ICE_PANEL]);
/* The risks from which on each row opens cells, by the rules, and expands parents. */
void ice_find_thresholds(ice_selection *t, float expand[ICE_PANEL]);
/* Raises the risks of nodes of which one key is expected to hold a row's key_share to what opens them. */
void ice_raise_doubtful(ice_selection *t, const ice_node_run *nodes, const float *threshold);

/* ---- few_rows.c ---- */

/* With tolerances and without a mask: the cells node .. node + count - 1 of a level's segment, for the rows in `lanes`.
 * Opens those at or above a row's threshold and adds their keys, and the other cells by their means.  The tile's scores
 * are lost. */
void ice_attend_cells_of_few(ice_selection *t, uint64_t lanes, const ice_stacked *from, int64_t node, int64_t count);
/* The same for all parents that some row expands, one part of several of about the same size. */
void ice_attend_expanded(ice_selection *t, int64_t part, int64_t parts);

#endif
