/* Selectors by what must hold whatever they choose. */
#include <math.h>

#include "check.h"
#include "naive.h"

/* Trees of several sizes when causal, one otherwise, and keys behind them. */
enum { KEYS = 1600, QUERIES = 130 };

static problem some_rows(int causal) {
    problem s = one_head(QUERIES, KEYS, 12, 9);
    s.p.key_heads = 2;
    s.p.query_heads = 4;
    s.p.causal = causal;
    s.layout = ROWS_FIRST;
    s.pad = 3;
    return s;
}

static void top_k(void) {
    for (int causal = 0; causal < 2; causal++)
        for (int k = 1; k <= 40; k += 39) {
            problem s = some_rows(causal);
            int32_t near_count[4 * QUERIES];
            problem_allocate(&s);
            check_at("causal %d, k %d", causal, k);
            EXPECT(icecore_attend_pdci(&s.p, k, KEYS, 0, near_count) == ICECORE_OK);
            expect_attention(&s, k);
            for (int i = 0; i < 4 * QUERIES; i++) EXPECT(near_count[i] == k);
            EXPECT(icecore_attend_top_k(&s.p, k, near_count) == ICECORE_OK);
            expect_attention(&s, k);
            for (int i = 0; i < 4 * QUERIES; i++) EXPECT(near_count[i] == k);
            EXPECT(icecore_attend_sparq(&s.p, k, 12, k / 2, near_count) == ICECORE_OK);
            EXPECT(problem_gaps_are_clear(&s));
            for (int i = 0; i < 4 * QUERIES; i++) EXPECT(near_count[i] == k);
            problem_free(&s);
        }
}

/* Where all keys are chosen it is exact attention. */
static void all_chosen(void) {
    const icecore_vattention largest = {INT64_MAX, 3, 5, 0.1, 0.1, 0}, sampled = {1, 0, INT64_MAX / 2, 0.1, 0.1, 0};
    const icecore_retroinfer retrieved = {200, 3, 5, nextafter(1.0, 0.0), 0x1p-60, 0};
    for (int kind = 0; kind < 9; kind++)
        for (int causal = kind < 2 || kind == 3; causal < 2; causal++) {
            problem s = some_rows(causal);
            int32_t near_count[4 * QUERIES];
            problem_allocate(&s);
            check_at("kind %d, causal %d", kind, causal);
            if (kind == 0) EXPECT(icecore_attend_minference(&s.p, KEYS, 1, near_count) == ICECORE_OK);
            if (kind == 1) EXPECT(icecore_attend_minference(&s.p, 1, INT64_MAX, near_count) == ICECORE_OK);
            if (kind == 2) EXPECT(icecore_attend_block_sparse(&s.p, INT64_MAX, near_count) == ICECORE_OK);
            if (kind == 3) EXPECT(icecore_attend_xattention(&s.p, 8, nextafter(1.0, 0.0), near_count) == ICECORE_OK);
            if (kind == 4) EXPECT(icecore_attend_zeta(&s.p, INT64_MAX, 0, near_count) == ICECORE_OK);
            if (kind == 5) EXPECT(icecore_attend_vattention(&s.p, &largest, near_count) == ICECORE_OK);
            if (kind == 6) EXPECT(icecore_attend_vattention(&s.p, &sampled, near_count) == ICECORE_OK);
            if (kind == 7) EXPECT(icecore_attend_arkvale(&s.p, INT64_MAX, 32, near_count) == ICECORE_OK);
            if (kind == 8) EXPECT(icecore_attend_retroinfer(&s.p, &retrieved, near_count) == ICECORE_OK);
            expect_attention(&s, KEYS);
            for (int i = 0; i < 4 * QUERIES; i++)
                EXPECT(near_count[i] == (causal ? KEYS - QUERIES + i % QUERIES + 1 : KEYS));
            problem_free(&s);
        }
}

/* As many keys as asked for are found, and weights sum to 1. */
static void few_visited(void) {
    for (int causal = 0; causal < 2; causal++)
        for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++) {
            problem s = some_rows(causal);
            int32_t near_count[4 * QUERIES];
            s.p.dtype = (icecore_dtype)dtype;
            problem_allocate(&s);
            for (int64_t h = 0; h < 2; h++)
                for (int64_t j = 0; j < KEYS; j++)
                    for (int64_t t = 0; t < 9; t++)
                        element_set(&s.p.value, s.p.dtype, element_index(&s.p.value, 0, h, j, t), (float)(t + 1));
            check_at("causal %d, dtype %d", causal, dtype);
            EXPECT(icecore_attend_pdci(&s.p, 20, 70, 7, near_count) == ICECORE_OK);
            EXPECT(problem_gaps_are_clear(&s));
            for (int64_t row = 0; row < 4 * QUERIES; row++) {
                EXPECT(near_count[row] == 20);
                for (int64_t t = 0; t < 9; t++) {
                    int64_t place = element_index(&s.p.out, 0, row / QUERIES, row % QUERIES, t);
                    EXPECT(fabs(element_get(&s.p.out, s.p.dtype, place) - (double)(t + 1)) < 0.01 * (double)(t + 1));
                }
            }
            problem_free(&s);
        }
}

void selector_tests(void) {
    check_run("selectors: the exact top k, and pdci that visits all keys", top_k);
    check_run("selectors: where all keys are chosen it is exact attention", all_chosen);
    check_run("selectors: pdci finds as many keys as it is asked for", few_visited);
}
