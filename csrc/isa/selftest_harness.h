/* What the comparisons of the selftest share: inputs, outputs with canaries, and what is expected of them. */
#ifndef ICE_SELFTEST_HARNESS_H
#define ICE_SELFTEST_HARNESS_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/half.h"
#include "base/random.h"
#include "icecore.h"
#include "kernels/kernels.h"

#define MAX_DIM 128
#define MAX_COUNT 128
#define MAX_GAP 9
#define GUARD 64
#define BLOCK (MAX_COUNT * ICE_PANEL)
#define OUTPUTS 4

#define U 0x1p-24
#define EXP_TOLERANCE 4.1e-7
/* Products below the normal range are rounded to multiples of 2^-149, each by itself. */
#define SUBNORMAL_ERROR ((MAX_COUNT + 2) * 0x1p-149)

/* ORDINARY: within [-4, 4).  WIDE: magnitudes from 2^-76 to 2^40.  SPECIAL: ordinary with NaN, inf, -inf and 0 among
 * them. */
enum { ORDINARY, WIDE, SPECIAL, KINDS };
/* Types of numbers, and with the quantized ones those of rows. */
#define DTYPES 3
#define ROW_DTYPES 5
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
    float panel[BLOCK], rows[MAX_COUNT * (MAX_DIM + MAX_GAP)], list[5][MAX_COUNT];
    float raw[MAX_COUNT * (MAX_DIM + MAX_GAP)]; /* rows of any dtype; of quantized ones the gap is one of bytes */
    output out[OUTPUTS];
    uint64_t open[2][GUARD + MAX_COUNT + GUARD];
    uint16_t pairs[GUARD + BLOCK + GUARD], packed[GUARD + MAX_COUNT * MAX_DIM + GUARD];
} selftest;

/* ---- Inputs ---- */

static inline float uniform(selftest *t) {
    return (float)((int64_t)(ice_random(&t->random) >> 40) - (1 << 23)) * 0x1p-23f;
}

static inline float number(selftest *t) {
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

static inline void fill(selftest *t, float *target, int64_t count) {
    for (int64_t i = 0; i < count; i++) target[i] = number(t);
}

/* `rows` rows of a panel's lanes; NaN after them. */
static inline void fill_panel(selftest *t, float *panel, int64_t rows) {
    memset(panel, 0xFF, BLOCK * sizeof *panel);
    fill(t, panel, rows * ICE_PANEL);
}

static inline int64_t row_stride(const selftest *t, int64_t width) { return ice_row_stride(t->dtype, width) + t->gap; }

/* `count` rows of `width` numbers in t->raw as t->dtype, NaN between and after them; what they hold, in t->rows without
 * gaps. */
static inline void fill_rows(selftest *t, int64_t count, int64_t width) {
    memset(t->raw, 0xFF, sizeof t->raw);
    for (int64_t j = 0; j < count; j++) {
        char *row = (char *)t->raw + (size_t)(j * row_stride(t, width)) * ice_element_size(t->dtype);
        fill(t, t->rows + j * width, width);
        t->plain->from_float32(t->dtype, t->rows + j * width, row, width);
        t->plain->to_float32(t->dtype, row, t->rows + j * width, width);
    }
}

/* ALiBi of a few keys to both sides. */
static inline void fill_alibi(selftest *t, ice_alibi *a) {
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        a->slope[lane] = 0.5f + 0.5f * uniform(t);
        a->offset[lane] = -(float)ice_random_below(&t->random, (uint64_t)t->count + 1);
    }
}

/* ---- Outputs ---- */

static inline void fill_untouched(uint16_t *target, int64_t count) {
    for (int64_t i = 0; i < count; i++) target[i] = UNTOUCHED;
}

static inline float *before(selftest *t, int array) { return t->out[array].before + GUARD; }
static inline float *plain(selftest *t, int array) { return t->out[array].plain + GUARD; }
static inline float *fast(selftest *t, int array) { return t->out[array].fast + GUARD; }

static inline void fail(selftest *t, const char *format, ...) {
    if (t->failed++) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(t->reason, sizeof t->reason, format, arguments);
    va_end(arguments);
}

/* What a term of a sum adds to the scale of its error. */
static inline double magnitude(float a, float b) { return fabs((double)a * (double)b); }

/* Compares the number at `index` of output `array`. */
static inline void expect_near(selftest *t, int array, int64_t index, double scale, double tolerance) {
    double wanted = (double)plain(t, array)[index], found = (double)fast(t, array)[index];
    int same = wanted == found || (isnan(wanted) && isnan(found));
    if (!same && isfinite(wanted) && isfinite(found)) {
        double error = fabs(wanted - found);
        same = error <= tolerance * scale + SUBNORMAL_ERROR;
        if (error > SUBNORMAL_ERROR && error / scale > t->error) t->error = error / scale;
    }
    if (!same) fail(t, "%.9g is not %.9g", found, wanted);
}

static inline void expect_equal(selftest *t, int array, int64_t index) { expect_near(t, array, index, 0.0, 0.0); }

static inline void expect_nan(selftest *t, int array, int64_t index) {
    if (!isnan(plain(t, array)[index]) || !isnan(fast(t, array)[index])) fail(t, "a NaN was lost");
}

/* Gives both kernels the same random contents: `count` new numbers, and what is left of earlier ones around them. */
static inline void fill_output(selftest *t, int array, int64_t count) { fill(t, before(t, array), count); }

static inline void begin(selftest *t, int outputs) {
    for (int i = 0; i < outputs; i++) {
        memcpy(t->out[i].plain, t->out[i].before, sizeof t->out[i].before);
        memcpy(t->out[i].fast, t->out[i].before, sizeof t->out[i].before);
    }
}

/* Only the first `written` of each of `rows` rows of `stride` numbers may have changed. */
static inline void expect_untouched(selftest *t, int array, int64_t rows, int64_t stride, int64_t written) {
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
static inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }
static inline int64_t written_lanes(const selftest *t) { return round_up(t->lanes, t->fast->width); }

static inline void expect_panel_untouched(selftest *t, int array, int64_t rows) {
    expect_untouched(t, array, rows, ICE_PANEL, written_lanes(t));
}

/* A softmax in progress in outputs 1 (maximum) and 2 (sum); it has seen nothing yet in every third lane. */
static inline void fill_softmax_state(selftest *t) {
    for (int i = 1; i < 4; i++) fill_output(t, i, ICE_PANEL);
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        before(t, 1)[lane] = lane % 3 == 0 ? -INFINITY : 3.0f * uniform(t);
        before(t, 2)[lane] = lane % 3 == 0 ? 0.0f : 2.0f + uniform(t);
    }
}

/* The results for one query, whose scores lie `step` apart.  Where one is NaN the maximum is unspecified, but the NaN
 * gets on. */
static inline void expect_softmax(selftest *t, int64_t first, int64_t step, int64_t lane) {
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

/* Weights with zeros of both signs among them. */
static inline void fill_weights(selftest *t, float *weights, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows * width; i++) {
        uint64_t zero = ice_random_below(&t->random, 8);
        if (zero < 2) weights[i] = zero ? 0.0f : -0.0f;
    }
}

/* accumulator * correction + weights * values in output 0; `minimum` joins the scale of the error. */
static inline void expect_weighted_sum(selftest *t, double minimum, double tolerance) {
    for (int i = 0; i < t->dim; i++)
        for (int lane = 0; lane < t->lanes; lane++) {
            double scale = minimum + magnitude(before(t, 0)[i * ICE_PANEL + lane], t->list[0][lane]);
            for (int j = 0; j < t->count; j++)
                scale += magnitude(t->panel[j * ICE_PANEL + lane], t->rows[j * t->dim + i]);
            expect_near(t, 0, i * ICE_PANEL + lane, scale, tolerance);
        }
}

/* ---- Comparisons ---- */

/* The axes along which a kernel's cases differ; counts and kinds of values always do. */
enum { DIM = 1, LANES = 2, GAP = 4, DTYPE = 8, ROW_DTYPE = 16 };

/* One case of a kernel, and along which axes its cases differ. */
typedef struct {
    const char *name;
    void (*compare)(selftest *t);
    int axes;
} ice_comparison;

/* Each ends with a NULL name. */
extern const ice_comparison ice_selftest_rows[], ice_selftest_panels[], ice_selftest_cells[], ice_selftest_bf16[],
    ice_selftest_thirds[];

#endif
