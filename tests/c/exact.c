/* Exact attention is the formula, for all shapes, types, layouts and ways of hiding keys. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "naive.h"

static void expect_exact(problem s) {
    const icecore_attention *p = &s.p;
    check_at("dtype %d, batch %d, heads %d of %d, queries %d, keys %d, dim %d, value_dim %d, causal %d, window %lld, sinks %lld, pad %d",
             (int)p->dtype, (int)p->batch, (int)p->query_heads, (int)p->key_heads, (int)p->queries, (int)p->keys, (int)p->dim,
             (int)p->value_dim, p->causal, (long long)p->window, (long long)p->sinks, (int)s.pad);
    EXPECT(icecore_attend_exact(p) == ICECORE_OK);
    expect_attention(&s, NULL);
}

static void expect_exact_of(problem s) {
    problem_allocate(&s);
    expect_exact(s);
    problem_free(&s);
}

static void dims(void) {
    static const int64_t sizes[] = {1, 2, 15, 16, 17, 33, 64, 65, 128, 511, ICECORE_MAX_DIM};
    for (int i = 0; i < 11; i++)
        for (int rows = 1; rows <= 49; rows += 48)   /* row kernels, then panels */
            expect_exact_of((problem){.p = {.batch = 1, .query_heads = 1, .key_heads = 1, .queries = rows, .keys = 37,
                                            .dim = sizes[i], .value_dim = sizes[10 - i], .window = -1}, .seed = 1});
}

static void lengths(void) {
    static const int64_t keys[] = {1, 2, 127, 128, 129, 300}, queries[] = {1, 2, 8, 9, 47, 48, 49, 97};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 8; j++)
            for (int causal = 0; causal < 2; causal++)
                expect_exact_of((problem){.p = {.batch = 1, .query_heads = 1, .key_heads = 1, .queries = queries[j], .keys = keys[i],
                                                .dim = 5, .value_dim = 6, .window = -1, .causal = causal}, .seed = 2});
}

static void windows_and_sinks(void) {
    static const int64_t windows[] = {-1, 0, 1, 7, 140, INT64_MAX}, sinks[] = {0, 3, 150, INT64_MAX};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 4; j++)
            for (int causal = 0; causal < 2; causal++)
                for (int queries = 3; queries <= 290; queries += 287)
                    expect_exact_of((problem){.p = {.batch = 1, .query_heads = 1, .key_heads = 1, .queries = queries, .keys = 260,
                                                    .dim = 4, .value_dim = 3, .window = windows[i], .sinks = sinks[j],
                                                    .causal = causal}, .seed = 3});
}

static void heads_and_batches(void) {
    static const int64_t groups[] = {1, 3, 4, 7};
    for (int i = 0; i < 4; i++)
        for (int queries = 1; queries <= 30; queries += 29)
            expect_exact_of((problem){.p = {.batch = 2, .query_heads = 2 * groups[i], .key_heads = 2, .queries = queries, .keys = 40,
                                            .dim = 9, .value_dim = 8, .window = -1, .causal = 1}, .seed = 4});
}

static void dtypes_and_layouts(void) {
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int order = HEADS_FIRST; order <= ROWS_FIRST; order++)
            for (int pad = 0; pad <= 5; pad += 5)
                for (int queries = 1; queries <= 20; queries += 19)
                    expect_exact_of((problem){.p = {.dtype = (icecore_dtype)dtype, .batch = 2, .query_heads = 4, .key_heads = 2,
                                                    .queries = queries, .keys = 150, .dim = 19, .value_dim = 21, .window = -1,
                                                    .causal = 1}, .layout = (layout)order, .pad = pad, .seed = 5});
}

/* Widths that native bfloat16 kernels take, at the edges of their tiles. */
static void bfloat16_tiles(void) {
    static const int64_t dims[] = {2, 32, 96, ICECORE_MAX_DIM}, keys[] = {1, 31, 33, 160, 300}, queries[] = {9, 48, 65};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 5; j++)
            for (int k = 0; k < 3; k++) {
                if (dims[i] > 96 && keys[j] != 160) continue;
                expect_exact_of((problem){.p = {.dtype = ICECORE_BFLOAT16, .batch = 1, .query_heads = 1, .key_heads = 1, .queries = queries[k],
                                                .keys = keys[j], .dim = dims[i], .value_dim = dims[3 - i], .window = -1, .causal = i % 2},
                                          .pad = 7 * (i % 2), .seed = 10});
            }
}

/* Few rows and many keys: the keys are split between tasks and the parts merged. */
static void long_decode(void) {
    for (int window = -1; window <= 5000; window += 5001)
        expect_exact_of((problem){.p = {.batch = 1, .query_heads = 2, .key_heads = 1, .queries = 2, .keys = 9001, .dim = 8, .value_dim = 8,
                                        .window = window, .sinks = 3, .causal = 1}, .seed = 6});
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
    for (int j = 0; j < KEYS; j++) keep[j] = 0, bias[j] = -INFINITY;   /* a query that sees nothing */
    for (int broadcast = 0; broadcast < 16; broadcast++)
        for (int kind = ICECORE_MASK_BOOL; kind <= ICECORE_MASK_FLOAT32; kind++)
            for (int queries = 2; queries <= QUERIES; queries += QUERIES - 2)
                expect_exact_of((problem){
                    .p = {.batch = BATCH, .query_heads = HEADS, .key_heads = 2, .queries = queries, .keys = KEYS, .dim = 3,
                          .value_dim = 4, .window = -1, .causal = broadcast & 1, .mask_kind = (icecore_mask_kind)kind,
                          .mask = kind == ICECORE_MASK_BOOL ? (const void *)keep : bias,
                          .mask_batch_stride = broadcast & 1 ? 0 : HEADS * QUERIES * KEYS,
                          .mask_head_stride = broadcast & 2 ? 0 : QUERIES * KEYS,
                          .mask_row_stride = broadcast & 4 ? 0 : KEYS,
                          .mask_key_stride = broadcast & 8 ? 0 : 1}, .seed = 8});
    free(keep);
    free(bias);
}

static void without_lse(void) {
    problem s = {.p = {.batch = 1, .query_heads = 1, .key_heads = 1, .queries = 10, .keys = 10, .dim = 4, .value_dim = 4, .window = -1}};
    problem_allocate(&s);
    float *lse = s.p.lse;
    s.p.lse = NULL;
    expect_exact(s);
    s.p.lse = lse;
    problem_free(&s);
}

static void scales(void) {
    static const float values[] = {-0.5f, 1e-20f, 30.0f};
    for (int i = 0; i < 3; i++)
        expect_exact_of((problem){.p = {.batch = 1, .query_heads = 1, .key_heads = 1, .queries = 12, .keys = 60, .dim = 2, .value_dim = 3,
                                        .window = -1, .scale = values[i]}, .seed = 9});
}

static void empty(void) {
    for (int axis = 0; axis < 3; axis++) {
        problem s = {.p = {.batch = axis != 0, .query_heads = axis != 1, .key_heads = 1, .queries = axis != 2, .keys = 3, .dim = 4,
                           .value_dim = 4, .window = -1}};
        problem_allocate(&s);
        EXPECT(icecore_attend_exact(&s.p) == ICECORE_OK);
        problem_free(&s);
    }
    for (int queries = 1; queries <= 20; queries += 19)   /* no keys: 0 and -inf */
        expect_exact_of((problem){.p = {.batch = 1, .query_heads = 2, .key_heads = 1, .queries = queries, .keys = 0, .dim = 4,
                                        .value_dim = 4, .window = -1}});
}

void exact_tests(void) {
    check_run("exact attention: dims from 1 to 512", dims);
    check_run("exact attention: lengths on both sides of a block and a panel", lengths);
    check_run("exact attention: windows and sinks of any size", windows_and_sinks);
    check_run("exact attention: grouped heads and batches", heads_and_batches);
    check_run("exact attention: 16-bit types, layouts, gaps between rows", dtypes_and_layouts);
    check_run("exact attention: bfloat16 at the edges of tiles", bfloat16_tiles);
    check_run("exact attention: split keys", long_decode);
    check_run("exact attention: masks, broadcast along any axis", masks);
    check_run("exact attention: no lse asked for", without_lse);
    check_run("exact attention: scales", scales);
    check_run("exact attention: empty sizes", empty);
}
