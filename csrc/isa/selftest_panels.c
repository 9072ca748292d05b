/* Selftest: the kernels on panels of queries. */
#include "isa/selftest_harness.h"

static void compare_to_panel(selftest *t) {
    static float lane[ICE_PANEL][MAX_DIM];
    const float *rows[ICE_PANEL];
    for (int l = 0; l < ICE_PANEL; l++) fill(t, lane[l], t->dim), rows[l] = lane[l];
    fill_output(t, 0, (int64_t)t->dim * ICE_PANEL);
    fill_output(t, 1, (int64_t)t->dim * ICE_PANEL);
    begin(t, 2);
    t->plain->to_panel(rows, t->dim, plain(t, 0));
    t->fast->to_panel(rows, t->dim, fast(t, 0));
    t->plain->from_panel(plain(t, 0), t->dim, plain(t, 1));
    t->fast->from_panel(fast(t, 0), t->dim, fast(t, 1));
    for (int64_t i = 0; i < (int64_t)t->dim * ICE_PANEL; i++) {
        expect_equal(t, 0, i);
        expect_equal(t, 1, i);
    }
    for (int l = 0; l < ICE_PANEL; l++)
        if (memcmp(fast(t, 1) + l * t->dim, lane[l], (size_t)t->dim * sizeof(float)))
            fail(t, "there and back is not the same");
    for (int i = 0; i < 2; i++) expect_untouched(t, i, 1, BLOCK, (int64_t)t->dim * ICE_PANEL);
}

static void compare_scores(selftest *t) {
    const int64_t stride = t->dim + t->gap;
    fill_panel(t, t->panel, t->dim);
    fill_rows(t, t->count, t->dim);
    fill_output(t, 0, t->count * ICE_PANEL);
    begin(t, 1);
    t->plain->scores(t->panel, t->dim, t->lanes, t->raw, stride, t->count, plain(t, 0));
    t->fast->scores(t->panel, t->dim, t->lanes, t->raw, stride, t->count, fast(t, 0));
    for (int j = 0; j < t->count; j++)
        for (int lane = 0; lane < t->lanes; lane++) {
            double scale = 0.0;
            for (int i = 0; i < t->dim; i++)
                scale += magnitude(t->rows[j * t->dim + i], t->panel[i * ICE_PANEL + lane]);
            expect_near(t, 0, j * ICE_PANEL + lane, scale, 2 * t->dim * U);
        }
    expect_panel_untouched(t, 0, t->count);
}

/* Against tanh itself: what both kernels promise. */
static void expect_softcap(selftest *t, int64_t index, float cap) {
    const double score = (double)before(t, 0)[index], limit = (double)cap;
    const double size = fmin(fabs(score), limit), wanted = limit * tanh(score / limit);
    if (!(fabs((double)plain(t, 0)[index] - wanted) <= 3e-7 * size + SUBNORMAL_ERROR) && !isnan(score))
        fail(t, "softcap of %.9g by %.9g", score, limit);
    expect_near(t, 0, index, size, 6e-7);
}

static void compare_softcap(selftest *t) {
    static const float caps[] = {1e-30f, 0.3f, 5.0f, 72.0f, 2e30f};
    fill_output(t, 0, t->count * ICE_PANEL);
    for (int i = 0; i < 5; i++) {
        begin(t, 1);
        t->plain->softcap(plain(t, 0), t->count, t->lanes, caps[i]);
        t->fast->softcap(fast(t, 0), t->count, t->lanes, caps[i]);
        for (int j = 0; j < t->count; j++)
            for (int lane = 0; lane < t->lanes; lane++) expect_softcap(t, j * ICE_PANEL + lane, caps[i]);
        expect_untouched(t, 0, t->count, ICE_PANEL, t->lanes);
    }
}

/* Keys around the queries, and before all of them. */
static void compare_alibi(selftest *t) {
    static const int64_t firsts[] = {0, 1000, 1 << 20}, before_all[] = {100, 400, 100};
    ice_alibi a;
    fill_output(t, 0, t->count * ICE_PANEL);
    for (int i = 0; i < 3; i++) {
        for (int lane = 0; lane < ICE_PANEL; lane++) {
            a.slope[lane] = lane % 5 ? 2.0f + 2.0f * uniform(t) : 0.0f;
            a.offset[lane] = (float)((int64_t)ice_random_below(&t->random, 200) - before_all[i] - firsts[i]);
        }
        begin(t, 1);
        t->plain->alibi(plain(t, 0), firsts[i], t->count, t->lanes, &a);
        t->fast->alibi(fast(t, 0), firsts[i], t->count, t->lanes, &a);
        for (int j = 0; j < t->count; j++)
            for (int lane = 0; lane < t->lanes; lane++) {
                const int64_t at = j * ICE_PANEL + lane;
                const double score = (double)before(t, 0)[at], slope = (double)a.slope[lane];
                const double lower = slope * fabs((double)a.offset[lane] + (double)(firsts[i] + j));
                if (!(fabs((double)plain(t, 0)[at] - (score - lower)) <= 2 * U * (fabs(score) + lower)) &&
                    isfinite(score))
                    fail(t, "%.9g less %.9g", score, lower);
                expect_near(t, 0, at, fabs(score) + lower, 4 * U);
            }
        expect_panel_untouched(t, 0, t->count);
    }
}

static void compare_mask_range(selftest *t) {
    float *lower = t->list[0], *upper = t->list[1];
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        lower[lane] = (float)ice_random_below(&t->random, (uint64_t)t->count + 1);
        upper[lane] = (float)ice_random_below(&t->random, (uint64_t)t->count + 1);
    }
    fill_output(t, 0, t->count * ICE_PANEL);
    begin(t, 1);
    t->plain->mask_range(plain(t, 0), t->count, t->lanes, lower, upper);
    t->fast->mask_range(fast(t, 0), t->count, t->lanes, lower, upper);
    for (int j = 0; j < t->count; j++)
        for (int lane = 0; lane < t->lanes; lane++) expect_equal(t, 0, j * ICE_PANEL + lane);
    expect_panel_untouched(t, 0, t->count);
}

static void compare_softmax(selftest *t) {
    fill_output(t, 0, t->count * ICE_PANEL);
    fill_softmax_state(t);
    for (int j = 0; j < t->count; j++) before(t, 0)[j * ICE_PANEL] = -INFINITY; /* lane 0 sees nothing, before or now */
    begin(t, 4);
    t->plain->softmax(plain(t, 0), t->count, t->lanes, plain(t, 1), plain(t, 2), plain(t, 3));
    t->fast->softmax(fast(t, 0), t->count, t->lanes, fast(t, 1), fast(t, 2), fast(t, 3));
    for (int lane = 0; lane < t->lanes; lane++) expect_softmax(t, lane, ICE_PANEL, lane);
    expect_panel_untouched(t, 0, t->count);
    for (int i = 1; i < 4; i++) expect_panel_untouched(t, i, 1);
}

static void compare_weighted_sum(selftest *t) {
    const float *correction = t->list[0];
    const int64_t stride = t->dim + t->gap;
    fill_panel(t, t->panel, t->count);
    fill_weights(t, t->panel, t->count, ICE_PANEL);
    fill_rows(t, t->count, t->dim);
    fill(t, t->list[0], ICE_PANEL);
    fill_output(t, 0, t->dim * ICE_PANEL);
    begin(t, 1);
    t->plain->weighted_sum(t->panel, t->count, t->lanes, t->raw, stride, t->dim, correction, plain(t, 0));
    t->fast->weighted_sum(t->panel, t->count, t->lanes, t->raw, stride, t->dim, correction, fast(t, 0));
    expect_weighted_sum(t, 0.0, 2 * (t->count + 2) * U);
    expect_panel_untouched(t, 0, t->dim);
}

static void compare_relu_sum(selftest *t) {
    memset(t->panel, 0xFF, sizeof t->panel);
    for (int j = 0; j < t->count; j++) fill(t, t->panel + j * ICE_PANEL, t->lanes);
    fill(t, t->list[0], t->lanes);
    fill_output(t, 0, t->count);
    begin(t, 1);
    t->plain->relu_sum(t->panel, t->count, t->lanes, t->list[0], plain(t, 0));
    t->fast->relu_sum(t->panel, t->count, t->lanes, t->list[0], fast(t, 0));
    for (int j = 0; j < t->count; j++) {
        double scale = fabs((double)before(t, 0)[j]);
        for (int lane = 0; lane < t->lanes; lane++)
            scale += magnitude(t->panel[j * ICE_PANEL + lane], t->list[0][lane]);
        expect_near(t, 0, j, scale, 2 * (t->lanes + 1) * U);
    }
    expect_untouched(t, 0, 1, BLOCK, t->count);
}

const ice_comparison ice_selftest_panels[] = {
    {"to_panel", compare_to_panel, DIM},
    {"scores", compare_scores, DIM | LANES | GAP},
    {"softcap", compare_softcap, LANES},
    {"alibi", compare_alibi, LANES},
    {"mask_range", compare_mask_range, LANES},
    {"softmax", compare_softmax, LANES},
    {"weighted_sum", compare_weighted_sum, DIM | LANES | GAP},
    {"relu_sum", compare_relu_sum, LANES},
    {NULL, NULL, 0},
};
