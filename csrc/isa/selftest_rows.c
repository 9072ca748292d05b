/* Selftest: conversions, and the kernels that take one query at a time. */
#include "isa/selftest_harness.h"

/* All 16-bit patterns, in runs of t->count. */
static void compare_to_float32(selftest *t) {
    const int64_t patterns = t->dtype == ICECORE_FLOAT32 ? t->count : 65536;
    uint16_t half[MAX_COUNT];
    float wanted[MAX_COUNT], guarded[GUARD + MAX_COUNT + GUARD], *found = guarded + GUARD;
    fill(t, t->rows, t->count);
    for (int i = 0; i < GUARD + MAX_COUNT + GUARD; i++) guarded[i] = 1.0f;
    for (int64_t first = 0; first < patterns; first += t->count) {
        for (int i = 0; i < t->count; i++) half[i] = (uint16_t)(first + i);
        const void *source = t->dtype == ICECORE_FLOAT32 ? (const void *)t->rows : half;
        t->plain->to_float32(t->dtype, source, wanted, t->count);
        t->fast->to_float32(t->dtype, source, found, t->count);
        for (int i = 0; i < t->count; i++)
            if (found[i] != wanted[i] && !(isnan(found[i]) && isnan(wanted[i])))
                fail(t, "%.9g is not %.9g", (double)found[i], (double)wanted[i]);
    }
    for (int i = -GUARD; i < MAX_COUNT + GUARD; i++)
        if ((i < 0 || i >= t->count) && found[i] != 1.0f) fail(t, "wrote outside its output");
}

/* Numbers on, just below and just above the middle between two neighbours; SPECIAL: any bits, and NaN whose upper half
 * is inf's or which rounding would carry into the sign. */
static float hard_to_round(selftest *t) {
    uint32_t bits = (uint32_t)ice_random(&t->random);
    if (t->kind == SPECIAL && bits % 4 == 0) return ice_bits_float(bits % 8 == 0 ? 0x7F800001u : 0xFFFFFFFFu);
    if (t->kind == SPECIAL || t->dtype == ICECORE_FLOAT32) return ice_bits_float(bits);
    float neighbour;
    uint16_t half = (uint16_t)bits;
    t->plain->to_float32(t->dtype, &half, &neighbour, 1);
    uint32_t middle = t->dtype == ICECORE_FLOAT16 ? 0x1000u : 0x8000u;
    if (t->kind == WIDE && t->dtype == ICECORE_FLOAT16)
        return ((float)(half & 0x3FFu) + 0.5f) * 0x1p-24f; /* subnormal */
    return ice_bits_float(ice_float_bits(neighbour) + middle + (uint32_t)ice_random_below(&t->random, 3) - 1u);
}

static void compare_from_float32(selftest *t) {
    uint16_t guarded[2][2 * MAX_COUNT + 2 * GUARD];
    const int64_t halves = t->dtype == ICECORE_FLOAT32 ? 2 * t->count : t->count; /* 16-bit units of the result */
    for (int i = 0; i < t->count; i++) t->rows[i] = hard_to_round(t);
    for (int i = 0; i < 2; i++) fill_untouched(guarded[i], 2 * MAX_COUNT + 2 * GUARD);
    t->plain->from_float32(t->dtype, t->rows, guarded[0] + GUARD, t->count);
    t->fast->from_float32(t->dtype, t->rows, guarded[1] + GUARD, t->count);
    for (int64_t i = 0; i < 2 * MAX_COUNT + 2 * GUARD; i++) {
        int64_t at = i - GUARD;
        if (at >= 0 && at < t->count && t->dtype != ICECORE_FLOAT32 && isnan(t->rows[at])) {
            float back;
            t->plain->to_float32(t->dtype, &guarded[1][i], &back, 1);
            if (!isnan(back)) fail(t, "a NaN was lost");
        } else if (guarded[0][i] != guarded[1][i]) {
            fail(t, at >= 0 && at < halves ? "0x%04X is not 0x%04X" : "wrote outside its output", guarded[1][i],
                 guarded[0][i]);
        }
    }
}

/* Halves: the first is next to the number, both together are it. */
static void compare_halves(selftest *t) {
    uint16_t half[2][2][2 * GUARD + MAX_COUNT];
    float guarded[GUARD + MAX_COUNT + GUARD], *found = guarded + GUARD;
    int over[2];
    for (int i = 0; i < t->count; i++) t->rows[i] = hard_to_round(t);
    fill_untouched(half[0][0], sizeof half / sizeof half[0][0][0]);
    for (int i = 0; i < GUARD + MAX_COUNT + GUARD; i++) guarded[i] = 1.0f;
    over[0] = t->plain->split(t->rows, half[0][0] + GUARD, half[0][1] + GUARD, t->count);
    over[1] = t->fast->split(t->rows, half[1][0] + GUARD, half[1][1] + GUARD, t->count);
    if (over[0] != over[1]) fail(t, "overflow is told otherwise");
    if (memcmp(half[0], half[1], sizeof half[0])) fail(t, "halves differ");
    t->fast->join(half[1][0] + GUARD, half[1][1] + GUARD, found, t->count);
    for (int i = 0; i < t->count; i++) {
        const float whole = t->rows[i], rounded = ice_bfloat16_to_float(half[1][0][GUARD + i]);
        if (isnan(whole) ? !isnan(found[i]) || !isnan(rounded) : ice_float_bits(found[i]) != ice_float_bits(whole))
            fail(t, "%.9g is not %.9g", (double)found[i], (double)whole);
        if (fabsf(whole) < 0x1.FFp127f && fabsf(rounded - whole) > 0x1p-8f * fabsf(whole) + 0x1p-133f)
            fail(t, "%.9g is not next to %.9g", (double)rounded, (double)whole);
        if (isinf(rounded) && isfinite(whole) && !over[1]) fail(t, "an overflow was not told");
    }
    for (int i = -GUARD; i < MAX_COUNT + GUARD; i++)
        if ((i < 0 || i >= t->count) && found[i] != 1.0f) fail(t, "wrote outside its output");
}

static void compare_multiply(selftest *t) {
    fill(t, t->list[0], t->dim);
    fill(t, t->list[1], t->dim);
    fill_output(t, 0, t->dim);
    begin(t, 1);
    t->plain->multiply(t->list[0], t->list[1], t->dim, plain(t, 0));
    t->fast->multiply(t->list[0], t->list[1], t->dim, fast(t, 0));
    for (int i = 0; i < t->dim; i++) expect_equal(t, 0, i);
    expect_untouched(t, 0, 1, BLOCK, t->dim);
}

/* Quantized rows, to and fro. */
static void compare_quantized_rows(selftest *t, icecore_dtype dtype) {
    const int64_t bytes = (int64_t)ice_row_bytes(dtype, t->dim);
    uint8_t row[2][GUARD + 2 * MAX_DIM + GUARD];
    memset(row, 0xA5, sizeof row);
    fill(t, t->rows, t->dim);
    t->plain->from_float32(dtype, t->rows, row[0] + GUARD, t->dim);
    t->fast->from_float32(dtype, t->rows, row[1] + GUARD, t->dim);
    if (memcmp(row[0], row[1], sizeof row[0])) fail(t, "rows differ");
    for (int64_t i = GUARD + bytes; i < (int64_t)sizeof row[1]; i++)
        if (row[1][i] != 0xA5) fail(t, "wrote outside its output");
    fill_output(t, 0, t->dim);
    begin(t, 1);
    t->plain->to_float32(dtype, row[0] + GUARD, plain(t, 0), t->dim);
    t->fast->to_float32(dtype, row[0] + GUARD, fast(t, 0), t->dim);
    for (int i = 0; i < t->dim; i++) expect_equal(t, 0, i);
    expect_untouched(t, 0, 1, BLOCK, t->dim);
}

static void compare_int8_rows(selftest *t) { compare_quantized_rows(t, ICECORE_INT8); }
static void compare_int4_rows(selftest *t) { compare_quantized_rows(t, ICECORE_INT4); }

/* What the sum of |row_i| |query_i| is where numbers are by themselves.  Those of ICECORE_INT4 are made of their group.
 */
static double score_magnitude(const selftest *t, const float *row, const float *query) {
    const int width = t->dtype == ICECORE_INT4 ? ICE_CODE_GROUP : 1;
    double sum = 0.0;
    for (int first = 0; first < t->dim; first += width) {
        double of_row = 0.0, of_query = 0.0;
        for (int i = first; i < first + width && i < t->dim; i++) {
            of_row += fabs((double)row[i]);
            of_query += fabs((double)query[i]);
        }
        sum += of_row * of_query;
    }
    return sum;
}

/* The same of number `i` of a row. */
static double number_magnitude(const selftest *t, const float *row, int i) {
    if (t->dtype != ICECORE_INT4) return fabs((double)row[i]);
    double sum = 0.0;
    const int first = i - i % ICE_CODE_GROUP;
    for (i = first; i < first + ICE_CODE_GROUP && i < t->dim; i++) sum += fabs((double)row[i]);
    return sum;
}

static void compare_row_scores(selftest *t) {
    const float *query = t->panel;
    const int64_t stride = row_stride(t, t->dim);
    const int64_t terms = t->dtype == ICECORE_INT4 ? ice_code_groups(t->dim) * ICE_CODE_GROUP : t->dim;
    memset(t->panel, 0xFF, sizeof t->panel);
    fill(t, t->panel, t->dim);
    fill_rows(t, t->count, t->dim);
    fill_output(t, 0, t->count);
    begin(t, 1);
    t->plain->row_scores(query, t->dim, t->dtype, t->raw, stride, t->count, plain(t, 0));
    t->fast->row_scores(query, t->dim, t->dtype, t->raw, stride, t->count, fast(t, 0));
    for (int j = 0; j < t->count; j++) {
        const double scale = score_magnitude(t, t->rows + j * t->dim, query);
        expect_near(t, 0, j, scale, 2 * (terms + 1) * U); /* a scale multiplies the product */
    }
    expect_untouched(t, 0, 1, BLOCK, t->count);
}

static void compare_row_alibi(selftest *t) {
    const float slope = 2.0f + 2.0f * uniform(t), offset = (float)((int64_t)ice_random_below(&t->random, 300) - 200);
    fill_output(t, 0, t->count);
    begin(t, 1);
    t->plain->row_alibi(plain(t, 0), t->count, slope, offset);
    t->fast->row_alibi(fast(t, 0), t->count, slope, offset);
    for (int j = 0; j < t->count; j++) {
        const double score = (double)before(t, 0)[j], lower = (double)slope * fabs((double)offset + j);
        if (!(fabs((double)plain(t, 0)[j] - (score - lower)) <= 2 * U * (fabs(score) + lower)) && isfinite(score))
            fail(t, "%.9g less %.9g", score, lower);
        expect_near(t, 0, j, fabs(score) + lower, 4 * U);
    }
    expect_untouched(t, 0, 1, BLOCK, t->count);
}

static void compare_row_softmax(selftest *t) {
    fill_output(t, 0, t->count);
    fill_softmax_state(t);
    const int lane = (int)ice_random_below(&t->random, 4); /* a new softmax or one in progress */
    if (lane == 3)
        for (int j = 0; j < t->count; j++) before(t, 0)[j] = -INFINITY;
    begin(t, 4);
    t->plain->row_softmax(plain(t, 0), t->count, plain(t, 1) + lane, plain(t, 2) + lane, plain(t, 3) + lane);
    t->fast->row_softmax(fast(t, 0), t->count, fast(t, 1) + lane, fast(t, 2) + lane, fast(t, 3) + lane);
    expect_softmax(t, 0, 1, lane);
    expect_untouched(t, 0, 1, BLOCK, t->count);
    for (int i = 1; i < 4; i++) {
        fast(t, i)[lane] = before(t, i)[lane];
        expect_untouched(t, i, 0, BLOCK, 0);
    }
}

/* In order of the rows, or of a list that holds them backwards. */
static void compare_rows_sum(selftest *t, int gathered) {
    float *weights = t->panel;
    const int64_t stride = row_stride(t, t->dim);
    memset(t->panel, 0xFF, sizeof t->panel);
    fill(t, weights, t->count);
    fill_weights(t, weights, 1, t->count);
    fill_rows(t, t->count, t->dim);
    fill_output(t, 0, t->dim);
    begin(t, 1);
    const float correction = number(t);
    if (gathered) {
        const void *list[MAX_COUNT];
        const int64_t bytes = stride * (t->dtype == ICECORE_FLOAT32 ? 4 : 2);
        for (int j = 0; j < t->count; j++) list[j] = (const char *)t->raw + (t->count - 1 - j) * bytes;
        t->plain->gathered_weighted_sum(weights, t->count, t->dtype, list, t->dim, correction, plain(t, 0));
        t->fast->gathered_weighted_sum(weights, t->count, t->dtype, list, t->dim, correction, fast(t, 0));
    } else {
        t->plain->row_weighted_sum(weights, t->count, t->dtype, t->raw, stride, t->dim, correction, plain(t, 0));
        t->fast->row_weighted_sum(weights, t->count, t->dtype, t->raw, stride, t->dim, correction, fast(t, 0));
    }
    for (int i = 0; i < t->dim; i++) {
        double scale = magnitude(before(t, 0)[i], correction);
        for (int j = 0; j < t->count; j++) {
            int row = gathered ? t->count - 1 - j : j;
            scale += fabs((double)weights[j]) * number_magnitude(t, t->rows + row * t->dim, i);
        }
        expect_near(t, 0, i, scale, 2 * (t->count + 3) * U);
    }
    expect_untouched(t, 0, 1, BLOCK, t->dim);
}

static void compare_row_weighted_sum(selftest *t) { compare_rows_sum(t, 0); }
static void compare_gathered_weighted_sum(selftest *t) { compare_rows_sum(t, 1); }

const ice_comparison ice_selftest_rows[] = {
    {"to_float32", compare_to_float32, DTYPE},
    {"from_float32", compare_from_float32, DTYPE},
    {"halves", compare_halves, 0},
    {"multiply", compare_multiply, DIM},
    {"int8 rows", compare_int8_rows, DIM},
    {"int4 rows", compare_int4_rows, DIM},
    {"row_scores", compare_row_scores, DIM | GAP | ROW_DTYPE},
    {"row_alibi", compare_row_alibi, GAP},
    {"row_softmax", compare_row_softmax, GAP},
    {"row_weighted_sum", compare_row_weighted_sum, DIM | GAP | ROW_DTYPE},
    {"gathered_weighted_sum", compare_gathered_weighted_sum, DIM | GAP | DTYPE},
    {NULL, NULL, 0},
};
