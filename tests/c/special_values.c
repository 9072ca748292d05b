/* NaN, infinities and extreme magnitudes: they propagate where they are visible, stay out where they are not, and stop
 * nothing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "naive.h"

static const float specials[] = {NAN, INFINITY, -INFINITY};

static problem small(icecore_dtype dtype, int64_t queries) {
    problem s = one_head(queries, 140, 6, 5);
    s.p.dtype = dtype;
    s.p.query_heads = 2;
    s.p.causal = 1;
    s.pad = 2;
    return s;
}

/* The core agrees with the formula on which results are NaN, which infinite and which untouched. */
static void one_at_a_time(void) {
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int queries = 3; queries <= 60; queries += 57)
            for (int i = 0; i < 3; i++)
                for (int array = 0; array < 3; array++) {
                    problem s = small((icecore_dtype)dtype, queries);
                    problem_allocate(&s);
                    const icecore_tensor *const arrays[] = {&s.p.query, &s.p.key, &s.p.value}, *tensor = arrays[array];
                    int64_t row = array == 0 ? queries / 2 : 120;
                    element_set(tensor, s.p.dtype, element_index(tensor, 0, 0, row, 4), specials[i]);
                    check_at("dtype %d, queries %d, %g in array %d", dtype, queries, (double)specials[i], array);
                    EXPECT(icecore_attend_exact(&s.p) == ICECORE_OK);
                    expect_attention(&s, 0);
                    problem_free(&s);
                }
}

/* A key that is not visible contributes nothing, whatever it holds. */
static void hidden(void) {
    uint8_t keep[140];
    float bias[140];
    for (int i = 0; i < 140; i++) keep[i] = i % 3 != 0, bias[i] = keep[i] ? 0.5f : -INFINITY;
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int queries = 3; queries <= 60; queries += 57)
            for (int kind = ICECORE_MASK_NONE; kind <= ICECORE_MASK_FLOAT32; kind++)
                for (int i = 0; i < 3; i++) {
                    problem s = small((icecore_dtype)dtype, queries);
                    s.p.causal = kind == ICECORE_MASK_NONE;
                    s.p.window_left = s.p.window_right = kind == ICECORE_MASK_NONE ? 30 : -1;
                    s.p.sinks = 2;
                    s.p.mask_kind = (icecore_mask_kind)kind;
                    s.p.mask = kind == ICECORE_MASK_BOOL ? (const void *)keep : bias;
                    s.p.mask_key_stride = 1;
                    problem_allocate(&s);
                    int64_t first_position = s.p.keys - queries;
                    for (int64_t j = 0; j < s.p.keys; j++) {
                        int sometimes_visible = kind == ICECORE_MASK_NONE ? j < 2 || j > first_position - 30 : keep[j];
                        for (int64_t t = 0; t < 5 && !sometimes_visible; t++) {
                            element_set(&s.p.key, s.p.dtype, element_index(&s.p.key, 0, 0, j, t), specials[i]);
                            element_set(&s.p.value, s.p.dtype, element_index(&s.p.value, 0, 0, j, t),
                                        specials[(i + j) % 3]);
                        }
                    }
                    check_at("dtype %d, queries %d, mask %d, %g", dtype, queries, kind, (double)specials[i]);
                    EXPECT(icecore_attend_exact(&s.p) == ICECORE_OK);
                    expect_attention(&s, 0);
                    int64_t last = element_index(&s.p.out, 0, 1, queries - 1, 0);
                    EXPECT(isfinite(element_get(&s.p.out, s.p.dtype, last)));
                    problem_free(&s);
                }
}

/* Values over the whole range of float32, finite or not. */
static void fill_wildly(problem *s, uint64_t *state, int among) {
    icecore_tensor *tensors[] = {&s->p.query, &s->p.key, &s->p.value};
    for (int i = 0; i < 3; i++) {
        int64_t rows = i == 0 ? s->p.queries : s->p.keys, width = i == 2 ? s->p.value_dim : s->p.dim;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t t = 0; t < width; t++) {
                uint64_t bits = next_random(state);
                if (bits % (uint64_t)among) continue;
                uint32_t any = (uint32_t)(bits >> 32);
                float value;
                memcpy(&value, &any, sizeof value);
                if ((bits >> 8) % 4 == 0) value = specials[(bits >> 16) % 3];
                ((float *)tensors[i]->data)[element_index(tensors[i], 0, 0, r, t)] = value;
            }
    }
}

static void anything_goes(void) {
    uint64_t state = 61;
    for (int among = 1; among <= 1000; among *= 10)
        for (int causal = 0; causal < 2; causal++)
            for (int kind = 0; kind < 12 + 2 * causal; kind++) {
                problem s = small(ICECORE_FLOAT32, 140);
                int32_t near_count[280];
                float captured_mass[280];
                const icecore_near_far options = {.near_keys = 9, .block = 12, .cell_size = 4};
                const icecore_vattention sampled = {9, 2, 3, 0.2, 0.2, 0};
                const icecore_retroinfer zones = {40, 2, 3, 0.2, 0.3, 0};
                const icecore_report report = {.near_count = near_count, .captured_mass = captured_mass};
                s.p.query_heads = s.p.key_heads = 1;
                s.p.causal = causal;
                s.p.sinks = 2;
                problem_allocate(&s);
                fill_wildly(&s, &state, among);
                check_at("one in %d, causal %d, kind %d", among, causal, kind);
                if (kind == 0) EXPECT(icecore_attend_exact(&s.p) == ICECORE_OK);
                if (kind == 1) EXPECT(icecore_attend_near_far(&s.p, &options, &report) == ICECORE_OK);
                if (kind == 2) EXPECT(icecore_attend_pages(&s.p, 9, near_count) == ICECORE_OK);
                if (kind == 3) EXPECT(icecore_attend_pdci(&s.p, 9, 30, 0, near_count) == ICECORE_OK);
                if (kind == 4) EXPECT(icecore_attend_top_k(&s.p, 9, near_count) == ICECORE_OK);
                if (kind == 5) EXPECT(icecore_attend_block_sparse(&s.p, 9, near_count) == ICECORE_OK);
                if (kind == 6) EXPECT(icecore_attend_sparq(&s.p, 9, 2, 3, near_count) == ICECORE_OK);
                if (kind == 7) EXPECT(icecore_attend_magicpig(&s.p, 3, 5, 2, 4, 0, near_count) == ICECORE_OK);
                if (kind == 8) EXPECT(icecore_attend_zeta(&s.p, 9, 0, near_count) == ICECORE_OK);
                if (kind == 9) EXPECT(icecore_attend_vattention(&s.p, &sampled, near_count) == ICECORE_OK);
                if (kind == 10) EXPECT(icecore_attend_arkvale(&s.p, 30, 9, near_count) == ICECORE_OK);
                if (kind == 11) EXPECT(icecore_attend_retroinfer(&s.p, &zones, near_count) == ICECORE_OK);
                if (kind == 12) EXPECT(icecore_attend_minference(&s.p, 9, 9, near_count) == ICECORE_OK);
                if (kind == 13) EXPECT(icecore_attend_xattention(&s.p, 8, 0.5, near_count) == ICECORE_OK);
                for (int i = 0; i < 140 && kind; i++) EXPECT(near_count[i] >= 0 && near_count[i] <= 140);
                for (int i = 0; i < 140 && kind == 1; i++) EXPECT(captured_mass[i] >= 0.0f && captured_mass[i] <= 1.0f);
                EXPECT(problem_gaps_are_clear(&s));
                problem_free(&s);
            }
}

/* A NaN that a query sees only through a cell shows in its result. */
static void nan_in_a_cell(void) {
    for (int array = 0; array < 2; array++) {
        problem s = small(ICECORE_FLOAT32, 140);
        const icecore_near_far options = {.near_keys = 4, .block = 12, .cell_size = 4};
        problem_allocate(&s);
        const icecore_tensor *tensor = array ? &s.p.value : &s.p.key;
        ((float *)tensor->data)[element_index(tensor, 0, 0, 17, 2)] = NAN;
        check_at("array %d", array);
        EXPECT(icecore_attend_near_far(&s.p, &options, NULL) == ICECORE_OK);
        int64_t last = element_index(&s.p.out, 0, 0, 139, 2), before = element_index(&s.p.out, 0, 0, 16, 2);
        EXPECT(isnan(element_get(&s.p.out, s.p.dtype, last)));
        EXPECT(isfinite(element_get(&s.p.out, s.p.dtype, before)));
        problem_free(&s);
    }
}

static void segments(void) {
    uint64_t state = 62;
    for (int among = 1; among <= 1000; among *= 10) {
        problem s = small(ICECORE_FLOAT32, 1);
        problem_allocate(&s);
        fill_wildly(&s, &state, among);
        icecore_segment *segment = NULL;
        check_at("one in %d", among);
        icecore_segment_source source = segment_source(&s);
        source.cell_size = 4;
        source.seed = 1;
        EXPECT(icecore_segment_build(&source, &segment) == ICECORE_OK);
        if (segment) {
            icecore_segment_view v = icecore_segment_get(segment);
            char seen[140] = {0};
            const int64_t *offset = v.cell.offset;
            EXPECT(offset[0] == 0 && offset[v.cell.count] == 140);
            for (int64_t c = 0; c < v.cell.count; c++) EXPECT(offset[c] < offset[c + 1]);
            for (int j = 0; j < 140; j++) EXPECT(v.order[j] >= 0 && v.order[j] < 140 && !seen[v.order[j]]++);
        }
        icecore_segment_free(segment);
        problem_free(&s);
    }
}

void special_value_tests(void) {
    check_run("special values: they propagate as in the formula", one_at_a_time);
    check_run("special values: hidden ones stay out", hidden);
    check_run("special values: any bits, no crash, no hang", anything_goes);
    check_run("special values: a NaN in a cell shows", nan_in_a_cell);
    check_run("special values: segments of any bits are valid", segments);
}
