/* A panel of queries over the cells of a stack: what of near/far attention (icecore.h) is not exact attention. */
#ifndef ICE_TREE_H
#define ICE_TREE_H

#include "attend/tile.h"
#include "segment/stack.h"

/* Some queries' keys: [0, sink_end) and from open_begin on exactly, the others by the cells of a stack. */
typedef struct {
    int64_t sink_end, open_begin;
    const icecore_attention *sinks; /* the problem, or one like it whose keys and values are where the sinks lie */
    const float *centre;            /* NULL, or what was taken off all keys: lse wants its score back */
    const uint16_t *packed; /* NULL, or the key head's values, packed (packed_values.h); then sinks is the problem */
} ice_exact_keys;

/* How far a query head opens at present. */
typedef struct {
    float
        threshold; /* a cell is opened whose risk, by the norm of the row's estimated sum, is at least this; above 0 */
    float key_share;   /* above 0: cells are opened as well of which one key may hold such a share of the mass
                          (tree.c) */
    float log2_mass;   /* of what the mass of its means is multiplied by, for lse and captured mass */
    uint8_t all_cells; /* parents are not trusted: all are expanded */
    uint8_t exact; /* its rows are not written here: the tolerance needs it, or ICE_UNKNOWN: nothing has been measured
                      yet */
} ice_rule;
#define ICE_UNKNOWN 2

/* Whether thresholds say what is opened, not near_keys. */
static inline int ice_by_threshold(const icecore_near_far *o) {
    return o->tolerance > 0.0f || o->head_tolerance || o->head_threshold;
}

/* Scratch of one panel over at most so many levels, and cells and parents. */
size_t ice_selection_bytes(const icecore_attention *problem, const icecore_near_far *options, int64_t levels,
                           int64_t nodes);

/* Attends and writes the rows first_row .. first_row + lanes - 1 of a head (batch * key_heads + key head).  rules: of
 * the key head's query heads; NULL where near_keys says what is opened. */
void ice_selection_attend(const icecore_attention *problem, const icecore_near_far *options, const ice_rule *rules,
                          const ice_kernels *kernels, const ice_stack *stack, ice_exact_keys exact, int64_t head,
                          int64_t first_row, int lanes, void *scratch);

#endif
