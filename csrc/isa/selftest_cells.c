/* Selftest: nearest centres, and risks and opening of cells. */
#include "isa/selftest_harness.h"

/* Both outputs, a number for each lane. */
static void expect_equal_lanes(selftest *t) {
    for (int i = 0; i < 2; i++) {
        for (int lane = 0; lane < t->lanes; lane++) expect_equal(t, i, lane);
        expect_panel_untouched(t, i, 1);
    }
}

static void compare_nearest(selftest *t) {
    const int64_t first = 1000;
    for (int i = 0; i < 2; i++) fill_output(t, i, ICE_PANEL);
    fill_panel(t, t->panel, t->count);
    fill(t, t->list[0], t->count);
    if (t->kind == ORDINARY) { /* small integers: ties */
        for (int i = 0; i < t->count * ICE_PANEL; i++) t->panel[i] = floorf(t->panel[i]);
        for (int i = 0; i < t->count; i++) t->list[0][i] = floorf(t->list[0][i]);
    }
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        before(t, 0)[lane] = lane % 3 == 0 ? -INFINITY : floorf(8.0f * uniform(t));
        before(t, 1)[lane] = (float)lane;
    }
    begin(t, 2);
    t->plain->nearest(t->panel, t->count, t->lanes, t->list[0], first, plain(t, 0), plain(t, 1));
    t->fast->nearest(t->panel, t->count, t->lanes, t->list[0], first, fast(t, 0), fast(t, 1));
    expect_equal_lanes(t);
}

/* Facts of nodes in t->list. */
static ice_node_facts fill_facts(selftest *t, int count) {
    float *variance = t->list[0], *radius = t->list[1], *log2_count = t->list[2], *log2_weight = t->list[3],
          *half_log2 = t->list[4];
    for (int c = 0; c < count; c++) {
        variance[c] = fabsf(t->kind == WIDE ? number(t) : uniform(t));
        if (t->kind != WIDE && c % 7 == 3) variance[c] = 0.0f;
        half_log2[c] = 0.5f * log2f(variance[c]);
        radius[c] = 3.0f * sqrtf(variance[c]);
        log2_count[c] = c % 5 ? 8.0f * fabsf(uniform(t)) : 0.0f;
        log2_weight[c] = t->kind == SPECIAL && c % 3 == 0 ? NAN : 6.0f * uniform(t);
    }
    return (ice_node_facts){variance, radius, log2_count, log2_weight, half_log2};
}

/* The size of what is added up in a risk. */
static double risk_scale(const ice_node_facts *of, int c, double score, double spread, double half_log2) {
    double own = isinf(of->half_log2_variance[c]) ? 0.0 : fabs((double)of->half_log2_variance[c]);
    return fabs(score) + fabs((double)of->log2_weight[c]) + fabs(half_log2) + own + spread * (double)of->variance[c] +
           fabs((double)of->log2_count[c]);
}

static void compare_cell_risk(selftest *t) {
    float hidden[ICE_PANEL], spread[ICE_PANEL], half_log2[ICE_PANEL], norm[ICE_PANEL];
    const ice_node_facts facts = fill_facts(t, t->count);
    const ice_spreads rows = {spread, half_log2, norm};
    for (int i = 0; i < 2; i++) fill_output(t, i, t->count * ICE_PANEL);
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        spread[lane] = t->kind == SPECIAL && lane % 5 == 0 ? INFINITY : 9.0f * fabsf(uniform(t));
        half_log2[lane] = t->kind == SPECIAL && lane % 5 == 1 ? NAN : 0.5f * log2f(spread[lane]);
        if (lane % 7 == 6) half_log2[lane] = -63.0f;
        norm[lane] = lane % 4 ? 4.0f * sqrtf(spread[lane]) : 0.1f;
        hidden[lane] = lane % 3 ? 0.0f : -INFINITY;
    }
    begin(t, 2);
    for (int pass = 0; pass < 2; pass++) {
        const float *aside = pass ? NULL : hidden;
        t->plain->cell_risk(plain(t, 0), t->count, t->lanes, &facts, &rows, aside, plain(t, 1));
        t->fast->cell_risk(fast(t, 0), t->count, t->lanes, &facts, &rows, aside, fast(t, 1));
        for (int c = 0; c < t->count; c++)
            for (int lane = 0; lane < t->lanes; lane++) {
                int64_t at = c * ICE_PANEL + lane;
                expect_equal(t, 0, at);
                expect_near(
                    t, 1, at,
                    risk_scale(&facts, c, (double)plain(t, 0)[at], (double)spread[lane], (double)half_log2[lane]),
                    8 * U);
            }
    }
    for (int i = 0; i < 2; i++) expect_panel_untouched(t, i, t->count);
}

/* Risks in t->panel, and for each lane a threshold that one of them equals. */
static void fill_risks(selftest *t, float *threshold) {
    fill_panel(t, t->panel, t->count);
    for (int i = 0; i < t->count * ICE_PANEL; i++) t->panel[i] = fabsf(t->panel[i]);
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        float risk = t->panel[(int)ice_random_below(&t->random, (uint64_t)t->count) * ICE_PANEL + lane];
        threshold[lane] = lane % 7 == 6 || isnan(risk) ? 0.0f : risk;
    }
}

static void compare_count_at_least(selftest *t) {
    float threshold[ICE_PANEL];
    fill_risks(t, threshold);
    for (int c = 0; c < t->count; c++) t->list[0][c] = 1.0f + (float)ice_random_below(&t->random, 64);
    for (int i = 0; i < 2; i++) fill_output(t, i, ICE_PANEL);
    begin(t, 2);
    t->plain->count_at_least(t->panel, t->count, t->lanes, t->list[0], threshold, plain(t, 0), plain(t, 1));
    t->fast->count_at_least(t->panel, t->count, t->lanes, t->list[0], threshold, fast(t, 0), fast(t, 1));
    expect_equal_lanes(t);
}

static void compare_open_cells(selftest *t) {
    float threshold[ICE_PANEL], *log2_count = t->list[0];
    const uint64_t lanes = ((uint64_t)1 << t->lanes) - 1, written = ((uint64_t)1 << written_lanes(t)) - 1;
    fill_risks(t, threshold);
    for (int c = 0; c < t->count; c++) log2_count[c] = 6.0f * fabsf(uniform(t));
    fill_output(t, 0, t->count * ICE_PANEL);
    begin(t, 1);
    memset(t->open, 0xA5, sizeof t->open);
    t->plain->open_cells(plain(t, 0), t->panel, t->count, t->lanes, threshold, log2_count, t->open[0] + GUARD);
    t->fast->open_cells(fast(t, 0), t->panel, t->count, t->lanes, threshold, log2_count, t->open[1] + GUARD);
    for (int c = 0; c < t->count; c++)
        for (int lane = 0; lane < t->lanes; lane++) expect_equal(t, 0, c * ICE_PANEL + lane);
    for (int i = 0; i < GUARD + MAX_COUNT + GUARD; i++) {
        uint64_t differ = t->open[0][i] ^ t->open[1][i];
        int inside = i >= GUARD && i < GUARD + t->count;
        if (inside ? (differ & lanes) || (t->open[1][i] & ~written) : differ) fail(t, "other bits are set");
    }
    expect_panel_untouched(t, 0, t->count);
}

/* Against cell_risk and open_cells of the scalar set, of which it does one lane. */
static void compare_row_open_cells(selftest *t) {
    const int cells = t->count < 64 ? t->count : 64;
    float spread[ICE_PANEL], half_log2[ICE_PANEL], norm[ICE_PANEL], threshold[ICE_PANEL], *risk = t->rows;
    const ice_node_facts facts = fill_facts(t, cells);
    const ice_spreads rows = {spread, half_log2, norm};
    uint64_t open[64];
    fill_panel(t, t->panel, cells);
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        spread[lane] = fabsf(uniform(t));
        half_log2[lane] = 0.5f * log2f(spread[lane]);
        norm[lane] = 4.0f * sqrtf(spread[lane]);
        threshold[lane] = number(t);
    }
    fill_output(t, 0, cells);
    for (int c = 0; c < cells; c++) before(t, 0)[c] = t->panel[c * ICE_PANEL];
    begin(t, 1);
    t->plain->cell_risk(t->panel, cells, 1, &facts, &rows, NULL, risk);
    t->plain->open_cells(t->panel, risk, cells, 1, threshold, facts.log2_count, open);
    uint64_t opened = t->fast->row_open_cells(fast(t, 0), cells, &facts, &rows, threshold[0]);
    for (int c = 0; c < cells; c++) {
        double distance = fabs((double)risk[c * ICE_PANEL] - (double)threshold[0]);
        double scale = risk_scale(&facts, c, (double)t->panel[c * ICE_PANEL], (double)spread[0], (double)half_log2[0]);
        if (distance <= 16 * U * scale) continue; /* at the threshold, rounding decides */
        plain(t, 0)[c] = t->panel[c * ICE_PANEL];
        expect_equal(t, 0, c);
        if (((opened >> c) & 1) != (open[c] & 1))
            fail(t, "cell %d is %s", c, (opened >> c) & 1 ? "opened" : "not opened");
    }
    if (cells < 64 && opened >> cells) fail(t, "cells that are not there are opened");
    expect_untouched(t, 0, 1, BLOCK, cells);
}

const ice_comparison ice_selftest_cells[] = {
    {"nearest", compare_nearest, LANES},
    {"cell_risk", compare_cell_risk, LANES},
    {"count_at_least", compare_count_at_least, LANES},
    {"open_cells", compare_open_cells, LANES},
    {"row_open_cells", compare_row_open_cells, 0},
    {NULL, NULL, 0},
};
