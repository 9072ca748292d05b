/* Compares every kernel of one instruction set with the scalar kernels, on shapes that leave tails everywhere.
 *
 * Both get the same inputs.  What kernels.h does not let a kernel read (gaps between rows, what follows the last row)
 * holds NaN, so that reading it shows in the result; what it does not let a kernel write must be as before.
 *
 * Tolerances, with u = 2^-24 the rounding error of one operation.  A sum of n terms in any order, fused or not, is
 * within n u of the truth relative to the sum of the terms' absolute values, so two of them are within 2 n u.  vf_exp2
 * is within 2e-7 of the truth, and its argument is rounded alike everywhere.  What only adds, compares and selects
 * agrees exactly. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/half.h"
#include "base/memory.h"
#include "base/random.h"
#include "icecore.h"
#include "isa/selftest_search.h"
#include "kernels/kernels.h"

#define MOST_DIM 128
#define MOST_COUNT 128
#define MOST_GAP 9
#define GUARD 64
#define BLOCK (MOST_COUNT * ICE_PANEL)
#define OUTPUTS 4

#define U 0x1p-24
#define EXP_TOLERANCE 4.1e-7
/* Products below the normal range are rounded to multiples of 2^-149, each by itself. */
#define SUBNORMAL_ERROR ((MOST_COUNT + 2) * 0x1p-149)

static const int dims[] = {1, 3, 15, 16, 17, 64, 65, MOST_DIM};
static const int counts[] = {1, 2, 5, 8, 9, 31, MOST_COUNT};
static const int lane_counts[] = {1, 3, 16, 17, 33, ICE_PANEL};
static const int gaps[] = {0, MOST_GAP};

/* ORDINARY: within [-4, 4).  WIDE: magnitudes from 2^-76 to 2^40.  SPECIAL: ordinary with NaN, inf, -inf and 0 among
 * them. */
enum { ORDINARY, WIDE, SPECIAL, KINDS };
static const char *const kind_names[] = {"ordinary", "wide", "special"};
/* Types of numbers, and with ICECORE_INT8 those of rows. */
#define DTYPES 3
#define ROW_DTYPES 4
/* A canary of 16 bits. */
#define UNTOUCHED 0xA5A5

/* An array that both kernels write: what it held before the call, and after. */
typedef struct {
    float before[GUARD + BLOCK + GUARD], plain[GUARD + BLOCK + GUARD], fast[GUARD + BLOCK + GUARD];
} output;

typedef struct {
    const ice_kernels *plain, *fast;
    uint64_t random;
    int dim, count, lanes, gap, kind; /* the case in hand */
    icecore_dtype dtype;
    int failed; /* the kernel in hand */
    double error;
    char reason[160];
    float panel[BLOCK], rows[MOST_COUNT * (MOST_DIM + MOST_GAP)], list[5][MOST_COUNT];
    float raw[MOST_COUNT * (MOST_DIM + MOST_GAP)]; /* rows of any dtype; of ICECORE_INT8 the gap is one of bytes */
    output out[OUTPUTS];
    uint64_t open[2][GUARD + MOST_COUNT + GUARD];
    uint16_t pairs[GUARD + BLOCK + GUARD], packed[GUARD + MOST_COUNT * MOST_DIM + GUARD];
} selftest;

/* ---- Inputs ---- */

static float uniform(selftest *t) { return (float)((int64_t)(ice_random(&t->random) >> 40) - (1 << 23)) * 0x1p-23f; }

static float number(selftest *t) {
    float x = uniform(t);
    if (t->kind == WIDE) return ldexpf(x < 0 ? -1.0f : 1.0f, (int)ice_random_below(&t->random, 117) - 76);
    if (t->kind == SPECIAL) switch (ice_random_below(&t->random, 32)) {
        case 0: return NAN;
        case 1: return INFINITY;
        case 2: return -INFINITY;
        case 3: return 0.0f;
        }
    return 4.0f * x;
}

static void fill(selftest *t, float *target, int64_t count) {
    for (int64_t i = 0; i < count; i++) target[i] = number(t);
}

/* `rows` rows of a panel's lanes; NaN after them. */
static void fill_panel(selftest *t, float *panel, int64_t rows) {
    memset(panel, 0xFF, BLOCK * sizeof *panel);
    fill(t, panel, rows * ICE_PANEL);
}

static int64_t row_stride(const selftest *t, int64_t width) { return ice_row_stride(t->dtype, width) + t->gap; }

/* `count` rows of `width` numbers in t->raw as t->dtype, NaN between and after them; what they hold, in t->rows without
 * gaps. */
static void fill_rows(selftest *t, int64_t count, int64_t width) {
    memset(t->raw, 0xFF, sizeof t->raw);
    for (int64_t j = 0; j < count; j++) {
        char *row = (char *)t->raw + (size_t)(j * row_stride(t, width)) * ice_element_size(t->dtype);
        fill(t, t->rows + j * width, width);
        t->plain->from_float32(t->dtype, t->rows + j * width, row, width);
        t->plain->to_float32(t->dtype, row, t->rows + j * width, width);
    }
}

/* ---- Outputs ---- */

static void fill_untouched(uint16_t *target, int64_t count) {
    for (int64_t i = 0; i < count; i++) target[i] = UNTOUCHED;
}

static float *before(selftest *t, int array) { return t->out[array].before + GUARD; }
static float *plain(selftest *t, int array) { return t->out[array].plain + GUARD; }
static float *fast(selftest *t, int array) { return t->out[array].fast + GUARD; }

static void fail(selftest *t, const char *format, ...) {
    if (t->failed++) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(t->reason, sizeof t->reason, format, arguments);
    va_end(arguments);
}

/* What a term of a sum adds to the scale of its error. */
static double magnitude(float a, float b) { return fabs((double)a * (double)b); }

/* Compares the number at `index` of output `array`. */
static void expect_near(selftest *t, int array, int64_t index, double scale, double tolerance) {
    double wanted = (double)plain(t, array)[index], found = (double)fast(t, array)[index];
    int same = wanted == found || (isnan(wanted) && isnan(found));
    if (!same && isfinite(wanted) && isfinite(found)) {
        double error = fabs(wanted - found);
        same = error <= tolerance * scale + SUBNORMAL_ERROR;
        if (error > SUBNORMAL_ERROR && error / scale > t->error) t->error = error / scale;
    }
    if (!same) fail(t, "%.9g is not %.9g", found, wanted);
}

static void expect_equal(selftest *t, int array, int64_t index) { expect_near(t, array, index, 0.0, 0.0); }

static void expect_nan(selftest *t, int array, int64_t index) {
    if (!isnan(plain(t, array)[index]) || !isnan(fast(t, array)[index])) fail(t, "a NaN was lost");
}

/* Gives both kernels the same random contents: `count` new numbers, and what is left of earlier ones around them. */
static void fill_output(selftest *t, int array, int64_t count) { fill(t, before(t, array), count); }

static void begin(selftest *t, int outputs) {
    for (int i = 0; i < outputs; i++) {
        memcpy(t->out[i].plain, t->out[i].before, sizeof t->out[i].before);
        memcpy(t->out[i].fast, t->out[i].before, sizeof t->out[i].before);
    }
}

/* Only the first `written` of each of `rows` rows of `stride` numbers may have changed. */
static void expect_untouched(selftest *t, int array, int64_t rows, int64_t stride, int64_t written) {
    const output *o = &t->out[array];
    int64_t changed = 0, from = 0;
    for (int64_t r = 0; r <= rows; r++) {
        int64_t to = r < rows ? GUARD + r * stride : GUARD + BLOCK + GUARD;
        changed += memcmp(o->fast + from, o->before + from, (size_t)(to - from) * sizeof *o->fast) != 0;
        from = to + written;
    }
    if (changed) fail(t, "wrote outside its output");
}

/* Kernels compute whole vectors. */
static int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }
static int64_t written_lanes(const selftest *t) { return round_up(t->lanes, t->fast->width); }

static void expect_panel_untouched(selftest *t, int array, int64_t rows) {
    expect_untouched(t, array, rows, ICE_PANEL, written_lanes(t));
}

/* ---- One case of each kernel ---- */

/* All 16-bit patterns, in runs of t->count. */
static void compare_to_float32(selftest *t) {
    const int64_t patterns = t->dtype == ICECORE_FLOAT32 ? t->count : 65536;
    uint16_t half[MOST_COUNT];
    float wanted[MOST_COUNT], guarded[GUARD + MOST_COUNT + GUARD], *found = guarded + GUARD;
    fill(t, t->rows, t->count);
    for (int i = 0; i < GUARD + MOST_COUNT + GUARD; i++) guarded[i] = 1.0f;
    for (int64_t first = 0; first < patterns; first += t->count) {
        for (int i = 0; i < t->count; i++) half[i] = (uint16_t)(first + i);
        const void *source = t->dtype == ICECORE_FLOAT32 ? (const void *)t->rows : half;
        t->plain->to_float32(t->dtype, source, wanted, t->count);
        t->fast->to_float32(t->dtype, source, found, t->count);
        for (int i = 0; i < t->count; i++)
            if (found[i] != wanted[i] && !(isnan(found[i]) && isnan(wanted[i])))
                fail(t, "%.9g is not %.9g", (double)found[i], (double)wanted[i]);
    }
    for (int i = -GUARD; i < MOST_COUNT + GUARD; i++)
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
    uint16_t guarded[2][2 * MOST_COUNT + 2 * GUARD];
    const int64_t halves = t->dtype == ICECORE_FLOAT32 ? 2 * t->count : t->count; /* 16-bit units of the result */
    for (int i = 0; i < t->count; i++) t->rows[i] = hard_to_round(t);
    for (int i = 0; i < 2; i++) fill_untouched(guarded[i], 2 * MOST_COUNT + 2 * GUARD);
    t->plain->from_float32(t->dtype, t->rows, guarded[0] + GUARD, t->count);
    t->fast->from_float32(t->dtype, t->rows, guarded[1] + GUARD, t->count);
    for (int64_t i = 0; i < 2 * MOST_COUNT + 2 * GUARD; i++) {
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

static void compare_to_panel(selftest *t) {
    static float lane[ICE_PANEL][MOST_DIM];
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

/* Rows of ICECORE_INT8, to and fro. */
static void compare_int8_rows(selftest *t) {
    const int64_t bytes = (int64_t)ice_row_bytes(ICECORE_INT8, t->dim);
    uint8_t row[2][GUARD + 2 * MOST_DIM + GUARD];
    memset(row, 0xA5, sizeof row);
    fill(t, t->rows, t->dim);
    t->plain->from_float32(ICECORE_INT8, t->rows, row[0] + GUARD, t->dim);
    t->fast->from_float32(ICECORE_INT8, t->rows, row[1] + GUARD, t->dim);
    if (memcmp(row[0], row[1], sizeof row[0])) fail(t, "rows differ");
    for (int64_t i = GUARD + bytes; i < (int64_t)sizeof row[1]; i++)
        if (row[1][i] != 0xA5) fail(t, "wrote outside its output");
    fill_output(t, 0, t->dim);
    begin(t, 1);
    t->plain->to_float32(ICECORE_INT8, row[0] + GUARD, plain(t, 0), t->dim);
    t->fast->to_float32(ICECORE_INT8, row[0] + GUARD, fast(t, 0), t->dim);
    for (int i = 0; i < t->dim; i++) expect_equal(t, 0, i);
    expect_untouched(t, 0, 1, BLOCK, t->dim);
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

static void compare_mask_range(selftest *t) {
    float *lower = t->list[0], *upper = t->list[1], *sink_upper = t->list[2];
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        lower[lane] = (float)ice_random_below(&t->random, (uint64_t)t->count + 1);
        upper[lane] = (float)ice_random_below(&t->random, (uint64_t)t->count + 1);
        sink_upper[lane] = (float)ice_random_below(&t->random, (uint64_t)t->count + 1);
    }
    float sinks = (float)ice_random_below(&t->random, (uint64_t)t->count + 1);
    fill_output(t, 0, t->count * ICE_PANEL);
    begin(t, 1);
    t->plain->mask_range(plain(t, 0), t->count, t->lanes, lower, upper, sink_upper, sinks);
    t->fast->mask_range(fast(t, 0), t->count, t->lanes, lower, upper, sink_upper, sinks);
    for (int j = 0; j < t->count; j++)
        for (int lane = 0; lane < t->lanes; lane++) expect_equal(t, 0, j * ICE_PANEL + lane);
    expect_panel_untouched(t, 0, t->count);
}

/* A softmax in progress in outputs 1 (maximum) and 2 (sum); it has seen nothing yet in every third lane. */
static void fill_softmax_state(selftest *t) {
    for (int i = 1; i < 4; i++) fill_output(t, i, ICE_PANEL);
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        before(t, 1)[lane] = lane % 3 == 0 ? -INFINITY : 3.0f * uniform(t);
        before(t, 2)[lane] = lane % 3 == 0 ? 0.0f : 2.0f + uniform(t);
    }
}

/* The results for one query, whose scores lie `step` apart.  Where one is NaN the maximum is unspecified, but the NaN
 * gets on. */
static void expect_softmax(selftest *t, int64_t first, int64_t step, int64_t lane) {
    int nan = 0;
    for (int j = 0; j < t->count; j++)
        if (isnan(before(t, 0)[first + j * step])) {
            nan = 1;
            expect_nan(t, 0, first + j * step);
        }
    if (nan) {
        expect_nan(t, 2, lane);
        return;
    }
    for (int j = 0; j < t->count; j++)
        expect_near(t, 0, first + j * step, (double)plain(t, 0)[first + j * step], EXP_TOLERANCE);
    expect_equal(t, 1, lane);
    expect_near(t, 2, lane, (double)plain(t, 2)[lane], EXP_TOLERANCE + 2 * (t->count + 2) * U);
    expect_near(t, 3, lane, (double)plain(t, 3)[lane], EXP_TOLERANCE);
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

/* Weights with zeros of both signs among them. */
static void fill_weights(selftest *t, float *weights, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows * width; i++) {
        uint64_t zero = ice_random_below(&t->random, 8);
        if (zero < 2) weights[i] = zero ? 0.0f : -0.0f;
    }
}

/* accumulator * correction + weights * values in output 0; `least` joins the scale of the error. */
static void expect_weighted_sum(selftest *t, double least, double tolerance) {
    for (int i = 0; i < t->dim; i++)
        for (int lane = 0; lane < t->lanes; lane++) {
            double scale = least + magnitude(before(t, 0)[i * ICE_PANEL + lane], t->list[0][lane]);
            for (int j = 0; j < t->count; j++)
                scale += magnitude(t->panel[j * ICE_PANEL + lane], t->rows[j * t->dim + i]);
            expect_near(t, 0, i * ICE_PANEL + lane, scale, tolerance);
        }
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

static void compare_row_scores(selftest *t) {
    const float *query = t->panel;
    const int64_t stride = row_stride(t, t->dim);
    memset(t->panel, 0xFF, sizeof t->panel);
    fill(t, t->panel, t->dim);
    fill_rows(t, t->count, t->dim);
    fill_output(t, 0, t->count);
    begin(t, 1);
    t->plain->row_scores(query, t->dim, t->dtype, t->raw, stride, t->count, plain(t, 0));
    t->fast->row_scores(query, t->dim, t->dtype, t->raw, stride, t->count, fast(t, 0));
    for (int j = 0; j < t->count; j++) {
        double scale = 0.0;
        for (int i = 0; i < t->dim; i++) scale += magnitude(t->rows[j * t->dim + i], query[i]);
        expect_near(t, 0, j, scale, 2 * (t->dim + 1) * U); /* a scale multiplies the product */
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
        const void *list[MOST_COUNT];
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
            scale += magnitude(weights[j], t->rows[row * t->dim + i]);
        }
        expect_near(t, 0, i, scale, 2 * (t->count + 3) * U);
    }
    expect_untouched(t, 0, 1, BLOCK, t->dim);
}

static void compare_row_weighted_sum(selftest *t) { compare_rows_sum(t, 0); }
static void compare_gathered_weighted_sum(selftest *t) { compare_rows_sum(t, 1); }

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
    for (int i = 0; i < 2; i++) {
        for (int lane = 0; lane < t->lanes; lane++) expect_equal(t, i, lane);
        expect_panel_untouched(t, i, 1);
    }
}

/* Facts of nodes in t->list. */
static ice_node_facts fill_facts(selftest *t, int count) {
    float *variance = t->list[0], *radius = t->list[1], *log2_count = t->list[2], *log2_weight = t->list[3],
          *half_log2 = t->list[4];
    for (int c = 0; c < count; c++) {
        variance[c] = t->kind == WIDE ? fabsf(number(t)) : c % 7 == 3 ? 0.0f : fabsf(uniform(t));
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
        half_log2[lane] = lane % 7 == 6                         ? -63.0f
                          : t->kind == SPECIAL && lane % 5 == 1 ? NAN
                                                                : 0.5f * log2f(spread[lane]);
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
    for (int i = 0; i < 2; i++) {
        for (int lane = 0; lane < t->lanes; lane++) expect_equal(t, i, lane);
        expect_panel_untouched(t, i, 1);
    }
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
    for (int i = 0; i < GUARD + MOST_COUNT + GUARD; i++) {
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

/* ---- The bfloat16 kernels, against the scalar float32 ones on the same rounded numbers ---- */

/* Products of two bfloat16 are exact in float32; two of them are added before they join the sum. */
#define BF16_TOLERANCE(terms) (4 * ((terms) + 2) * U)
/* What lies below 2^-126 counts as 0 there: added to the scale, this gives n u 2^-100 > n 2^-126. */
#define FLUSHED 0x1p-100

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
    if (t->dim > MOST_DIM) return;
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
    uint16_t query[MOST_DIM];
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

static void expect_attended(selftest *t, ice_state wanted, ice_state found, int value_dim) {
    if (isnan(wanted.sum) != isnan(found.sum)) fail(t, "a NaN is %s", isnan(wanted.sum) ? "lost" : "made up");
    if (t->kind != ORDINARY) return; /* wide ones cancel as their order has it */
    const float rounding = 1e-5f * fabsf(wanted.maximum);
    if (found.maximum > wanted.maximum + 1e-3f + rounding || wanted.maximum > found.maximum + 16.0f + rounding)
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
    const int value_dim = MOST_DIM - t->gap,
              stride = t->gap ? MOST_COUNT : 0; /* a multiple of 64, and not; biases of their own, and not */
    const float scale = 0.5f;
    static uint16_t values[MOST_COUNT * MOST_DIM], queries[ICE_PANEL * MOST_DIM];
    static float wide[MOST_COUNT * MOST_DIM], biases[ICE_PANEL * MOST_COUNT], alone[MOST_DIM];
    ice_state state[ICE_PANEL], again[ICE_PANEL];
    t->dtype = ICECORE_BFLOAT16;
    t->gap = 0;
    fill(t, t->panel, t->lanes * t->dim);
    for (int i = 0; i < t->lanes * t->dim; i++)
        t->panel[i] = ice_bfloat16_to_float(queries[i] = ice_float_to_bfloat16(t->panel[i]));
    for (int i = 0; i < t->count * value_dim; i++)
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
    bf16->rows_attend(queries, t->dim, scale, keys, values, value_dim, t->count, bias, stride, lanes, state);
    for (int lane = 0; lane < t->lanes; lane++) {
        float *accumulator = plain(t, 0) + lane * value_dim, scores[MOST_COUNT], correction;
        ice_state wanted = some_state(t, accumulator);
        if (lane % step) {
            if (!same_state(state[lane], wanted, value_dim)) fail(t, "a row was not asked for");
            continue;
        }
        memcpy(alone, accumulator, (size_t)value_dim * sizeof *alone);
        again[lane] = some_state(t, alone);
        bf16->rows_attend(queries, t->dim, scale, keys, values, value_dim, t->count, bias, stride, (uint64_t)1 << lane,
                          again);
        if (!same_state(state[lane], again[lane], value_dim)) fail(t, "other rows matter");
        t->plain->row_scores(t->panel + lane * t->dim, t->dim, t->dtype, t->raw, t->dim, t->count, scores);
        for (int j = 0; j < t->count; j++)
            scores[j] = (keys ? scores[j] * scale : 0.0f) + (bias ? bias[lane * stride + j] : 0.0f);
        t->plain->row_softmax(scores, t->count, &wanted.maximum, &wanted.sum, &correction);
        t->plain->row_weighted_sum(scores, t->count, ICECORE_FLOAT32, wide, value_dim, value_dim, correction,
                                   accumulator);
        expect_attended(t, wanted, state[lane], value_dim);
    }
    expect_untouched(t, 0, 1, BLOCK, (int64_t)t->lanes * value_dim);
}

/* One lane of a panel's state. */
static ice_state lane_of(const float *maximum, const float *sum, const float *accumulator, int lane, int value_dim,
                         float *row) {
    for (int i = 0; i < value_dim; i++) row[i] = accumulator[i * ICE_PANEL + lane];
    return (ice_state){maximum[lane], sum[lane], row};
}

/* Keys or none, a bias or none, a fresh panel or one on its way. */
static void compare_bf16_panel_attend(selftest *t) {
    const ice_bf16_kernels *bf16 = t->fast->bf16;
    const int value_dim = t->gap ? 80 : MOST_DIM, room = round_up(t->count, ICE_PACKED), has_keys = t->count % 2 == 0;
    const float scale = t->gap ? -0.5f : 0.5f;
    static uint16_t values[MOST_COUNT * MOST_DIM];
    static float wide[MOST_COUNT * MOST_DIM], biases[BLOCK], scores[BLOCK], row[2][MOST_DIM];
    float state[2][3][ICE_PANEL]; /* plain and fast: maximum, sum, correction */
    t->dtype = ICECORE_BFLOAT16;
    t->dim = (int)round_up(t->dim, bf16->dim_multiple);
    if (t->dim > MOST_DIM) return;
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
    fill_untouched(t->packed, GUARD + MOST_COUNT * MOST_DIM + GUARD);
    bf16->pack_queries(t->panel, t->dim, t->pairs + GUARD);
    expect_pairs(t, t->dim, t->dim);
    bf16->pack_values(values, value_dim, t->count, value_dim, t->packed + GUARD);
    for (int64_t i = 0; i < GUARD + MOST_COUNT * MOST_DIM + GUARD; i++)
        if ((i < GUARD || i >= GUARD + room * value_dim) && t->packed[i] != UNTOUCHED)
            fail(t, "packed values outside their room");
    const float *bias = t->count % 8 ? biases : NULL;
    const ice_bf16_panel panel = {t->pairs + GUARD, t->dim,      value_dim,   t->lanes,  scale,
                                  state[1][0],      state[1][1], state[1][2], fast(t, 0)};
    bf16->panel_attend(&panel, has_keys ? (const uint16_t *)t->raw : NULL, t->dim + t->gap, t->packed + GUARD, t->count,
                       bias);
    t->plain->scores(t->panel, t->dim, t->lanes, t->rows, t->dim, t->count, scores);
    for (int i = 0; i < t->count * ICE_PANEL; i++) {
        const float added = bias ? bias[i] : 0.0f;
        scores[i] = added == -INFINITY ? added : has_keys ? scores[i] * scale + added : added;
    }
    t->plain->softmax(scores, t->count, t->lanes, state[0][0], state[0][1], state[0][2]);
    t->plain->weighted_sum(scores, t->count, t->lanes, wide, value_dim, value_dim, state[0][2], plain(t, 0));
    for (int lane = 0; lane < t->lanes; lane++) {
        const ice_state wanted = lane_of(state[0][0], state[0][1], plain(t, 0), lane, value_dim, row[0]);
        const ice_state found = lane_of(state[1][0], state[1][1], fast(t, 0), lane, value_dim, row[1]);
        expect_attended(t, wanted, found, value_dim);
        if (t->kind != ORDINARY || t->gap) continue; /* nothing was there to be corrected */
        const float corrected = exp2f(-1.0f - found.maximum);
        const float rounding = 1e-6f * (1.0f + fabsf(found.maximum)) * corrected + 0x1p-124f;
        if (!(fabsf(state[1][2][lane] - corrected) <= rounding)) fail(t, "the correction is not that of the maximum");
    }
    expect_untouched(t, 0, value_dim, ICE_PANEL, ICE_PANEL);
}

/* ---- All of them ---- */

/* The axes along which a kernel's cases differ; counts and kinds of values always do. */
enum { DIM = 1, LANES = 2, GAP = 4, DTYPE = 8, ROW_DTYPE = 16 };

static const struct comparison {
    const char *name;
    void (*compare)(selftest *t);
    int axes;
} comparisons[] =
    {
        {"to_float32", compare_to_float32, DTYPE},
        {"from_float32", compare_from_float32, DTYPE},
        {"multiply", compare_multiply, DIM},
        {"int8 rows", compare_int8_rows, DIM},
        {"to_panel", compare_to_panel, DIM},
        {"scores", compare_scores, DIM | LANES | GAP},
        {"mask_range", compare_mask_range, LANES},
        {"softmax", compare_softmax, LANES},
        {"weighted_sum", compare_weighted_sum, DIM | LANES | GAP},
        {"row_scores", compare_row_scores, DIM | GAP | ROW_DTYPE},
        {"row_softmax", compare_row_softmax, GAP},
        {"row_weighted_sum", compare_row_weighted_sum, DIM | GAP | ROW_DTYPE},
        {"gathered_weighted_sum", compare_gathered_weighted_sum, DIM | GAP | DTYPE},
        {"nearest", compare_nearest, LANES},

        {"cell_risk", compare_cell_risk, LANES},
        {"count_at_least", compare_count_at_least, LANES},
        {"open_cells", compare_open_cells, LANES},
        {"row_open_cells", compare_row_open_cells, 0},
    },
  bf16_comparisons[] = {
      {"bf16 scores", compare_bf16_scores, DIM | LANES | GAP},
      {"bf16 panel_attend", compare_bf16_panel_attend, DIM | LANES | GAP},
      {"bf16 row_scores", compare_bf16_row_scores, DIM | GAP},
      {"bf16 rows_attend", compare_bf16_rows_attend, DIM | LANES | GAP},
  };

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

/* Every case of one kernel; the first failure says where it was. */
static void compare_all(selftest *t, const struct comparison *comparison) {
    const int axes = comparison->axes;
    const int combinations[] = {LENGTH(counts),
                                KINDS,
                                axes & DIM ? LENGTH(dims) : 1,
                                axes & LANES ? LENGTH(lane_counts) : 1,
                                axes & GAP ? LENGTH(gaps) : 1,
                                axes & DTYPE       ? DTYPES
                                : axes & ROW_DTYPE ? ROW_DTYPES
                                                   : 1};
    int total = 1;
    for (int i = 0; i < LENGTH(combinations); i++) total *= combinations[i];
    t->failed = 0;
    t->error = 0.0;
    for (int i = 0, rest; i < total; i++) {
        rest = i;
        t->count = counts[rest % combinations[0]], rest /= combinations[0];
        t->kind = rest % combinations[1], rest /= combinations[1];
        t->dim = dims[rest % combinations[2]], rest /= combinations[2];
        t->lanes = lane_counts[rest % combinations[3]], rest /= combinations[3];
        t->gap = gaps[rest % combinations[4]], rest /= combinations[4];
        t->dtype = (icecore_dtype)(axes & (DTYPE | ROW_DTYPE) ? rest : ICECORE_FLOAT32);
        int failed_before = t->failed;
        comparison->compare(t);
        if (failed_before || !t->failed) continue;
        size_t used = strlen(t->reason);
        snprintf(t->reason + used, sizeof t->reason - used,
                 " (dim %d, count %d, lanes %d, gap %d, dtype %d, %s values)", t->dim, t->count, t->lanes, t->gap,
                 (int)t->dtype, kind_names[t->kind]);
    }
}

/* Appends to a string of `size` bytes as far as there is room. */
static void append(char *report, int64_t size, const char *format, ...) {
    if (size <= 0) return;
    size_t used = strlen(report);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(report + used, (size_t)size - used, format, arguments);
    va_end(arguments);
}

/* One line for each kernel; the number that failed. */
static int report_all(selftest *t, const struct comparison *list, int length, char *report, int64_t size) {
    int failures = 0;
    for (int i = 0; i < length; i++) {
        compare_all(t, &list[i]);
        append(report, size, "%-22s", list[i].name);
        if (t->failed) append(report, size, "FAILED  %s\n", t->reason);
        else append(report, size, "ok  max error %.0e\n", t->error);
        failures += t->failed > 0;
    }
    return failures;
}

/* The kernels of a k-NN search, which have a file of their own. */
static int report_search(selftest *t, char *report, int64_t size) {
    int failures = 0;
    for (int i = 0; i < ICE_SEARCH_KERNELS; i++) {
        int failed = ice_selftest_search(i, t->plain, t->fast, t->reason, sizeof t->reason, &t->error);
        append(report, size, "%-22s", ice_search_kernel_names[i]);
        if (failed) append(report, size, "FAILED  %s\n", t->reason);
        else append(report, size, "ok  max error %.0e\n", t->error);
        failures += failed > 0;
    }
    return failures;
}

int icecore_selftest(const char *isa, char *report, int64_t report_size) {
    if (report_size > 0) report[0] = '\0';
    const ice_kernels *kernels = ice_find_kernels(isa);
    if (!kernels) {
        append(report, report_size, "FAILED  instruction set %s is not known here, not built or not usable\n", isa);
        return 1;
    }
    selftest *t = ice_alloc(1, sizeof *t);
    if (!t) {
        append(report, report_size, "FAILED  out of memory\n");
        return 1;
    }
    t->plain = ice_find_kernels("scalar");
    t->fast = kernels;
    t->random = 1;
    t->kind = ORDINARY;
    for (int i = 0; i < OUTPUTS; i++) fill(t, t->out[i].before, GUARD + BLOCK + GUARD);
    int failures = report_all(t, comparisons, LENGTH(comparisons), report, report_size);
    failures += report_search(t, report, report_size);
    if (kernels->bf16) failures += report_all(t, bf16_comparisons, LENGTH(bf16_comparisons), report, report_size);
    ice_free(t);
    return failures;
}
