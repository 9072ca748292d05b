/* Near/far attention by what must hold whatever the cells are. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "naive.h"
#include "select/selection.h"

/* A problem with its options and a report of near_count and captured_mass. */
typedef struct {
    problem s;
    icecore_near_far options;
    icecore_report report;
} near_far;

static near_far allocate(problem s, icecore_near_far options) {
    problem_allocate(&s);
    const icecore_report report = {.near_count = malloc((size_t)s.lse_count * sizeof *report.near_count),
                                   .captured_mass = malloc((size_t)s.lse_count * sizeof *report.captured_mass)};
    return (near_far){s, options, report};
}

static void release(near_far *c) {
    problem_free(&c->s);
    free(c->report.near_count);
    free(c->report.captured_mass);
}

static void attend(const near_far *c) {
    EXPECT(icecore_attend_near_far(&c->s.p, &c->options, &c->report) == ICECORE_OK);
    EXPECT(problem_gaps_are_clear(&c->s));
    for (int64_t i = 0; i < c->s.lse_count; i++)
        EXPECT(c->report.captured_mass[i] >= 0.0f && c->report.captured_mass[i] <= 1.0f);
}

/* Keys that a query sees in cells. */
static int64_t sealed_keys(const near_far *c, int64_t query) {
    const icecore_attention *p = &c->s.p;
    int64_t end = p->keys;
    if (p->causal) {
        int64_t position = p->keys - p->queries + query;
        end = position < 0 ? 0 : (position / c->options.block - 1) * c->options.block;
    }
    return end > p->sinks ? end - p->sinks : 0;
}

enum { KEYS = 170 };

static problem self_attention(int causal, int64_t sinks) {
    problem s = one_head(KEYS, KEYS, 12, 9);
    s.p.batch = s.p.key_heads = 2;
    s.p.query_heads = 4;
    s.p.causal = causal;
    s.p.sinks = sinks;
    s.layout = ROWS_FIRST;
    s.pad = 3;
    return s;
}

static problem decode(int causal, int64_t sinks) {
    problem s = self_attention(causal, sinks);
    s.p.queries = 3;
    return s;
}

static problem more_queries_than_keys(int causal, int64_t sinks) {
    problem s = self_attention(causal, sinks);
    s.p.queries = KEYS + 50;
    return s;
}

static problem (*const shapes[])(int, int64_t) = {self_attention, decode, more_queries_than_keys};

static void all_near(void) {
    for (int i = 0; i < 3; i++)
        for (int causal = 0; causal < 2; causal++)
            for (int sinks = 0; sinks <= 21; sinks += 7) {
                icecore_near_far options = {.near_keys = KEYS, .block = 20, .cell_size = 8};
                near_far c = allocate(shapes[i](causal, sinks), options);
                check_at("shape %d, causal %d, sinks %d", i, causal, sinks);
                attend(&c);
                expect_attention(&c.s, 0);
                for (int64_t row = 0; row < c.s.lse_count; row++) {
                    EXPECT(c.report.near_count[row] == sealed_keys(&c, row % c.s.p.queries));
                    EXPECT(c.report.captured_mass[row] == (isinf(c.s.p.lse[row]) ? 0.0f : 1.0f));
                }
                release(&c);
            }
}

/* Masks that hide much, little, or runs of keys, with all cells open: exact; and with few: within bounds and without
 * harm. */
static void masks(void) {
    enum { QUERIES = KEYS, COUNT = 2 * 4 * QUERIES * KEYS };
    uint8_t *keep = malloc(COUNT);
    float *bias = malloc(COUNT * sizeof *bias);
    for (int pattern = 0; pattern < 3; pattern++) {
        uint64_t random = 5;
        for (int i = 0; i < COUNT; i++) {
            uint64_t bits = next_random(&random);
            const uint8_t kept[] = {bits % 2, bits % 60 != 0, i % KEYS < 100};
            keep[i] = kept[pattern];
            bias[i] = keep[i] ? 0.0f : -INFINITY;
            if (keep[i] && bits % 7 == 0) bias[i] = random_float(&random);
        }
        for (int broadcast = 0; broadcast < 16; broadcast++)
            for (int kind = ICECORE_MASK_BOOL; kind <= ICECORE_MASK_FLOAT32; kind++) {
                problem s = self_attention(broadcast & 1, 3);
                s.p.mask_kind = (icecore_mask_kind)kind;
                s.p.mask = kind == ICECORE_MASK_BOOL ? (const void *)keep : bias;
                s.p.mask_batch_stride = broadcast & 1 ? 0 : 4 * QUERIES * KEYS;
                s.p.mask_head_stride = broadcast & 2 ? 0 : QUERIES * KEYS;
                s.p.mask_row_stride = broadcast & 4 ? 0 : KEYS;
                s.p.mask_key_stride = broadcast & 8 ? 0 : 1;
                check_at("pattern %d, broadcast %d, kind %d", pattern, broadcast, kind);
                icecore_near_far options = {.near_keys = KEYS, .block = 20, .cell_size = 8};
                near_far all = allocate(s, options);
                attend(&all);
                expect_attention(&all.s, 0);
                release(&all);
                options.near_keys = 20;
                near_far few = allocate(s, options);
                attend(&few);
                for (int64_t i = 0; i < few.s.lse_count; i++) EXPECT(!isnan(few.s.p.lse[i]));
                release(&few);
            }
    }
    free(keep);
    free(bias);
}

/* By Jensen's inequality a cell's mean key holds at most its keys' mass, and the open cells hold at least near_keys
 * keys. */
static void budgets(void) {
    for (int causal = 0; causal < 2; causal++)
        for (int k = 1; k <= 100; k += 49) {
            icecore_near_far options = {.near_keys = k, .block = 16, .cell_size = 8};
            near_far c = allocate(self_attention(causal, 3), options);
            check_at("causal %d, k %d", causal, k);
            attend(&c);
            for (int64_t row = 0; row < c.s.lse_count; row++) {
                int64_t queries = c.s.p.queries, sealed = sealed_keys(&c, row % queries);
                EXPECT(c.report.near_count[row] >= (k < sealed ? k : sealed) && c.report.near_count[row] <= sealed);
                EXPECT((double)c.s.p.lse[row] <=
                       naive_lse(&c.s.p, row / queries / 4, row / queries % 4, row % queries) + 1e-4);
            }
            release(&c);
        }
}

/* Where all keys of a cell are the same, its mean stands for it exactly. */
static void equal_keys(void) {
    for (int causal = 0; causal < 2; causal++) {
        icecore_near_far options = {.near_keys = 1, .block = 16, .cell_size = 8};
        near_far c = allocate(self_attention(causal, 3), options);
        const icecore_attention *p = &c.s.p;
        for (int64_t b = 0; b < p->batch; b++)
            for (int64_t h = 0; h < p->key_heads; h++)
                for (int64_t j = 0; j < p->keys; j++)
                    for (int64_t t = 0; t < p->dim; t++)
                        element_set(&p->key, p->dtype, element_index(&p->key, b, h, j, t), 0.25f * (float)(t - h));
        attend(&c);
        expect_attention(&c.s, 0);
        release(&c);
    }
}

/* Weights sum to 1. */
static void equal_values(void) {
    for (int causal = 0; causal < 2; causal++) {
        icecore_near_far options = {.near_keys = 5, .block = 16, .cell_size = 8};
        near_far c = allocate(self_attention(causal, 0), options);
        const icecore_attention *p = &c.s.p;
        for (int64_t b = 0; b < p->batch; b++)
            for (int64_t h = 0; h < p->key_heads; h++)
                for (int64_t j = 0; j < p->keys; j++)
                    for (int64_t t = 0; t < p->value_dim; t++)
                        element_set(&p->value, p->dtype, element_index(&p->value, b, h, j, t), (float)(t + 1));
        attend(&c);
        for (int64_t b = 0; b < p->batch; b++)
            for (int64_t h = 0; h < p->query_heads; h++)
                for (int64_t i = 0; i < p->queries; i++)
                    for (int64_t t = 0; t < p->value_dim; t++) {
                        double found = element_get(&p->out, p->dtype, element_index(&p->out, b, h, i, t));
                        EXPECT(fabs(found - (double)(t + 1)) < 1e-5 * (double)(t + 1));
                    }
        release(&c);
    }
}

/* By a tolerance that random keys only keep where nearly all are opened, it is exact attention; by a loose one it
 * reports what it measured. */
static void tolerances(void) {
    for (int i = 0; i < 3; i++)
        for (int causal = 0; causal < 2; causal++)
            for (int variant = 0; variant < 4; variant++) {
                icecore_near_far options = {
                    .tolerance = variant ? 0.3f : 1e-7f, .block = 20, .cell_size = 4, .rounding = variant == 2};
                float error[8], standard_error[8], missed[4 * 2 * (KEYS + 50)], threshold[4] = {1, 2, 0.5f, 1e-3f};
                int32_t rows[8], summaries[4 * 2 * (KEYS + 50)];
                double seconds[3];
                if (variant == 3) options.head_threshold = threshold;
                near_far c = allocate(shapes[i](causal, 3), options);
                if (variant) {
                    c.report.error = error;
                    c.report.standard_error = standard_error;
                    c.report.error_rows = rows;
                    c.report.missed_bound = missed;
                    c.report.summaries = summaries;
                    c.report.seconds = seconds;
                }
                c.s.p.threads = 1 + variant % 2;
                check_at("shape %d, causal %d, variant %d", i, causal, variant);
                attend(&c);
                if (!variant) expect_attention(&c.s, 0);
                for (int64_t head = 0; variant && head < 8; head++)
                    EXPECT(rows[head] ? error[head] >= 0.0f && standard_error[head] >= 0.0f : isnan(error[head]));
                for (int64_t row = 0; variant && row < c.s.lse_count; row++)
                    EXPECT(missed[row] >= 0.0f && missed[row] <= 1.0f && summaries[row] >= 0);
                release(&c);
            }
}

/* The queries in pieces, each with the keys up to it, give what one call gives: the same cells are opened.  By moments
 * that are given: those of a piece are others. */
static void chunks(void) {
    float moments[2 * 12 * 12] = {0};
    for (int h = 0; h < 2; h++)
        for (int t = 0; t < 12; t++) moments[(h * 12 + t) * 12 + t] = (float)(1 + t);
    static const int64_t ends[] = {1, 2, 17, 60, 61, 64, 128, 150, KEYS};
    icecore_near_far options = {.near_keys = 9, .block = 16, .cell_size = 8, .moments = moments, .seed = 99};
    near_far whole = allocate(self_attention(1, 2), options);
    const icecore_attention *w = &whole.s.p;
    attend(&whole);
    for (int64_t i = 0, begin = 0; i < 9; begin = ends[i++]) {
        near_far part = allocate(self_attention(1, 2), options);
        icecore_attention *p = &part.s.p;
        float *lse = p->lse;
        p->queries = ends[i] - begin;
        p->keys = ends[i];
        p->query.data = (float *)p->query.data + begin * p->query.row_stride;
        p->out.data = (float *)p->out.data + begin * p->out.row_stride;
        check_at("queries %d to %d", (int)begin, (int)ends[i]);
        EXPECT(icecore_attend_near_far(p, &part.options, &part.report) == ICECORE_OK);
        for (int64_t head = 0; head < p->batch * p->query_heads; head++)
            for (int64_t q = 0; q < p->queries; q++) {
                int64_t at = head * p->queries + q, in_whole = head * w->queries + begin + q;
                int64_t row = element_index(&p->out, head / 4, head % 4, q, 0);
                int64_t row_in_whole = element_index(&w->out, head / 4, head % 4, begin + q, 0);
                EXPECT(part.report.near_count[at] == whole.report.near_count[in_whole]);
                EXPECT(fabsf(lse[at] - w->lse[in_whole]) < 1e-5f);
                for (int64_t t = 0; t < p->value_dim; t++) {
                    double wanted = element_get(&w->out, w->dtype, row_in_whole + t);
                    EXPECT(fabs(element_get(&p->out, p->dtype, row + t) - wanted) < 1e-5);
                }
            }
        p->query.data = (float *)p->query.data - begin * p->query.row_stride;
        p->out.data = (float *)p->out.data - begin * p->out.row_stride;
        release(&part);
    }
    release(&whole);
}

static void dtypes_and_dims(void) {
    static const int64_t dims[] = {1, 40, ICECORE_MAX_DIM};
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int i = 0; i < 3; i++) {
            problem s = one_head(60, 70, dims[i], dims[2 - i]);
            s.p.dtype = (icecore_dtype)dtype;
            s.p.causal = 1;
            s.pad = 2;
            icecore_near_far options = {.near_keys = 70, .block = 10, .cell_size = 4};
            near_far c = allocate(s, options);
            check_at("dtype %d, dim %d", dtype, (int)dims[i]);
            attend(&c);
            expect_attention(&c.s, 0);
            release(&c);
        }
}

/* Options far beyond the number of keys are as good as the number of keys. */
static void huge_options(void) {
    for (int i = 0; i < 3; i++)
        for (int causal = 0; causal < 2; causal++) {
            const int64_t huge = INT64_MAX;
            icecore_near_far options = {.near_keys = huge, .block = huge, .cell_size = huge};
            near_far c = allocate(shapes[i](causal, huge), options);
            check_at("shape %d, causal %d", i, causal);
            attend(&c);
            expect_attention(&c.s, 0);
            release(&c);
        }
}

static void empty(void) {
    for (int axis = 0; axis < 4; axis++)
        for (int causal = 0; causal < 2; causal++) {
            problem s = one_head(axis != 0, axis == 1 ? 0 : 4, 4, 4);
            s.p.batch = axis != 2;
            s.p.query_heads = axis != 3;
            s.p.causal = causal;
            near_far c = allocate(s, (icecore_near_far){.near_keys = 1, .block = 1, .cell_size = 1});
            check_at("axis %d, causal %d", axis, causal);
            EXPECT(icecore_attend_near_far(&c.s.p, &c.options, &c.report) == ICECORE_OK);
            if (axis == 1) expect_attention(&c.s, 0);
            release(&c);
        }
}

/* Over so many cosines. */
#define COSINES 20000

/* The largest over a grid of cosines, by the formula; in log2. */
static double expected_share(double lacking, double reach, double dim) {
    double largest = -INFINITY;
    for (int i = 0; i <= COSINES; i++) {
        const double c = (double)i / COSINES, share = fmin(1.0, exp2(c * reach - fmax(lacking, 0.0)));
        largest = fmax(largest, log2(share) - 0.5 * dim * c * c / log(2.0));
    }
    return largest;
}

static void expected_shares(void) {
    const float lacking[] = {-3.0f, 0.0f, 0.5f, 4.0f, 30.0f}, reaches[] = {0.0f, 1e-3f, 2.0f, 15.0f, 200.0f};
    const float dims[] = {1.0f, 8.0f, 64.0f, 512.0f};
    for (int l = 0; l < 5; l++)
        for (int r = 0; r < 5; r++)
            for (int d = 0; d < 4; d++) {
                check_at("lacking %g, reach %g, dim %g", lacking[l], reaches[r], dims[d]);
                const double found = ice_expected_share(lacking[l], reaches[r], dims[d]);
                EXPECT(fabs(found - expected_share(lacking[l], reaches[r], dims[d])) < 1e-2);
            }
}

void near_far_tests(void) {
    check_run("near/far: near_keys >= keys is exact attention", all_near);
    check_run("near/far: masks", masks);
    check_run("near/far: the budget is kept, and the far field is a lower bound", budgets);
    check_run("near/far: cells of equal keys are exact", equal_keys);
    check_run("near/far: equal values come out as they are", equal_values);
    check_run("near/far: tolerances", tolerances);
    check_run("near/far: chunks of queries give what one call gives", chunks);
    check_run("near/far: dtypes and dims", dtypes_and_dims);
    check_run("near/far: options of any size", huge_options);
    check_run("near/far: empty sizes", empty);
    check_run("near/far: the share of a single key is the largest over all cosines", expected_shares);
}
