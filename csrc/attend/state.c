#include "attend/state.h"

void ice_state_merge(ice_state *state, int64_t value_dim, const ice_state *other) {
    if (other->sum == 0.0f) return; /* nothing was visible there */
    if (state->sum == 0.0f) {
        state->maximum = other->maximum;
        state->sum = other->sum;
        for (int64_t t = 0; t < value_dim; t++) state->accumulator[t] = other->accumulator[t];
        return;
    }
    const float top = state->maximum > other->maximum ? state->maximum : other->maximum;
    const float own_share = exp2f(state->maximum - top), other_share = exp2f(other->maximum - top);
    state->maximum = top;
    state->sum = state->sum * own_share + other->sum * other_share;
    for (int64_t t = 0; t < value_dim; t++)
        state->accumulator[t] = state->accumulator[t] * own_share + other->accumulator[t] * other_share;
}

void ice_state_write(const ice_state *state, const icecore_attention *p, const ice_kernels *kernels, ice_row row) {
    /* nothing visible: 0, not 0/0; a NaN sum is not 0 and stays */
    const int nothing = state->sum == 0.0f && state->maximum == -INFINITY;
    const float inverse = nothing ? 0.0f : 1.0f / state->sum;
    float *accumulator = state->accumulator;
    for (int64_t t = 0; t < p->value_dim; t++) accumulator[t] = nothing ? 0.0f : accumulator[t] * inverse;
    kernels->from_float32(p->dtype, accumulator, ice_address(&p->out, p->dtype, row.batch, row.head, row.query),
                          p->value_dim);
    if (p->lse) {
        const float lse = nothing ? -INFINITY : (float)(ICE_LN_2 * ((double)state->maximum + log2((double)state->sum)));
        p->lse[ice_place_of(p, row)] = lse;
    }
}
