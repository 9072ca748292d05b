/* Exact attention is the formula, for all shapes, types, layouts and ways of hiding keys. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "naive.h"

static void expect_exact(const problem *s) {
    const icecore_attention *p = &s->p;
    check_at("dtype %d, batch %d, heads %d of %d, queries %d, keys %d, dim %d, value_dim %d, causal %d, window %lld, "
             "sinks %lld",
             (int)p->dtype, (int)p->batch, (int)p->query_heads, (int)p->key_heads, (int)p->queries, (int)p->keys,
             (int)p->dim, (int)p->value_dim, p->causal, (long long)p->window_left, (long long)p->sinks);
    EXPECT(icecore_attend_exact(p) == ICECORE_OK);
    expect_attention(s, 0);
}

static void expect_exact_of(problem s) {
    problem_allocate(&s);
    expect_exact(&s);
    problem_free(&s);
}

static void dims(void) {
    static const int64_t sizes[] = {1, 2, 15, 16, 17, 33, 64, 65, 128, 511, ICECORE_MAX_DIM};
    for (int i = 0; i < 11; i++)
        for (int rows = 1; rows <= 49; rows += 48) /* row kernels, then panels */
            expect_exact_of(one_head(rows, 37, sizes[i], sizes[10 - i]));
}

static void lengths(void) {
    static const int64_t keys[] = {1, 2, 127, 128, 129, 300}, queries[] = {1, 2, 8, 9, 47, 48, 49, 97};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 8; j++)
            for (int causal = 0; causal < 2; causal++) {
                problem s = one_head(queries[j], keys[i], 5, 6);
                s.p.causal = causal;
                expect_exact_of(s);
            }
}

static void windows_and_sinks(void) {
    static const int64_t windows[] = {-1, 0, 1, 7, 140, INT64_MAX}, sinks[] = {0, 3, 150, INT64_MAX};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 4; j++)
            for (int causal = 0; causal < 2; causal++)
                for (int queries = 3; queries <= 290; queries += 287) {
                    problem s = one_head(queries, 260, 4, 3);
                    s.p.window_left = s.p.window_right = windows[i];
                    s.p.sinks = sinks[j];
                    s.p.causal = causal;
                    expect_exact_of(s);
                }
}

/* Of each query of each batch entry, some empty and some beyond the keys on both sides, which count as clipped. */
static void ranges(void) {
    static const int64_t windows[][2] = {{-1, -1}, {9, 200}, {0, -1}, {-1, 3}, {INT64_MAX, 1}};
    for (int i = 0; i < 5; i++)
        for (int sinks = 0; sinks <= 140; sinks += 70)
            for (int causal = 0; causal < 2; causal++)
                for (int queries = 2; queries <= 150; queries += 148) {
                    uint64_t state = (uint64_t)(i + 10 * sinks);
                    int64_t pairs[2 * 150 * 2];
                    problem s = one_head(queries, 260, 4, 3);
                    s.p.batch = 2;
                    s.p.window_left = windows[i][0];
                    s.p.window_right = windows[i][1];
                    s.p.sinks = sinks;
                    s.p.causal = causal;
                    for (int64_t j = 0; j < 4 * queries; j++) pairs[j] = (int64_t)(next_random(&state) % 300) - 20;
                    pairs[0] = INT64_MIN, pairs[1] = INT64_MAX, pairs[2] = INT64_MAX, pairs[3] = INT64_MIN;
                    s.p.ranges = pairs;
                    s.p.range_batch_stride = 2 * queries;
                    s.p.range_row_stride = 2;
                    expect_exact_of(s);
                }
}

static void heads_and_batches(void) {
    static const int64_t groups[] = {1, 3, 4, 7};
    for (int i = 0; i < 4; i++)
        for (int queries = 1; queries <= 30; queries += 29) {
            problem s = one_head(queries, 40, 9, 8);
            s.p.batch = 2;
            s.p.key_heads = 2;
            s.p.query_heads = 2 * groups[i];
            s.p.causal = 1;
            expect_exact_of(s);
        }
}

static void dtypes_and_layouts(void) {
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int order = HEADS_FIRST; order <= ROWS_FIRST; order++)
            for (int pad = 0; pad <= 5; pad += 5)
                for (int queries = 1; queries <= 20; queries += 19) {
                    problem s = one_head(queries, 150, 19, 21);
                    s.p.dtype = (icecore_dtype)dtype;
                    s.p.batch = s.p.key_heads = 2;
                    s.p.query_heads = 4;
                    s.p.causal = 1;
                    s.layout = (layout)order;
                    s.pad = pad;
                    expect_exact_of(s);
                }
}

/* Widths that native bfloat16 kernels take, at the edges of their tiles. */
static void bfloat16_tiles(void) {
    static const int64_t dims[] = {2, 32, 96, ICECORE_MAX_DIM}, keys[] = {1, 31, 33, 160, 300}, queries[] = {9, 48, 65};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 5; j++)
            for (int k = 0; k < 3; k++) {
                if (dims[i] > 96 && keys[j] != 160) continue;
                problem s = one_head(queries[k], keys[j], dims[i], dims[3 - i]);
                s.p.dtype = ICECORE_BFLOAT16;
                s.p.causal = i % 2;
                s.pad = 7 * (i % 2);
                expect_exact_of(s);
            }
}

/* So many rows that float32 goes through matrix tiles in thirds; some keys are larger than these hold. */
static void thirds(void) {
    static const int64_t dims[] = {32, 96}, keys[] = {1, 31, 33, 160, 300}, queries[] = {289, 330};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 5; j++)
            for (int k = 0; k < 4; k++) {
                problem s = one_head(queries[k % 2], keys[j], dims[i], 16 + 32 * i);
                s.p.dtype = k < 2 ? ICECORE_FLOAT32 : ICECORE_FLOAT16;
                s.p.causal = k % 2;
                s.pad = 7 * i;
                problem_allocate(&s);
                if (k == 0) { /* where 1e20 times a query overflows nothing */
                    float *key = (float *)s.p.key.data;
                    key[0] = 1e20f;
                    s.p.scale = 1e-20f;
                }
                expect_exact(&s);
                problem_free(&s);
            }
}

/* Within a tolerance, and exact where rounding breaks it: by what is left where the machine has nothing to round to. */
static void rounded(void) {
    for (int i = 0; i < 8; i++) {
        problem s = one_head(i & 1 ? 7 : 130, 210, 64, 32);
        s.p.batch = 2;
        s.p.key_heads = 2;
        s.p.query_heads = 6;
        s.p.causal = i >> 1 & 1;
        s.p.dtype = i & 4 ? ICECORE_FLOAT16 : ICECORE_FLOAT32;
        problem_allocate(&s);
        float error[12], standard_error[12];
        int32_t rows[12];
        const icecore_report report = {.error = error, .standard_error = standard_error, .error_rows = rows};
        icecore_near_far options = {.tolerance = 1e-7f};
        const icecore_status status = icecore_attend_rounded(&s.p, &options, &report);
        EXPECT(status == (icecore_multiplies_bfloat16(64, 32) ? ICECORE_OK : ICECORE_ERROR_VALUE));
        if (status == ICECORE_OK) {
            expect_attention(&s, 0);
            for (int h = 0; h < 12; h++) EXPECT(error[h] == 0.0f && rows[h] >= 7);
            options.tolerance = 0.1f;
            EXPECT(icecore_attend_rounded(&s.p, &options, &report) == ICECORE_OK);
            for (int h = 0; h < 12; h++) EXPECT(error[h] > 0.0f && error[h] < 0.1f && standard_error[h] >= 0.0f);
            EXPECT(problem_gaps_are_clear(&s));
            options.tolerance = 0.0f;
            EXPECT(icecore_attend_rounded(&s.p, &options, NULL) == ICECORE_ERROR_VALUE);
        }
        problem_free(&s);
    }
}

/* Few rows and many keys: the keys are split between tasks and the parts merged. */
static void long_decode(void) {
    for (int window = -1; window <= 5000; window += 5001) {
        problem s = one_head(2, 9001, 8, 8);
        s.p.query_heads = 2;
        s.p.causal = 1;
        s.p.window_left = s.p.window_right = window;
        s.p.sinks = 3;
        expect_exact_of(s);
    }
}

static void masks(void) {
    enum { BATCH = 2, HEADS = 4, QUERIES = 20, KEYS = 140, COUNT = BATCH * HEADS * QUERIES * KEYS };
    uint8_t *keep = malloc(COUNT);
    float *bias = malloc(COUNT * sizeof *bias);
    uint64_t random = 7;
    for (int i = 0; i < COUNT; i++) {
        keep[i] = next_random(&random) % 3 != 0;
        bias[i] = next_random(&random) % 4 == 0 ? -INFINITY : random_float(&random);
    }
    for (int j = 0; j < KEYS; j++) keep[j] = 0, bias[j] = -INFINITY; /* a query that sees nothing */
    for (int broadcast = 0; broadcast < 16; broadcast++)
        for (int kind = ICECORE_MASK_BOOL; kind <= ICECORE_MASK_FLOAT32; kind++)
            for (int queries = 2; queries <= QUERIES; queries += QUERIES - 2) {
                problem s = one_head(queries, KEYS, 3, 4);
                s.p.batch = BATCH;
                s.p.query_heads = HEADS;
                s.p.key_heads = 2;
                s.p.causal = broadcast & 1;
                s.p.mask_kind = (icecore_mask_kind)kind;
                s.p.mask = kind == ICECORE_MASK_BOOL ? (const void *)keep : bias;
                s.p.mask_batch_stride = broadcast & 1 ? 0 : HEADS * QUERIES * KEYS;
                s.p.mask_head_stride = broadcast & 2 ? 0 : QUERIES * KEYS;
                s.p.mask_row_stride = broadcast & 4 ? 0 : KEYS;
                s.p.mask_key_stride = broadcast & 8 ? 0 : 1;
                expect_exact_of(s);
            }
    free(keep);
    free(bias);
}

static void without_lse(void) {
    problem s = one_head(10, 10, 4, 4);
    problem_allocate(&s);
    float *lse = s.p.lse;
    s.p.lse = NULL;
    expect_exact(&s);
    s.p.lse = lse;
    problem_free(&s);
}

static void scales(void) {
    static const float values[] = {-0.5f, 1e-20f, 30.0f};
    for (int i = 0; i < 3; i++) {
        problem s = one_head(12, 60, 2, 3);
        s.p.scale = values[i];
        expect_exact_of(s);
    }
}

static void empty(void) {
    for (int axis = 0; axis < 3; axis++) {
        problem s = one_head(axis != 0, 3, 4, 4);
        s.p.batch = axis != 1;
        s.p.query_heads = axis != 2;
        problem_allocate(&s);
        EXPECT(icecore_attend_exact(&s.p) == ICECORE_OK);
        problem_free(&s);
    }
    for (int queries = 1; queries <= 20; queries += 19) expect_exact_of(one_head(queries, 0, 4, 4)); /* 0 and -inf */
}

void exact_tests(void) {
    check_run("exact attention: dims from 1 to 576", dims);
    check_run("exact attention: lengths on both sides of a block and a panel", lengths);
    check_run("exact attention: windows and sinks of any size", windows_and_sinks);
    check_run("exact attention: ranges, windows to both sides and sinks", ranges);
    check_run("exact attention: grouped heads and batches", heads_and_batches);
    check_run("exact attention: 16-bit types, layouts, gaps between rows", dtypes_and_layouts);
    check_run("exact attention: bfloat16 at the edges of tiles", bfloat16_tiles);
    check_run("exact attention: float32 in thirds", thirds);
    check_run("exact attention: rounded where that keeps a tolerance", rounded);
    check_run("exact attention: split keys", long_decode);
    check_run("exact attention: masks, broadcast along any axis", masks);
    check_run("exact attention: no lse asked for", without_lse);
    check_run("exact attention: scales", scales);
    check_run("exact attention: empty sizes", empty);
}
