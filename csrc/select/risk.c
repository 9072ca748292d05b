/* What a cell's mean may be wrong by (icecore.h), and from which risk on a row opens it. */
#include <float.h>
#include <string.h>

#include "select/selection.h"

/* Lanes of the widest vectors. */
#define WIDEST 16

/* Lanes of a tile as far as the widest vectors read: a decode step has few rows. */
static int lanes_read(const ice_tile *tile) { return (tile->lanes + WIDEST - 1) / WIDEST * WIDEST; }

/* sum[lane] = the weighted sum of squares of a row's components; of spare lanes it is the last row's. */
static void add_squares(const ice_tile *tile, const float *weight, int64_t dim, int lanes, float *sum) {
    const int own = (tile->lanes + 3) / 4 * 4;
    for (int first = 0; first < own; first += 4) {
        float four[4] = {0};
        for (int64_t i = 0; i < dim; i++) {
            const float *component = tile->queries + i * ICE_PANEL + first;
            for (int j = 0; j < 4; j++) four[j] += component[j] * (component[j] * weight[i]);
        }
        memcpy(sum + first, four, sizeof four);
    }
    for (int lane = own; lane < lanes; lane++) sum[lane] = sum[own - 1];
}

void ice_find_spreads(ice_selection *t) {
    const int64_t dim = t->view.problem->dim;
    const int lanes = t->view.report->missed_bound ? ICE_PANEL : lanes_read(&t->tile); /* a bound reads all */
    float weight[ICECORE_MAX_DIM];
    for (int64_t l = 0; l < t->view.stack->levels; l++) {
        const icecore_segment *s = t->view.stack->level[l].segment;
        ice_spread *spread = &t->spread[l];
        if (!s) continue;
        for (int64_t i = 0; i < dim; i++) /* back from log2 units */
            weight[i] = (float)(ICE_LN_2 * ICE_LN_2) * s->component_variance[i] / (s->metric[i] * s->metric[i]);
        add_squares(&t->tile, weight, dim, lanes, spread->variance);
        for (int lane = 0; lane < lanes; lane++) /* a query of nothing but zeros leaves an order of risks */
            spread->half_log2[lane] =
                0.5f * log2f(spread->variance[lane] <= FLT_MIN ? FLT_MIN : spread->variance[lane]);
        for (int64_t i = 0; i < dim; i++) weight[i] = 1.0f / (s->metric[i] * s->metric[i]);
        add_squares(&t->tile, weight, dim, lanes, spread->norm);
        for (int lane = 0; lane < lanes; lane++) /* a little more, for the query's rounding */
            spread->norm[lane] = 1.004f * sqrtf(spread->norm[lane]);
        t->view.kernels->scores(t->tile.queries, dim, lanes, s->centre, dim, 1, spread->shift);
    }
}

void ice_squared_lengths(const ice_selection *t, float squared[ICE_PANEL]) {
    float weight[ICECORE_MAX_DIM];
    for (int64_t i = 0; i < t->view.problem->dim; i++) weight[i] = 1.0f;
    add_squares(&t->tile, weight, t->view.problem->dim, lanes_read(&t->tile), squared);
}

void ice_selection_guess(ice_selection *t, float log2_norm[ICE_PANEL], float log2_mass[ICE_PANEL]) {
    const icecore_attention *p = t->view.problem;
    const int lanes = lanes_read(&t->tile);
    float maximum[ICE_PANEL], sum[ICE_PANEL], *weights = t->tile.scores;
    ice_tile guess = t->tile; /* with an accumulator of its own */
    guess.accumulator = t->guess;
    guess.maximum = maximum;
    guess.sum = sum;
    memcpy(guess.accumulator, t->tile.accumulator, (size_t)(p->value_dim * ICE_PANEL) * sizeof(float));
    memcpy(maximum, t->tile.maximum, sizeof maximum);
    memcpy(sum, t->tile.sum, sizeof sum);
    for (int64_t r = 0; r < t->parent_runs; r++) {
        const ice_node_run *now = &t->run[r];
        for (int64_t i = 0; i < now->count; i += ICE_KEY_BLOCK) {
            const int64_t count = ice_min(now->count - i, ICE_KEY_BLOCK);
            for (int64_t j = 0; j < count; j++)
                for (int lane = 0; lane < lanes; lane++)
                    weights[j * ICE_PANEL + lane] =
                        t->scores[(now->row + i + j) * ICE_PANEL + lane] + now->nodes->log2_count[i + j];
            ice_tile_add_means(&guess, weights, count, now->from->segment->mean_dtype, ice_mean_value_of(now, i));
        }
    }
    float squared[ICE_PANEL] = {0};
    for (int64_t i = 0; i < p->value_dim; i++)
        for (int lane = 0; lane < lanes; lane++) {
            float component = guess.accumulator[i * ICE_PANEL + lane];
            squared[lane] += component * component;
        }
    for (int lane = 0; lane < lanes; lane++) {
        log2_norm[lane] = maximum[lane] + 0.5f * log2f(squared[lane]);
        log2_mass[lane] = maximum[lane] + log2f(sum[lane]);
    }
}

void ice_find_thresholds(ice_selection *t, float expand[ICE_PANEL]) {
    float squared[ICE_PANEL], *threshold = t->threshold;
    ice_selection_guess(t, threshold, t->mass);
    ice_squared_lengths(t, squared);
    t->doubts = 0;
    for (int lane = 0; lane < lanes_read(&t->tile); lane++) {
        const ice_rule *rule = ice_rule_of(t, lane);
        t->key_share[lane] = rule->key_share > 0.0f ? log2f(rule->key_share) : INFINITY;
        t->doubts |= rule->key_share > 0.0f;
        threshold[lane] = rule->exact ? INFINITY : threshold[lane] + log2f(rule->threshold);
        const int is_unlike = !rule->exact && ice_is_unlike(rule, squared[lane]);
        if (is_unlike) threshold[lane] = -INFINITY;
        t->halves |= (uint64_t)(rule->halves && !is_unlike) << lane;
        expand[lane] = rule->all_cells ? -INFINITY : threshold[lane] + log2f(ICE_EXPAND_SHARE);
        if (rule->exact) expand[lane] = INFINITY;
    }
}

void ice_raise_doubtful(ice_selection *t, const ice_node_run *now, const float *threshold) {
    const float *norm = ice_spread_of(t, now->from)->norm, dim = (float)t->view.problem->dim;
    for (int64_t i = 0; i < now->count; i++) {
        const float radius = now->nodes->radius[now->node + i], *scores = t->scores + (now->row + i) * ICE_PANEL;
        float *risk = t->risk + (now->row + i) * ICE_PANEL;
        for (int lane = 0; lane < t->tile.lanes; lane++) {
            const float share = ice_expected_share(t->mass[lane] - scores[lane], norm[lane] * radius, dim);
            if (share >= t->key_share[lane] && risk[lane] < threshold[lane]) risk[lane] = threshold[lane];
        }
    }
}
