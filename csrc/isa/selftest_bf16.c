/* Selftest: the bfloat16 kernels, against the scalar float32 ones on the same rounded numbers. */
#include "isa/selftest_harness.h"

/* Products of two bfloat16 are exact in float32; two of them are added before they join the sum. */
#define BF16_TOLERANCE(terms) (4 * ((terms) + 2) * U)
/* What lies below 2^-126 counts as 0 there: added to the scale, this gives n u 2^-100 > n 2^-126. */
#define FLUSHED 0x1p-100
/* Of scores within about 16. */
#define CAP 2.5f

/* Rounds t->panel to bfloat16 and checks that the packed pairs hold it, and that nothing past `room` numbers a lane was
 * written. */
static void expect_pairs(selftest *t, int64_t rows, int64_t room) {
    for (int64_t i = 0; i < round_up(rows, 2); i++)
        for (int lane = 0; lane < ICE_PANEL; lane++) {
            float *x = &t->panel[i * ICE_PANEL + lane];
            uint16_t wanted = i < rows ? ice_float_to_bfloat16(*x) : 0;
            uint16_t pair = t->pairs[GUARD + (i / 2 * ICE_PANEL + lane) * 2 + i % 2];
            *x = ice_bfloat16_to_float(wanted);
            int same = pair == wanted || (isnan(*x) && isnan(ice_bfloat16_to_float(pair)));
            if (!same) fail(t, "packed 0x%04X is not 0x%04X", pair, wanted);
        }
    for (int64_t i = 0; i < GUARD + BLOCK + GUARD; i++)
        if ((i < GUARD || i >= GUARD + room * ICE_PANEL) && t->pairs[i] != UNTOUCHED)
            fail(t, "packed outside its room");
}

static void compare_bf16_scores(selftest *t) {
    const ice_bf16_kernels *bf16 = t->fast->bf16;
    const float scale = 0.5f;
    t->dtype = ICECORE_BFLOAT16;
    t->dim = (int)round_up(t->dim, bf16->dim_multiple);
    if (t->dim > MAX_DIM) return;
    fill_panel(t, t->panel, t->dim);
    fill_rows(t, t->count, t->dim);
    fill_output(t, 0, t->count * ICE_PANEL);
    begin(t, 1);
    fill_untouched(t->pairs, GUARD + BLOCK + GUARD);
    bf16->pack_queries(t->panel, t->dim, t->pairs + GUARD);
    expect_pairs(t, t->dim, t->dim);
    bf16->scores(t->pairs + GUARD, t->dim, t->lanes, scale, (const uint16_t *)t->raw, t->dim + t->gap, t->count,
                 fast(t, 0));
    t->plain->scores(t->panel, t->dim, t->lanes, t->rows, t->dim, t->count, plain(t, 0));
    for (int j = 0; j < t->count; j++)
        for (int lane = 0; lane < t->lanes; lane++) {
            double sum = FLUSHED;
            for (int i = 0; i < t->dim; i++) sum += magnitude(t->rows[j * t->dim + i], t->panel[i * ICE_PANEL + lane]);
            plain(t, 0)[j * ICE_PANEL + lane] *= scale;
            expect_near(t, 0, j * ICE_PANEL + lane, sum * (double)scale, BF16_TOLERANCE(t->dim));
        }
    expect_untouched(t, 0, t->count, ICE_PANEL, ICE_PANEL);
}

static void compare_bf16_row_scores(selftest *t) {
    const ice_bf16_kernels *bf16 = t->fast->bf16;
    const float scale = 0.5f;
    uint16_t query[MAX_DIM];
    t->dtype = ICECORE_BFLOAT16;
    fill(t, t->panel, t->dim);
    for (int i = 0; i < t->dim; i++) t->panel[i] = ice_bfloat16_to_float(query[i] = ice_float_to_bfloat16(t->panel[i]));
    fill_rows(t, t->count, t->dim);
    fill_output(t, 0, t->count);
    begin(t, 1);
    t->plain->row_scores(t->panel, t->dim, t->dtype, t->raw, t->dim + t->gap, t->count, plain(t, 0));
    bf16->row_scores(query, t->dim, scale, (const uint16_t *)t->raw, t->dim + t->gap, t->count, fast(t, 0));
    for (int j = 0; j < t->count; j++) {
        double sum = FLUSHED;
        for (int i = 0; i < t->dim; i++) sum += magnitude(t->rows[j * t->dim + i], t->panel[i]);
        plain(t, 0)[j] *= scale;
        expect_near(t, 0, j, sum * (double)scale, BF16_TOLERANCE(t->dim));
    }
    expect_untouched(t, 0, 1, BLOCK, t->count);
}

static int same_bits(float one, float other) {
    return !memcmp(&one, &other, sizeof one) || (isnan(one) && isnan(other));
}

/* One row, before it meets the keys. */
static ice_state some_state(const selftest *t, float *accumulator) {
    return t->dim % 2 ? (ice_state){-INFINITY, 0.0f, accumulator} : (ice_state){-1.0f, 3.0f, accumulator};
}

/* To the bit, but for what a NaN carries. */
static int same_state(ice_state one, ice_state other, int value_dim) {
    int same = same_bits(one.maximum, other.maximum) && same_bits(one.sum, other.sum);
    for (int i = 0; i < value_dim; i++) same &= same_bits(one.accumulator[i], other.accumulator[i]);
    return same;
}

static void expect_attended(selftest *t, ice_state wanted, ice_state found, int value_dim, float above) {
    if (isnan(wanted.sum) != isnan(found.sum)) fail(t, "a NaN is %s", isnan(wanted.sum) ? "lost" : "made up");
    if (t->kind != ORDINARY) return; /* wide ones cancel as their order has it */
    const float rounding = 1e-5f * fabsf(wanted.maximum);
    if (found.maximum > wanted.maximum + above + 1e-3f + rounding || wanted.maximum > found.maximum + 16.0f + rounding)
        fail(t, "the maximum %g is not %g", (double)found.maximum, (double)wanted.maximum);
    /* sums of up to dim products of 16, in single precision, shift scores by this */
    const double shift = t->dim * 64 * U;
    for (int i = 0; i < value_dim; i++) {
        double one = (double)wanted.accumulator[i] / (double)wanted.sum,
               other = (double)found.accumulator[i] / (double)found.sum;
        if (fabs(one - other) > 0x1p-8 + shift) fail(t, "%g is not %g", other, one);
    }
}

/* All lanes or every other one: each is near the plain one, and what it is alone. */
static void compare_bf16_rows_attend(selftest *t) {
    const ice_bf16_kernels *bf16 = t->fast->bf16;
    const int value_dim = MAX_DIM - t->gap, key_stride = t->dim + t->gap,
              stride = t->gap ? MAX_COUNT : 0; /* a multiple of 64, and not; biases of their own, and not */
    const float scale = 0.5f, cap = t->lanes % 2 ? CAP : 0.0f;
    static uint16_t values[MAX_COUNT * MAX_DIM], queries[ICE_PANEL * MAX_DIM];
    static float wide[MAX_COUNT * MAX_DIM], biases[ICE_PANEL * MAX_COUNT], alone[MAX_DIM];
    ice_state state[ICE_PANEL], again[ICE_PANEL];
    t->dtype = ICECORE_BFLOAT16;
    fill(t, t->panel, t->lanes * t->dim);
    for (int i = 0; i < t->lanes * t->dim; i++)
        t->panel[i] = ice_bfloat16_to_float(queries[i] = ice_float_to_bfloat16(t->panel[i]));
    for (int i = 0; i < t->count * MAX_DIM; i++)
        wide[i] = ice_bfloat16_to_float(values[i] = ice_float_to_bfloat16(uniform(t)));
    fill_rows(t, t->count, t->dim);
    fill(t, biases, stride ? t->lanes * stride : t->count);
    fill_output(t, 0, BLOCK);
    for (int i = 0; i < t->lanes * value_dim; i++) before(t, 0)[i] = t->dim % 2 ? 0.0f : uniform(t);
    begin(t, 1);
    const uint16_t *keys = t->count % 2 ? NULL : (const uint16_t *)t->raw;
    const float *bias = t->count % 8 ? biases : NULL;
    const int step = t->count > 8 ? 1 : 2;
    uint64_t lanes = 0;
    for (int lane = 0; lane < t->lanes; lane += step) lanes |= (uint64_t)1 << lane;
    for (int lane = 0; lane < t->lanes; lane++) state[lane] = some_state(t, fast(t, 0) + lane * value_dim);
    ice_alibi alibi;
    fill_alibi(t, &alibi);
    const ice_alibi *lower = t->lanes % 3 ? &alibi : NULL;
    const ice_bf16_rows rows = {queries, t->dim, value_dim, key_stride, MAX_DIM, scale, cap, state, lower},
                        alone_rows = {queries, t->dim, value_dim, key_stride, MAX_DIM, scale, cap, again, lower};
    bf16->rows_attend(&rows, lanes, keys, values, t->count, bias, stride);
    for (int lane = 0; lane < t->lanes; lane++) {
        float *accumulator = plain(t, 0) + lane * value_dim, scores[MAX_COUNT], correction;
        ice_state wanted = some_state(t, accumulator);
        if (lane % step) {
            if (!same_state(state[lane], wanted, value_dim)) fail(t, "a row was not asked for");
            continue;
        }
        memcpy(alone, accumulator, (size_t)value_dim * sizeof *alone);
        again[lane] = some_state(t, alone);
        bf16->rows_attend(&alone_rows, (uint64_t)1 << lane, keys, values, t->count, bias, stride);
        if (!same_state(state[lane], again[lane], value_dim)) fail(t, "other rows matter");
        t->plain->row_scores(t->panel + lane * t->dim, t->dim, t->dtype, t->raw, key_stride, t->count, scores);
        for (int j = 0; j < t->count; j++) scores[j] = keys ? scores[j] * scale : 0.0f;
        if (keys && cap > 0.0f) t->plain->softcap(scores, 1, t->count, cap);
        if (keys && lower) t->plain->row_alibi(scores, t->count, lower->slope[lane], lower->offset[lane]);
        for (int j = 0; j < t->count; j++) scores[j] += bias ? bias[lane * stride + j] : 0.0f;
        t->plain->row_softmax(scores, t->count, &wanted.maximum, &wanted.sum, &correction);
        t->plain->row_weighted_sum(scores, t->count, ICECORE_FLOAT32, wide, MAX_DIM, value_dim, correction,
                                   accumulator);
        expect_attended(t, wanted, state[lane], value_dim, keys && lower ? 34.0f : 0.0f);
    }
    expect_untouched(t, 0, 1, BLOCK, (int64_t)t->lanes * value_dim);
}

/* One lane of a panel's state. */
static ice_state lane_of(const float *maximum, const float *sum, const float *accumulator, int lane, int value_dim,
                         float *row) {
    for (int i = 0; i < value_dim; i++) row[i] = accumulator[i * ICE_PANEL + lane];
    return (ice_state){maximum[lane], sum[lane], row};
}

/* Keys or none, a bias or none, ALiBi or none, a fresh panel or one on its way. */
static void compare_bf16_panel_attend(selftest *t) {
    const ice_bf16_kernels *bf16 = t->fast->bf16;
    const int value_dim = t->gap ? 80 : MAX_DIM, room = round_up(t->count, ICE_PACKED), has_keys = t->count % 2 == 0;
    const float scale = t->gap ? -0.5f : 0.5f, cap = t->lanes % 2 ? CAP : 0.0f;
    static uint16_t values[MAX_COUNT * MAX_DIM];
    static float wide[MAX_COUNT * MAX_DIM], biases[BLOCK], scores[BLOCK], row[2][MAX_DIM];
    float state[2][3][ICE_PANEL]; /* plain and fast: maximum, sum, correction */
    t->dtype = ICECORE_BFLOAT16;
    t->dim = (int)round_up(t->dim, bf16->dim_multiple);
    if (t->dim > MAX_DIM) return;
    fill_panel(t, t->panel, t->dim);
    fill_rows(t, t->count, t->dim);
    fill(t, biases, t->count * ICE_PANEL);
    for (int i = 0; i < t->count * value_dim; i++)
        wide[i] = ice_bfloat16_to_float(values[i] = ice_float_to_bfloat16(uniform(t)));
    fill_output(t, 0, value_dim * ICE_PANEL);
    for (int i = 0; i < value_dim * ICE_PANEL; i++) before(t, 0)[i] = t->gap ? 0.0f : uniform(t);
    begin(t, 1);
    for (int i = 0; i < 2; i++)
        for (int lane = 0; lane < ICE_PANEL; lane++) {
            state[i][0][lane] = t->gap ? -INFINITY : -1.0f;
            state[i][1][lane] = t->gap ? 0.0f : 3.0f;
        }
    fill_untouched(t->pairs, GUARD + BLOCK + GUARD);
    fill_untouched(t->packed, GUARD + MAX_COUNT * MAX_DIM + GUARD);
    bf16->pack_queries(t->panel, t->dim, t->pairs + GUARD);
    expect_pairs(t, t->dim, t->dim);
    bf16->pack_values(values, value_dim, t->count, value_dim, t->packed + GUARD);
    for (int64_t i = 0; i < GUARD + MAX_COUNT * MAX_DIM + GUARD; i++)
        if ((i < GUARD || i >= GUARD + room * value_dim) && t->packed[i] != UNTOUCHED)
            fail(t, "packed values outside their room");
    const float *bias = t->count % 8 ? biases : NULL;
    ice_alibi alibi;
    fill_alibi(t, &alibi);
    const ice_alibi *lower = t->lanes % 3 ? &alibi : NULL;
    const ice_bf16_panel panel = {t->pairs + GUARD, t->dim,      value_dim,   t->lanes,   scale, cap,
                                  state[1][0],      state[1][1], state[1][2], fast(t, 0), lower};
    bf16->panel_attend(&panel, has_keys ? (const uint16_t *)t->raw : NULL, t->dim + t->gap, t->packed + GUARD, t->count,
                       bias);
    t->plain->scores(t->panel, t->dim, t->lanes, t->rows, t->dim, t->count, scores);
    for (int i = 0; i < t->count * ICE_PANEL; i++) scores[i] *= scale;
    if (cap > 0.0f) t->plain->softcap(scores, t->count, t->lanes, cap);
    if (lower) t->plain->alibi(scores, 0, t->count, t->lanes, lower);
    for (int i = 0; i < t->count * ICE_PANEL; i++) {
        const float added = bias ? bias[i] : 0.0f;
        scores[i] = has_keys && added != -INFINITY ? scores[i] + added : added;
    }
    t->plain->softmax(scores, t->count, t->lanes, state[0][0], state[0][1], state[0][2]);
    t->plain->weighted_sum(scores, t->count, t->lanes, wide, value_dim, value_dim, state[0][2], plain(t, 0));
    for (int lane = 0; lane < t->lanes; lane++) {
        const ice_state wanted = lane_of(state[0][0], state[0][1], plain(t, 0), lane, value_dim, row[0]);
        const ice_state found = lane_of(state[1][0], state[1][1], fast(t, 0), lane, value_dim, row[1]);
        expect_attended(t, wanted, found, value_dim, 0.0f);
        if (t->kind != ORDINARY || t->gap) continue; /* nothing was there to be corrected */
        const float corrected = exp2f(-1.0f - found.maximum);
        const float rounding = 1e-6f * (1.0f + fabsf(found.maximum)) * corrected + 0x1p-124f;
        if (!(fabsf(state[1][2][lane] - corrected) <= rounding)) fail(t, "the correction is not that of the maximum");
    }
    expect_untouched(t, 0, value_dim, ICE_PANEL, ICE_PANEL);
}

const ice_comparison ice_selftest_bf16[] = {
    {"bf16 scores", compare_bf16_scores, DIM | LANES | GAP},
    {"bf16 panel_attend", compare_bf16_panel_attend, DIM | LANES | GAP},
    {"bf16 row_scores", compare_bf16_row_scores, DIM | GAP},
    {"bf16 rows_attend", compare_bf16_rows_attend, DIM | LANES | GAP},
    {NULL, NULL, 0},
};
