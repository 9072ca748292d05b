/* Soft caps, sink logits and ALiBi are the formula on every path that takes them: exact by rows and panels, split keys,
 * listed keys, near/far. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "naive.h"

static const float caps[] = {0.0f, 1e-30f, 0.25f, 4.0f, 50.0f, 1e30f};
enum { CAPS = sizeof caps / sizeof *caps };
/* Of four heads: of some of the weight, none of it, all of it. */
static const float logits[][4] = {
    {0.5f, -1.0f, 2.0f, 0.0f}, {3.0f, -INFINITY, -1e30f, 8.0f}, {-1e-30f, 1e30f, 100.0f, -40.0f}};

static void expect_exact(problem s) {
    const icecore_attention *p = &s.p;
    problem_allocate(&s);
    check_at("dtype %d, queries %d, keys %d, dim %d, causal %d, window %d, softcap %g, sink %g", (int)p->dtype,
             (int)p->queries, (int)p->keys, (int)p->dim, p->causal, (int)p->window_left, (double)p->softcap,
             p->sink_logits ? (double)p->sink_logits[0] : NAN);
    EXPECT(icecore_attend_exact(p) == ICECORE_OK);
    expect_attention(&s, 0);
    problem_free(&s);
}

static problem four_heads(int64_t queries, int64_t keys, int64_t dim, int64_t value_dim) {
    problem s = one_head(queries, keys, dim, value_dim);
    s.p.batch = s.p.key_heads = 2;
    s.p.query_heads = 4;
    return s;
}

static void exact(void) {
    static const int64_t queries[] = {1, 4, 5, 40};
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int i = 0; i < 4; i++)
            for (int cap = 0; cap < CAPS; cap++)
                for (int sinks = -1; sinks < 3; sinks++) {
                    problem s = four_heads(queries[i], 150, cap % 2 ? 32 : 19, cap % 2 ? 16 : 21);
                    s.p.dtype = (icecore_dtype)dtype;
                    s.p.softcap = caps[cap];
                    s.p.sink_logits = sinks < 0 ? NULL : logits[sinks];
                    s.p.causal = i % 2;
                    s.p.window_left = s.p.window_right = i % 3 ? -1 : 20;
                    s.p.sinks = 2;
                    s.layout = i % 2 ? ROWS_FIRST : HEADS_FIRST;
                    s.pad = 3 * (cap % 2);
                    expect_exact(s);
                }
}

/* Whole blocks, which bfloat16 kernels take many at a time, and the ends of their tiles. */
static void long_keys(void) {
    static const int64_t keys[] = {128, 300, 700};
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype += 2)
        for (int i = 0; i < 3; i++)
            for (int sinks = -1; sinks < 1; sinks++) {
                problem s = four_heads(100, keys[i], 64, 32);
                s.p.dtype = (icecore_dtype)dtype;
                s.p.softcap = 3.0f;
                s.p.sink_logits = sinks < 0 ? NULL : logits[0];
                s.p.causal = i % 2;
                expect_exact(s);
            }
}

/* Steep and flat slopes, and none; keys to both sides of a query, and queries before all keys. */
static const float slopes[] = {0.5f, 0.0f, 0.00390625f, 40.0f};

static void alibi(void) {
    static const int64_t queries[] = {1, 4, 5, 40, 190}, keys[] = {30, 128, 150, 700};
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int i = 0; i < 5; i++)
            for (int j = 0; j < 4; j++)
                for (int kind = 0; kind < 4; kind++) {
                    problem s = four_heads(queries[i], keys[j], i % 2 ? 32 : 19, i % 2 ? 16 : 21);
                    s.p.dtype = (icecore_dtype)dtype;
                    s.p.alibi_slopes = slopes;
                    s.p.causal = kind % 2;
                    s.p.window_left = s.p.window_right = kind > 1 ? 20 : -1;
                    s.p.sinks = 2;
                    s.p.softcap = j % 2 ? 3.0f : 0.0f;
                    s.p.sink_logits = j % 2 ? logits[0] : NULL;
                    s.layout = i % 2 ? ROWS_FIRST : HEADS_FIRST;
                    expect_exact(s);
                }
}

/* A sink counts once, however many parts the keys are split in. */
static void split_keys(void) {
    for (int sinks = 0; sinks < 3; sinks++) {
        problem s = one_head(2, 9001, 8, 8);
        s.p.query_heads = 4;
        s.p.softcap = 0.5f;
        s.p.sink_logits = logits[sinks];
        s.p.alibi_slopes = sinks == 1 ? slopes : NULL;
        s.p.causal = 1;
        expect_exact(s);
    }
}

static void no_keys(void) {
    for (int queries = 1; queries <= 20; queries += 19)
        for (int sinks = 0; sinks < 3; sinks++) {
            problem s = four_heads(queries, 0, 4, 4);
            s.p.sink_logits = logits[sinks];
            expect_exact(s);
        }
}

/* A mask is added to what is capped. */
static void masks(void) {
    enum { QUERIES = 30, KEYS = 140, COUNT = QUERIES * KEYS };
    uint8_t *keep = malloc(COUNT);
    float *bias = malloc(COUNT * sizeof *bias);
    uint64_t random = 7;
    for (int i = 0; i < COUNT; i++) {
        keep[i] = next_random(&random) % 3 != 0;
        bias[i] = next_random(&random) % 4 == 0 ? -INFINITY : random_float(&random);
    }
    for (int j = 0; j < KEYS; j++) keep[j] = 0, bias[j] = -INFINITY; /* a query that sees nothing but its sink */
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype += 2)
        for (int kind = ICECORE_MASK_BOOL; kind <= ICECORE_MASK_FLOAT32; kind++)
            for (int queries = 2; queries <= QUERIES; queries += QUERIES - 2)
                for (int sinks = -1; sinks < 3; sinks++) {
                    problem s = four_heads(queries, KEYS, 32, 16);
                    s.p.dtype = (icecore_dtype)dtype;
                    s.p.softcap = 1.0f;
                    s.p.sink_logits = sinks < 0 ? NULL : logits[sinks];
                    s.p.alibi_slopes = sinks == 1 ? slopes : NULL;
                    s.p.mask_kind = (icecore_mask_kind)kind;
                    s.p.mask = kind == ICECORE_MASK_BOOL ? (const void *)keep : bias;
                    s.p.mask_row_stride = KEYS;
                    s.p.mask_key_stride = 1;
                    expect_exact(s);
                }
    free(keep);
    free(bias);
}

/* An inf score becomes the cap, a NaN stays; what hides a key hides both. */
static void special_values(void) {
    static const float specials[] = {NAN, INFINITY, -INFINITY};
    static const float flat[] = {0.01f, 0.0f, 0.002f, 0.05f}; /* no visible key's weight is 0 */
    uint8_t keep[140];
    for (int i = 0; i < 140; i++) keep[i] = i % 3 != 0;
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int queries = 2; queries <= 60; queries += 58)
            for (int i = 0; i < 3; i++)
                for (int array = 0; array < 3; array++)
                    for (int hidden = 0; hidden < 2; hidden++) {
                        problem s = one_head(queries, 140, 32, 16);
                        s.p.dtype = (icecore_dtype)dtype;
                        s.p.query_heads = 4;
                        s.p.softcap = 2.0f;
                        s.p.sink_logits = logits[0];
                        s.p.alibi_slopes = i == hidden ? flat : NULL;
                        s.p.mask_kind = ICECORE_MASK_BOOL;
                        s.p.mask = keep;
                        s.p.mask_key_stride = 1;
                        problem_allocate(&s);
                        const icecore_tensor *const arrays[] = {&s.p.query, &s.p.key, &s.p.value};
                        const int64_t row = array ? 121 - hidden : queries / 2;
                        element_set(arrays[array], s.p.dtype, element_index(arrays[array], 0, 0, row, 4), specials[i]);
                        check_at("dtype %d, queries %d, %g in array %d, hidden %d", dtype, queries, (double)specials[i],
                                 array, hidden);
                        EXPECT(icecore_attend_exact(&s.p) == ICECORE_OK);
                        expect_attention(&s, 0);
                        problem_free(&s);
                    }
}

/* Lists that hold every key once, of each row or of all query heads of a key head. */
static void listed(void) {
    int32_t numbers[150];
    for (int i = 0; i < 150; i++) numbers[i] = (i * 7) % 150;
    const icecore_indices all = {.data = numbers, .count = 150, .index_stride = 1};
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int group = 2; group <= 12; group += 10)
            for (int sinks = -1; sinks < 3; sinks++) {
                float own[12];
                for (int i = 0; i < 12 && sinks >= 0; i++) own[i] = logits[sinks][i % 4];
                problem s = one_head(5, 150, 32, 16);
                s.p.dtype = (icecore_dtype)dtype;
                s.p.query_heads = group;
                s.p.softcap = 1.5f;
                s.p.sink_logits = sinks < 0 ? NULL : own;
                s.p.causal = 1;
                int64_t place;
                problem_allocate(&s);
                check_at("dtype %d, group %d, sinks %d", dtype, group, sinks);
                EXPECT(icecore_attend_indices(&s.p, &all, &place) == ICECORE_OK);
                expect_attention(&s, 0);
                problem_free(&s);
            }
}

static void expect_near_far(problem s, icecore_near_far options, int equal_keys) {
    const icecore_attention *p = &s.p;
    float lost[4 * 200];
    const icecore_report report = {.missed_bound = lost};
    problem_allocate(&s);
    for (int64_t i = 0; equal_keys && i < p->key_heads * p->keys * p->dim; i++)
        element_set(&p->key, p->dtype,
                    element_index(&p->key, 0, i / p->dim / p->keys, i / p->dim % p->keys, i % p->dim),
                    0.125f * (float)(i % 3));
    check_at("causal %d, softcap %g, sink %g, near keys %d, tolerance %g, rounding %d, equal keys %d", p->causal,
             (double)p->softcap, p->sink_logits ? (double)p->sink_logits[0] : NAN, (int)options.near_keys,
             (double)options.tolerance, options.rounding, equal_keys);
    EXPECT(icecore_attend_near_far(p, &options, &report) == ICECORE_OK);
    expect_attention(&s, 0);
    problem_free(&s);
}

/* Where all keys are near; where a tolerance needs all; and where means stand for equal keys. */
static void near_far(void) {
    const icecore_near_far all = {.near_keys = 200, .block = 20, .cell_size = 8},
                           fine = {.tolerance = 1e-7f, .block = 20, .cell_size = 4},
                           few = {.near_keys = 1, .block = 16, .cell_size = 8},
                           loose = {.tolerance = 0.3f, .block = 16, .cell_size = 8};
    for (int causal = 0; causal < 2; causal++)
        for (int cap = 0; cap < CAPS; cap++)
            for (int sinks = -1; sinks < 3; sinks++) {
                problem s = one_head(190, 200, 12, 9);
                s.p.key_heads = 2;
                s.p.query_heads = 4;
                s.p.causal = causal;
                s.p.sinks = 3;
                s.p.softcap = caps[cap];
                s.p.sink_logits = sinks < 0 ? NULL : logits[sinks];
                expect_near_far(s, all, 0);
                expect_near_far(s, fine, 0);
                expect_near_far(s, few, 1);
                expect_near_far(s, loose, 1);
            }
}

/* The published method where it visits all keys: the largest scores are the largest capped ones. */
static void selected(void) {
    for (int causal = 0; causal < 2; causal++)
        for (int sinks = -1; sinks < 3; sinks++) {
            problem s = four_heads(60, 150, 12, 9);
            s.p.causal = causal;
            s.p.softcap = 4.0f;
            s.p.sink_logits = sinks < 0 ? NULL : logits[sinks];
            problem_allocate(&s);
            check_at("causal %d, sinks %d", causal, sinks);
            EXPECT(icecore_attend_pdci(&s.p, 20, 150, 7, NULL) == ICECORE_OK);
            expect_attention(&s, 20);
            EXPECT(icecore_attend_top_k(&s.p, 20, NULL) == ICECORE_OK);
            expect_attention(&s, 20);
            problem_free(&s);
        }
}

void caps_and_sinks_tests(void) {
    check_run("soft caps and sink logits: exact attention", exact);
    check_run("soft caps and sink logits: many blocks of keys", long_keys);
    check_run("soft caps and sink logits: ALiBi", alibi);
    check_run("soft caps and sink logits: split keys", split_keys);
    check_run("soft caps and sink logits: no keys", no_keys);
    check_run("soft caps and sink logits: masks", masks);
    check_run("soft caps and sink logits: NaN and inf", special_values);
    check_run("soft caps and sink logits: listed keys", listed);
    check_run("soft caps and sink logits: near/far attention", near_far);
    check_run("soft caps and sink logits: a selector", selected);
}
