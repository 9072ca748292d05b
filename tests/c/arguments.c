/* Arguments outside their range are refused before anything is written. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "tensors.h"

static problem valid(void) {
    problem s = one_head(20, 20, 4, 4);
    s.p.query_heads = 2;
    problem_allocate(&s);
    return s;
}

static const icecore_near_far valid_options = {.near_keys = 2, .block = 4, .cell_size = 2};

/* Both functions refuse the problem with `change` applied. */
static void expect_refused(const char *what, void (*change)(icecore_attention *p)) {
    problem s = valid();
    icecore_attention p = s.p;
    change(&p);
    check_at("%s", what);
    EXPECT(icecore_attend_exact(&p) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_near_far(&p, &valid_options, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(problem_is_clear(&s));
    problem_free(&s);
}

#define REFUSED(name, change) \
    static void name(icecore_attention *p) { change; }
REFUSED(negative_batch, p->batch = -1)
REFUSED(negative_query_heads, p->query_heads = -2)
REFUSED(negative_key_heads, p->key_heads = -1)
REFUSED(negative_queries, p->queries = -1)
REFUSED(negative_keys, p->keys = -1)
REFUSED(no_key_heads, p->key_heads = 0)
REFUSED(uneven_heads, p->key_heads = 2; p->query_heads = 3)
REFUSED(zero_dim, p->dim = 0)
REFUSED(large_dim, p->dim = ICECORE_MAX_DIM + 1)
REFUSED(zero_value_dim, p->value_dim = 0)
REFUSED(large_value_dim, p->value_dim = ICECORE_MAX_DIM + 1)
REFUSED(negative_left_window, p->window_left = -2)
REFUSED(negative_right_window, p->window_right = -2)
REFUSED(negative_sinks, p->sinks = -1)
REFUSED(negative_softcap, p->softcap = -1.0f)
REFUSED(tiny_softcap, p->softcap = 1e-31f)
REFUSED(infinite_softcap, p->softcap = INFINITY)
REFUSED(nan_softcap, p->softcap = NAN)
static const float bad_logits[2][2] = {{0.0f, NAN}, {-2e30f, 0.0f}};
REFUSED(nan_sink_logit, p->sink_logits = bad_logits[0])
REFUSED(large_sink_logit, p->sink_logits = bad_logits[1])
static const float bad_slopes[3][2] = {{0.5f, -0.25f}, {NAN, 0.5f}, {0.5f, 2e6f}};
REFUSED(negative_slope, p->alibi_slopes = bad_slopes[0])
REFUSED(nan_slope, p->alibi_slopes = bad_slopes[1])
REFUSED(large_slope, p->alibi_slopes = bad_slopes[2])
REFUSED(no_query, p->query.data = NULL)
REFUSED(no_key, p->key.data = NULL)
REFUSED(no_value, p->value.data = NULL)
REFUSED(no_out, p->out.data = NULL)
REFUSED(no_mask, p->mask_kind = ICECORE_MASK_BOOL)
REFUSED(unknown_dtype, p->dtype = (icecore_dtype)7)
REFUSED(unknown_mask_kind, p->mask_kind = (icecore_mask_kind)7; p->mask = p->key.data)

static void problems(void) {
    expect_refused("a negative batch", negative_batch);
    expect_refused("negative query heads", negative_query_heads);
    expect_refused("negative key heads", negative_key_heads);
    expect_refused("negative queries", negative_queries);
    expect_refused("negative keys", negative_keys);
    expect_refused("no key heads", no_key_heads);
    expect_refused("query heads that key heads do not divide", uneven_heads);
    expect_refused("dim 0", zero_dim);
    expect_refused("a large dim", large_dim);
    expect_refused("value_dim 0", zero_value_dim);
    expect_refused("a large value_dim", large_value_dim);
    expect_refused("window_left -2", negative_left_window);
    expect_refused("window_right -2", negative_right_window);
    expect_refused("negative sinks", negative_sinks);
    expect_refused("a negative soft cap", negative_softcap);
    expect_refused("a soft cap below 1e-30", tiny_softcap);
    expect_refused("an infinite soft cap", infinite_softcap);
    expect_refused("a NaN as soft cap", nan_softcap);
    expect_refused("a NaN among sink logits", nan_sink_logit);
    expect_refused("a sink logit below -1e30", large_sink_logit);
    expect_refused("a negative slope of ALiBi", negative_slope);
    expect_refused("a NaN among ALiBi's slopes", nan_slope);
    expect_refused("a slope of ALiBi above 1e6", large_slope);
    expect_refused("no query array", no_query);
    expect_refused("no key array", no_key);
    expect_refused("no value array", no_value);
    expect_refused("no output array", no_out);
    expect_refused("a kind of mask without a mask", no_mask);
    expect_refused("an unknown dtype", unknown_dtype);
    expect_refused("an unknown kind of mask", unknown_mask_kind);
}

static void near_far_options(void) {
    static const float zero[64] = {0}, infinite[64] = {INFINITY};
    static const int64_t empty[1] = {0};
    static const icecore_near_far wrong[] = {
        {.near_keys = 0, .block = 4, .cell_size = 2},
        {.near_keys = 1, .block = 4, .cell_size = 0},
        {.near_keys = 1, .block = 0, .cell_size = 2},
        {.near_keys = 1, .block = 4, .cell_size = 2, .head_tolerance = zero},
        {.near_keys = 1, .block = 4, .cell_size = 2, .head_threshold = zero},
        {.near_keys = 1, .block = 4, .cell_size = 2, .moments = infinite},
        {.near_keys = 1, .block = 4, .cell_size = 2, .head_cell_size = empty},
    };
    problem s = valid();
    s.p.causal = 1;
    for (int i = 0; i < 7; i++) {
        check_at("options %d", i);
        EXPECT(icecore_attend_near_far(&s.p, &wrong[i], NULL) == ICECORE_ERROR_VALUE);
    }
    icecore_attention windowed = s.p;
    windowed.window_left = 5;
    EXPECT(icecore_attend_near_far(&windowed, &valid_options, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_pages(&windowed, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_pages(&s.p, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_top_k(&windowed, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_top_k(&s.p, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_block_sparse(&windowed, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_block_sparse(&s.p, 0, NULL) == ICECORE_ERROR_VALUE);
    const int64_t pair[] = {0, 1};
    icecore_attention ranged = s.p, causal = s.p;
    ranged.ranges = pair;
    EXPECT(icecore_attend_pages(&ranged, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_top_k(&ranged, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_pdci(&ranged, 1, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    causal.causal = 1;
    EXPECT(icecore_attend_minference(&causal, 0, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_minference(&causal, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    causal.window_left = 5;
    EXPECT(icecore_attend_minference(&causal, 1, 1, NULL) == ICECORE_ERROR_VALUE);
    causal.window_left = -1;
    causal.causal = 0;
    EXPECT(icecore_attend_minference(&causal, 1, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_xattention(&causal, 8, 0.9, NULL) == ICECORE_ERROR_VALUE);
    causal.causal = 1;
    EXPECT(icecore_attend_xattention(&causal, 5, 0.9, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_xattention(&causal, 8, 1.0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_xattention(&causal, 8, (double)NAN, NULL) == ICECORE_ERROR_VALUE);
    causal.window_left = 5;
    EXPECT(icecore_attend_xattention(&causal, 8, 0.9, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_arkvale(&windowed, 1, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_arkvale(&s.p, 0, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_arkvale(&s.p, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    const icecore_retroinfer unfit_zones[] = {
        {0, 1, 1, 0.1, 0.1, 0}, {1, -1, 1, 0.1, 0.1, 0}, {1, 1, -1, 0.1, 0.1, 0},        {1, 1, 1, 0.0, 0.1, 0},
        {1, 1, 1, 0.1, 0.0, 0}, {1, 1, 1, 0.6, 0.5, 0},  {1, 1, 1, (double)NAN, 0.1, 0}, {1, 1, 1, 0.1, (double)NAN, 0},
    };
    const icecore_retroinfer zones = {1, 1, 1, 0.1, 0.1, 0};
    for (int i = 0; i < 8; i++) EXPECT(icecore_attend_retroinfer(&s.p, &unfit_zones[i], NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_retroinfer(&windowed, &zones, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_zeta(&windowed, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_zeta(&s.p, 0, 0, NULL) == ICECORE_ERROR_VALUE);
    const icecore_vattention unfit[] = {
        {0, 1, 1, 0.1, 0.1, 0}, {1, -1, 1, 0.1, 0.1, 0},        {1, 1, -1, 0.1, 0.1, 0},
        {1, 1, 1, 0.0, 0.1, 0}, {1, 1, 1, (double)NAN, 0.1, 0}, {1, 1, 1, 0.1, 1.0, 0},
    };
    const icecore_vattention fit = {1, 1, 1, 0.1, 0.1, 0};
    for (int i = 0; i < 6; i++) EXPECT(icecore_attend_vattention(&s.p, &unfit[i], NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_vattention(&windowed, &fit, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_pdci(&windowed, 1, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_pdci(&s.p, 0, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_pdci(&s.p, 3, 2, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_sparq(&windowed, 1, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_sparq(&s.p, 0, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_sparq(&s.p, 1, 0, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_sparq(&s.p, 1, 1, -1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_sparq(&s.p, 1, 1, 2, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_magicpig(&windowed, 2, 2, 0, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_magicpig(&s.p, 0, 2, 0, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_magicpig(&s.p, 17, 2, 0, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_magicpig(&s.p, 2, 1, 0, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_magicpig(&s.p, 2, 4097, 0, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_magicpig(&s.p, 2, 2, -1, 1, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_magicpig(&s.p, 2, 2, 0, 0, 0, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(problem_is_clear(&s));
    problem_free(&s);
}

/* ALiBi's slopes by any path that cannot have them in its choice. */
static void alibi(void) {
    static const float slopes[] = {0.5f, 0.25f};
    const icecore_indices none = {.count = 0};
    problem s = valid();
    int64_t place;
    s.p.alibi_slopes = slopes;
    EXPECT(icecore_attend_near_far(&s.p, &valid_options, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&s.p, &none, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_top_k(&s.p, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_block_sparse(&s.p, 1, NULL) == ICECORE_ERROR_VALUE);
    EXPECT(problem_is_clear(&s));
    problem_free(&s);
}

static void segments(void) {
    const float rows[8] = {0};
    const icecore_segment_source valid = {.keys = rows,
                                          .key_stride = 2,
                                          .values = rows,
                                          .value_stride = 2,
                                          .count = 2,
                                          .dim = 2,
                                          .value_dim = 2,
                                          .cell_size = 1};
    static const struct {
        int dtype, no_keys;
        int64_t count, dim, value_dim, cell_size;
    } wrong[] = {
        {0, 1, 2, 2, 2, 1},
        {0, 0, 0, 2, 2, 1},
        {0, 0, -1, 2, 2, 1},
        {0, 0, (int64_t)INT32_MAX + 1, 2, 2, 1},
        {0, 0, 2, 0, 2, 1},
        {0, 0, 2, ICECORE_MAX_DIM + 1, 2, 1},
        {0, 0, 2, 2, -1, 1},
        {0, 0, 2, 2, 0, 1},
        {0, 0, 2, 2, ICECORE_MAX_DIM + 1, 1},
        {0, 0, 2, 2, 2, 0},
        {7, 0, 2, 2, 2, 1},
    };
    for (int i = 0; i < (int)(sizeof wrong / sizeof *wrong); i++) {
        icecore_segment *segment = NULL;
        check_at("arguments %d", i);
        icecore_segment_source source = valid;
        source.dtype = (icecore_dtype)wrong[i].dtype;
        if (wrong[i].no_keys) source.keys = NULL;
        source.count = wrong[i].count;
        source.dim = wrong[i].dim;
        source.value_dim = wrong[i].value_dim;
        source.cell_size = wrong[i].cell_size;
        EXPECT(icecore_segment_build(&source, &segment) == ICECORE_ERROR_VALUE);
        EXPECT(segment == NULL);
        icecore_segment_free(segment);
    }
    const float not_finite[2][4] = {{1, NAN, NAN, 1}, {INFINITY, 0, 0, 1}};
    for (int i = 0; i < 2; i++) {
        icecore_segment *segment = NULL;
        check_at("moments %d", i);
        icecore_segment_source source = valid;
        source.moments = not_finite[i];
        EXPECT(icecore_segment_build(&source, &segment) == ICECORE_ERROR_VALUE);
        EXPECT(segment == NULL);
        icecore_segment_free(segment);
    }
}

void argument_tests(void) {
    check_run("arguments: problems that cannot be", problems);
    check_run("arguments: near/far options that cannot be", near_far_options);
    check_run("arguments: ALiBi's slopes", alibi);
    check_run("arguments: segments that cannot be", segments);
}
