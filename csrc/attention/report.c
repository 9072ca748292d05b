/* What near/far attention reports of a row: near keys, captured mass, the bound of what it misses, nodes scored. */
#include <math.h>

#include "attention/near_far_tile.h"

const icecore_report ice_no_report = {0};

void ice_bound_far_field(ice_selection *t) {
    float correction[ICE_PANEL], *maximum = t->tile.scores;
    for (int64_t r = 0; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        const float *norm = ice_spread_of(t, now->from)->norm;
        for (int64_t i = 0; i < now->count; i += ICE_KEY_BLOCK) {
            int64_t count = ice_min(now->count - i, ICE_KEY_BLOCK);
            for (int64_t j = 0; j < count; j++)
                for (int lane = 0; lane < ICE_PANEL; lane++)
                    maximum[j * ICE_PANEL + lane] =
                        ice_largest_score(t->scores[(now->row + i + j) * ICE_PANEL + lane], norm[lane],
                                          now->nodes->radius[now->node + i + j]);
            t->view.kernels->softmax(maximum, count, t->tile.lanes, t->bound_maximum, t->bound, correction);
        }
    }
}

/* The mass of means in a row, where 2^maximum has mass 1. */
static float far_mass(const ice_selection *t, int lane, float maximum) {
    float mass = 0.0f;
    if (t->far[lane] > 0.0f) mass += t->far[lane] * exp2f(t->tile.maximum[lane] - maximum);
    if (t->few_far[lane] > 0.0f) mass += t->few_far[lane] * exp2f(t->few_far_maximum[lane] - maximum);
    return mass;
}

/* part / whole within [0, 1]; 0 also where it is NaN. */
static float share_of(float part, float whole) {
    const float share = whole > 0.0f ? part / whole : 0.0f;
    if (!(share >= 0.0f)) return 0.0f;
    return share < 1.0f ? share : 1.0f;
}

void ice_report_row(ice_selection *t, int lane) {
    const icecore_attention *p = t->view.problem;
    const icecore_report *report = t->view.report;
    const ice_row row = ice_tile_row(&t->tile, lane);
    const ice_state *state = &t->tile.state[lane];
    if (t->view.rules && ice_rule_of(t, lane)->exact) return;
    const int64_t at = ice_place_of(p, row);
    /* what the means lack of the mass they stand for, as measured */
    const float far = far_mass(t, lane, state->maximum),
                lacking = t->view.rules ? far * (exp2f(ice_rule_of(t, lane)->log2_mass) - 1.0f) : 0.0f;
    if (report->near_count) report->near_count[at] = (int32_t)t->near_count[lane];
    if (report->captured_mass) {
        const float total = state->sum + lacking;
        report->captured_mass[at] = share_of(total - (far + lacking), total);
    }
    if (report->summaries) report->summaries[at] = (int32_t)(t->rows + t->few_scored[lane]);
    if (report->missed_bound) {
        float exact = state->sum - far;
        if (exact < 0.0f) exact = 0.0f;
        const float missed = /* NaN: a radius that is no number */
            t->bound[lane] == 0.0f ? 0.0f : t->bound[lane] * exp2f(t->bound_maximum[lane] - state->maximum);
        report->missed_bound[at] = missed < INFINITY && exact < INFINITY ? share_of(missed, exact + missed) : 1.0f;
    }
    ice_state_write(state, p, t->view.kernels, row);
    if (p->lse && lacking != 0.0f && state->sum > 0.0f) p->lse[at] += log1pf(lacking / state->sum);
    if (p->lse && t->view.exact.centre) ice_add_centre(&t->tile, lane, t->view.exact.centre, &p->lse[at]);
}
