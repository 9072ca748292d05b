/* Compares the kernels of a k-NN search with the scalar ones, on shapes that leave tails everywhere.
 *
 * Integer sums, selections and counts agree exactly; floating-point sums of n terms to 2 n u of the sum of magnitudes.
 * Arrays are as long as the contract says and not longer, so that the address sanitizer sees a kernel that goes
 * further. */
#include "isa/selftest_search.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"

#define U 0x1p-24

const char *const ice_search_kernel_names[ICE_SEARCH_KERNELS] = {
    "code_scores", "find_at_least", "nth_largest",     "keep_reaching",     "keep_largest", "rank",
    "encode",      "encode_lane",   "gathered_scores", "squared_distances", "chebyshev",
};

static const int dims[] = {1, 3, 4, 15, 16, 17, 63, 64, 130};
static const int counts[] = {1, 2, 7, 8, 9, 31, 100};
static const int lane_counts[] = {1, 15, 16, 17, 33, ICE_PANEL};

#define MAX_DIM 132
#define MAX_COUNT 100
#define PANEL_OF(count) ((count) * ICE_PANEL)

typedef struct {
    const ice_kernels *plain, *fast;
    uint64_t random;
    int dim, count, lanes, variant;
    int failed;
    char *reason;
    size_t size;
    double error;
} test;

static float uniform(test *t) { return (float)((int64_t)(ice_random(&t->random) >> 40) - (1 << 23)) * 0x1p-21f; }

/* Whole numbers in [-4, 4]: many ties. */
static float coarse(test *t) { return (float)(int64_t)ice_random_below(&t->random, 9) - 4.0f; }

static float number(test *t) { return t->variant % 2 ? coarse(t) : uniform(t); }

/* Exactly `count` floats, so that reading on is seen. */
static float *floats(test *t, int64_t count) {
    float *array = ice_alloc(count, sizeof *array);
    for (int64_t i = 0; array && i < count; i++) array[i] = number(t);
    return array;
}

static void fail(test *t, const char *what) {
    if (!t->failed++)
        snprintf(t->reason, t->size, "%s (dim %d, count %d, lanes %d, variant %d)", what, t->dim, t->count, t->lanes,
                 t->variant);
}

static void expect_near(test *t, double wanted, double found, double scale, double tolerance) {
    double error = fabs(wanted - found);
    if (error > 0 && scale > 0 && error / scale > t->error) t->error = error / scale;
    if (!(error <= tolerance * scale)) fail(t, "is not near");
}

static void compare_code_scores(test *t) {
    const int64_t stride = (t->dim + 3) & ~3;
    int8_t quads[MAX_DIM * ICE_PANEL];
    uint8_t codes[MAX_COUNT * MAX_DIM];
    int32_t offset[ICE_PANEL];
    float out[2][PANEL_OF(MAX_COUNT)];
    for (int64_t i = 0; i < stride * ICE_PANEL; i++) quads[i] = (int8_t)((int)ice_random_below(&t->random, 255) - 127);
    for (int64_t i = 0; i < t->count * stride; i++) codes[i] = (uint8_t)ice_random_below(&t->random, 256);
    if (t->variant >= 2) { /* the largest sums there are */
        memset(quads, t->variant == 2 ? 127 : -127, sizeof quads);
        memset(codes, 255, sizeof codes);
    }
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        int32_t sum = 0;
        for (int64_t d = 0; d < stride; d++) sum += quads[(d / 4 * ICE_PANEL + lane) * 4 + d % 4];
        offset[lane] = -128 * sum;
    }
    float *base = floats(t, ICE_PANEL), *query_scale = floats(t, ICE_PANEL), *scale = floats(t, t->count),
          *bias = floats(t, t->count);
    const float *given = t->variant % 2 ? bias : NULL;
    const ice_code_panel panel = {quads, t->lanes, base, query_scale, offset};
    t->plain->code_scores(&panel, codes, stride, scale, given, t->count, out[0]);
    t->fast->code_scores(&panel, codes, stride, scale, given, t->count, out[1]);
    for (int j = 0; j < t->count; j++)
        for (int lane = 0; lane < t->lanes; lane++) {
            double sum = 0.0;
            for (int64_t d = 0; d < stride; d++)
                sum += (double)(codes[j * stride + d] - 128) * quads[(d / 4 * ICE_PANEL + lane) * 4 + d % 4];
            double part = sum * (double)scale[j] * (double)query_scale[lane], own = given ? (double)bias[j] : 0.0;
            double size = fabs(part) + fabs((double)base[lane]) + fabs(own);
            expect_near(t, part + (double)base[lane] + own, (double)out[0][j * ICE_PANEL + lane], size, 6 * U);
            expect_near(t, part + (double)base[lane] + own, (double)out[1][j * ICE_PANEL + lane], size, 6 * U);
        }
    ice_free(base);
    ice_free(query_scale);
    ice_free(scale);
    ice_free(bias);
}

static void compare_find_at_least(test *t) {
    int32_t places[2][PANEL_OF(MAX_COUNT)];
    float *scores = floats(t, PANEL_OF(t->count)), *threshold = floats(t, ICE_PANEL);
    if (t->variant == 2) scores[PANEL_OF(t->count - 1)] = NAN;
    if (t->variant == 3) threshold[0] = -INFINITY, threshold[t->lanes - 1] = INFINITY;
    int64_t wanted = t->plain->find_at_least(scores, t->count, t->lanes, threshold, places[0]);
    int64_t found = t->fast->find_at_least(scores, t->count, t->lanes, threshold, places[1]);
    if (wanted != found || memcmp(places[0], places[1], (size_t)wanted * sizeof **places) != 0) fail(t, "found others");
    int64_t counted = 0;
    for (int j = 0; j < t->count; j++)
        for (int lane = 0; lane < t->lanes; lane++) counted += scores[j * ICE_PANEL + lane] >= threshold[lane];
    if (counted != wanted) fail(t, "did not find all");
    ice_free(scores);
    ice_free(threshold);
}

static void compare_nth_largest(test *t) {
    float threshold[2][ICE_PANEL], *scores = floats(t, PANEL_OF(t->count));
    int64_t wanted = 1 + (int64_t)ice_random_below(&t->random, (uint64_t)t->count);
    t->plain->nth_largest(scores, t->count, t->lanes, wanted, threshold[0]);
    t->fast->nth_largest(scores, t->count, t->lanes, wanted, threshold[1]);
    for (int lane = 0; lane < t->lanes; lane++)
        for (int which = 0; which < 2; which++) {
            int64_t reach = 0, above = 0;
            for (int j = 0; j < t->count; j++) {
                reach += scores[j * ICE_PANEL + lane] >= threshold[which][lane];
                above += scores[j * ICE_PANEL + lane] > threshold[which][lane];
            }
            if (reach < wanted) fail(t, "too few reach the threshold");
            if (t->variant % 2 == 0 && reach != wanted) fail(t, "too many reach the threshold");
            (void)above;
        }
    ice_free(scores);
}

static void compare_keep_reaching(test *t) {
    if (t->count < 2) return;
    float *scores = floats(t, t->count), copy[MAX_COUNT], bound;
    int32_t numbers[MAX_COUNT];
    int64_t keep = 1 + (int64_t)ice_random_below(&t->random, (uint64_t)t->count - 1);
    for (int which = 0; which < 2; which++) {
        memcpy(copy, scores, (size_t)t->count * sizeof *scores);
        for (int i = 0; i < t->count; i++) numbers[i] = i;
        int64_t kept = (which ? t->fast : t->plain)->keep_reaching(copy, numbers, t->count, keep, &bound);
        int64_t at = 0, above = 0;
        for (int i = 0; i < t->count; i++) {
            above += scores[i] > bound;
            if (scores[i] < bound) continue;
            if (at >= kept || numbers[at] != i || copy[at] != scores[i]) fail(t, "kept the wrong ones");
            at++;
        }
        if (at != kept) fail(t, "did not keep all that reach the bound");
        if (kept < keep || (kept > keep && above >= keep)) fail(t, "kept too few, or too many without ties");
    }
    ice_free(scores);
}

static void compare_keep_largest(test *t) {
    if (t->count < 2) return;
    float *scores = floats(t, t->count), copy[2][MAX_COUNT];
    int32_t numbers[2][MAX_COUNT];
    int64_t keep = 1 + (int64_t)ice_random_below(&t->random, (uint64_t)t->count - 1);
    for (int i = 0; i < t->count; i++)
        numbers[0][i] = numbers[1][i] = (int32_t)((i * 37) % 101); /* distinct: 101 is prime */
    int32_t original[MAX_COUNT];
    memcpy(original, numbers[0], sizeof original);
    float bound[2];
    for (int which = 0; which < 2; which++) {
        memcpy(copy[which], scores, (size_t)t->count * sizeof *scores);
        bound[which] = (which ? t->fast : t->plain)->keep_largest(copy[which], numbers[which], t->count, keep);
    }
    if (memcmp(numbers[0], numbers[1], (size_t)keep * sizeof **numbers) != 0) fail(t, "kept others");
    /* by definition: kept are those that fewer than `keep` precede */
    int64_t at = 0;
    for (int i = 0; i < t->count; i++) {
        int64_t before = 0;
        for (int j = 0; j < t->count; j++)
            before += scores[j] > scores[i] || (scores[j] == scores[i] && original[j] < original[i]);
        if (before >= keep) {
            if (scores[i] > bound[1]) fail(t, "the bound is exceeded by what was left out");
            continue;
        }
        if (at >= keep || numbers[1][at] != original[i] || copy[1][at] != scores[i]) fail(t, "kept the wrong ones");
        if (scores[i] < bound[1]) fail(t, "the bound is not reached by what was kept");
        at++;
    }
    ice_free(scores);
}

static void compare_rank(test *t) {
    float *scores = floats(t, t->count);
    int32_t place[MAX_COUNT];
    t->fast->rank(scores, t->count, place);
    for (int i = 0; i < t->count; i++) {
        int before = 0;
        for (int j = 0; j < t->count; j++) before += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        if (place[i] != before) fail(t, "is not the rank");
    }
    ice_free(scores);
}

static void compare_encode(test *t) {
    const int64_t stride = (t->dim + 3) & ~3;
    float *x = floats(t, t->dim), *center = floats(t, t->dim);
    int8_t code[2][MAX_DIM];
    if (t->variant == 2) memset(x, 0, (size_t)t->dim * sizeof *x);
    if (t->variant == 2 && t->dim % 2) x[0] = 1e-40f;      /* which has no inverse */
    if (t->variant == 3) x[0] = 3e38f, center[0] = -3e38f; /* the difference overflows */
    const float *given = t->variant == 1 || t->variant == 3 ? center : NULL;
    float plain = t->plain->encode(x, given, t->dim, stride, code[0]),
          fast = t->fast->encode(x, given, t->dim, stride, code[1]);
    if (plain != fast || memcmp(code[0], code[1], (size_t)stride) != 0) fail(t, "codes differ");
    for (int64_t d = t->dim; d < stride; d++)
        if (code[1][d]) fail(t, "a byte past the end is not 0");
    for (int d = 0; d < t->dim && isfinite(fast); d++) {
        double difference = (double)(given ? x[d] - center[d] : x[d]);
        if (fabs(difference - (double)fast * code[1][d]) > 0.5001 * (double)fast + 127.0 / FLT_MAX)
            fail(t, "a code is off by more than half a step");
    }
    ice_free(x);
    ice_free(center);
}

/* Codes are those of `encode`, for a scale is a power of two. */
static void compare_encode_lane(test *t) {
    const int64_t stride = (t->dim + 3) & ~3;
    const float scale = t->variant % 2 ? 0.25f : 1.0f;
    float *x = floats(t, t->dim), *center = floats(t, t->dim), *scaled = floats(t, t->dim), score[2];
    int8_t code[MAX_DIM], *quads[2];
    int32_t offset[2], sum = 0;
    if (t->variant == 2) memcpy(x, center, (size_t)t->dim * sizeof *x);
    for (int d = 0; d < t->dim; d++) scaled[d] = scale * center[d];
    const float expected = t->plain->encode(x, scaled, t->dim, stride, code);
    /* the last lane, of which not a byte follows */
    const int64_t bytes = (stride / 4 - 1) * ICE_PANEL * 4 + 4;
    for (int i = 0; i < 2; i++) {
        quads[i] = ice_alloc(bytes, 1);
        memset(quads[i], 1, (size_t)bytes);
        const ice_kernels *kernels = i ? t->fast : t->plain;
        if (kernels->encode_lane(x, center, scale, t->dim, quads[i], &offset[i], &score[i]) != expected)
            fail(t, "scales differ");
    }
    for (int64_t d = 0; d < stride; d++) {
        sum += code[d];
        if (quads[1][d / 4 * ICE_PANEL * 4 + d % 4] != code[d]) fail(t, "codes differ");
    }
    if (memcmp(quads[0], quads[1], (size_t)bytes) != 0) fail(t, "a byte between the codes is written");
    if (offset[1] != -128 * sum) fail(t, "the offset is not that of the codes");
    expect_near(t, (double)score[0], (double)score[1], fabs((double)score[0]), 2 * t->dim * U);
    for (int i = 0; i < 2; i++) ice_free(quads[i]);
    ice_free(x);
    ice_free(center);
    ice_free(scaled);
}

static void compare_gathered_scores(test *t) {
    float *query = floats(t, t->dim), out[2][MAX_COUNT], *wide = floats(t, (int64_t)t->count * t->dim);
    const icecore_dtype dtype = (icecore_dtype)(t->variant % 3);
    const size_t bytes = (size_t)t->dim * ice_element_size(dtype);
    void *row[MAX_COUNT];
    for (int i = 0; i < t->count; i++) {
        row[i] = ice_alloc(1, bytes);
        t->plain->from_float32(dtype, wide + i * t->dim, row[i], t->dim);
        t->plain->to_float32(dtype, row[i], wide + i * t->dim, t->dim);
    }
    const float scales[] = {0.0f, 1.0f, 0.25f};
    for (int s = 0; s < 3; s++) {
        const double scale = (double)scales[s];
        t->plain->gathered_scores(query, t->dim, scales[s], dtype, (const void *const *)row, t->count, out[0]);
        t->fast->gathered_scores(query, t->dim, scales[s], dtype, (const void *const *)row, t->count, out[1]);
        for (int i = 0; i < t->count; i++) {
            double sum = 0.0, size = 0.0;
            for (int d = 0; d < t->dim; d++) {
                double x = (double)wide[i * t->dim + d], q = (double)query[d];
                double term = s ? -0.5 * (q - scale * x) * (q - scale * x) : q * x;
                sum += term;
                size += fabs(term);
            }
            expect_near(t, sum, (double)out[0][i], size, (2 * t->dim + 4) * U);
            expect_near(t, sum, (double)out[1][i], size, (2 * t->dim + 4) * U);
        }
    }
    for (int i = 0; i < t->count; i++) ice_free(row[i]);
    ice_free(wide);
    ice_free(query);
}

static void compare_squared_distances(test *t) {
    const int64_t stride = t->dim + (t->variant % 2) * 5;
    float *panel = floats(t, PANEL_OF(t->dim)), *keys = floats(t, (t->count - 1) * stride + t->dim),
          out[2][PANEL_OF(MAX_COUNT)];
    const float scale = t->variant < 2 ? 1.0f : 4.0f;
    t->plain->squared_distances(panel, t->dim, t->lanes, scale, keys, stride, t->count, out[0]);
    t->fast->squared_distances(panel, t->dim, t->lanes, scale, keys, stride, t->count, out[1]);
    for (int j = 0; j < t->count; j++)
        for (int lane = 0; lane < t->lanes; lane++) {
            double sum = 0.0;
            for (int d = 0; d < t->dim; d++) {
                double difference = (double)scale * (double)keys[j * stride + d] - (double)panel[d * ICE_PANEL + lane];
                sum -= 0.5 * difference * difference;
            }
            expect_near(t, sum, (double)out[0][j * ICE_PANEL + lane], -sum, (2 * t->dim + 4) * U);
            expect_near(t, sum, (double)out[1][j * ICE_PANEL + lane], -sum, (2 * t->dim + 4) * U);
        }
    ice_free(panel);
    ice_free(keys);
}

static void compare_chebyshev(test *t) {
    const int simples = 1 + t->variant * 3;
    const int64_t stride = t->count + 5;
    float *projection = floats(t, (simples - 1) * stride + t->count), *query = floats(t, simples),
          out[2][MAX_COUNT + 1];
    for (int which = 0; which < 2; which++) {
        out[which][t->count] = 7.0f;
        (which ? t->fast : t->plain)->chebyshev(projection, stride, simples, query, t->count, out[which]);
        if (out[which][t->count] != 7.0f) fail(t, "wrote outside its output");
    }
    for (int i = 0; i < t->count; i++) {
        float largest = 0.0f;
        for (int j = 0; j < simples; j++) largest = fmaxf(largest, fabsf(projection[j * stride + i] - query[j]));
        if (out[0][i] != largest || out[1][i] != largest) fail(t, "is not the largest difference");
    }
    ice_free(projection);
    ice_free(query);
}

/* In the order of the names. */
static void (*const compare[ICE_SEARCH_KERNELS])(test *) = {
    compare_code_scores, compare_find_at_least, compare_nth_largest, compare_keep_reaching,   compare_keep_largest,
    compare_rank,        compare_encode,        compare_encode_lane, compare_gathered_scores, compare_squared_distances,
    compare_chebyshev,
};

int ice_selftest_search(int number, const ice_kernels *plain, const ice_kernels *fast, char *reason, size_t size,
                        double *error) {
    test t = {.plain = plain, .fast = fast, .random = 1, .reason = reason, .size = size};
    for (t.variant = 0; t.variant < 4; t.variant++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
                for (size_t l = 0; l < sizeof lane_counts / sizeof *lane_counts; l++) {
                    t.dim = dims[d];
                    t.count = counts[c];
                    t.lanes = lane_counts[l];
                    compare[number](&t);
                }
    *error = t.error;
    return t.failed;
}
