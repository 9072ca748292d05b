/* The state of the online softmax, of one row: {maximum, sum, accumulator}, ice_state in kernels.h.
 *
 * States over disjoint keys merge by their log-sum-exp, in any order but for rounding. */
#ifndef ICE_STATE_H
#define ICE_STATE_H

#include "attend/request.h"

/* Before the first key; zeroes the accumulator. */
static inline ice_state ice_state_start(float *accumulator, int64_t value_dim) {
    for (int64_t t = 0; t < value_dim; t++) accumulator[t] = 0.0f;
    return (ice_state){-INFINITY, 0.0f, accumulator};
}

/* Adds the state over other keys. */
void ice_state_merge(ice_state *state, int64_t value_dim, const ice_state *other);

/* Writes a finished row: accumulator / sum and the natural-log lse; 0 and -inf where no key was visible.  The
 * accumulator is overwritten. */
void ice_state_write(const ice_state *state, const icecore_attention *problem, const ice_kernels *kernels, ice_row row);

#endif
