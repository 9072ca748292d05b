/* A panel of queries over the cells of a stack: what of near/far attention (icecore.h) is not exact attention. */
#ifndef ICE_TREECODE_H
#define ICE_TREECODE_H

#include "attention/panel.h"
#include "segment/stack.h"

/* Some queries' keys: [0, sink_end) and from open_begin on exactly, the others by the cells of a stack. */
typedef struct {
    int64_t sink_end, open_begin;
    const icecore_attention *sinks;   /* the problem, or one like it whose keys and values are where the sinks lie */
} ice_exact_keys;

/* Whether tolerances say what is opened, not near_keys. */
static inline int ice_by_tolerance(const icecore_near_far *options) { return options->cell_tolerance > 0.0f || options->head_tolerance; }

/* Scratch of one panel over at most so many levels, and cells and parents. */
size_t ice_treecode_bytes(const icecore_attention *problem, const icecore_near_far *options, int64_t levels, int64_t nodes);

/* Attends and writes the rows first_row .. first_row + lanes - 1 of a head (batch * key_heads + key head). */
void ice_treecode_attend(const icecore_attention *problem, const icecore_near_far *options, const ice_kernels *kernels,
                         const ice_stack *stack, ice_exact_keys exact, int64_t head, int64_t first_row, int lanes, void *scratch);

#endif
