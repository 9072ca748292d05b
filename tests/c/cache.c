/* The cache by what must hold whatever the cells are: with all of them open it is exact attention. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "check.h"
#include "naive.h"

enum { TOKENS = 150, HEADS = 2, GROUP = 3, DIM = 12, VALUE_DIM = 9 };

static icecore_cache_options options(icecore_dtype dtype, int64_t block, int64_t sinks, int64_t near_keys) {
    return (icecore_cache_options){.heads = HEADS,
                                   .dim = DIM,
                                   .value_dim = VALUE_DIM,
                                   .dtype = dtype,
                                   .near_keys = near_keys,
                                   .block = block,
                                   .sinks = sinks,
                                   .cell_size = 4};
}

static icecore_cache *create_of(icecore_dtype dtype, int64_t block, int64_t sinks, int64_t near_keys) {
    const icecore_cache_options o = options(dtype, block, sinks, near_keys);
    icecore_cache *cache = NULL;
    EXPECT(icecore_cache_create(&o, &cache) == ICECORE_OK);
    return cache;
}

static icecore_cache *create(int64_t block, int64_t sinks, int64_t near_keys) {
    return create_of(ICECORE_FLOAT32, block, sinks, near_keys);
}

static problem all_tokens(void) {
    problem s = one_head(TOKENS, TOKENS, DIM, VALUE_DIM);
    s.p.query_heads = HEADS * GROUP;
    s.p.key_heads = HEADS;
    s.p.causal = 1;
    s.pad = 3;
    problem_allocate(&s);
    return s;
}

static icecore_tensor from_row(icecore_tensor t, int64_t row) {
    t.data = (float *)t.data + row * t.row_stride;
    return t;
}

static icecore_status append_and_attend(icecore_cache *cache, const problem *s, int64_t first, int64_t end,
                                        float *lse) {
    icecore_attention p = s->p;
    icecore_status status = icecore_cache_append(cache, p.dtype, from_row(p.key, first), from_row(p.value, first),
                                                 (icecore_tensor){0}, 0, end - first);
    if (status != ICECORE_OK) return status;
    p.query = from_row(p.query, first);
    p.out = from_row(p.out, first);
    p.queries = end - first;
    p.lse = lse;
    return icecore_cache_attend(&cache, 1, NULL, &p, NULL, NULL);
}

static icecore_cache_state state_of(icecore_cache *cache) {
    icecore_cache_state state = {0};
    EXPECT(icecore_cache_get_state(cache, &state) == ICECORE_OK);
    return state;
}

/* Appends tokens first .. end - 1 and attends their queries. */
static void go_on(icecore_cache *cache, const problem *s, int64_t first, int64_t end) {
    const icecore_attention p = s->p;
    float lse[HEADS * GROUP * TOKENS];
    EXPECT(append_and_attend(cache, s, first, end, lse) == ICECORE_OK);
    for (int64_t h = 0; h < p.query_heads; h++)
        memcpy(s->p.lse + h * TOKENS + first, lse + h * (end - first), (size_t)(end - first) * sizeof *lse);
    EXPECT(is_valid_cache(cache));
}

static void all_near(void) {
    for (int64_t block = 1; block <= 64; block *= 4)
        for (int64_t sinks = 0; sinks <= 20; sinks += 10)
            for (int64_t chunk = 1; chunk <= TOKENS; chunk = chunk * 5 + 2) {
                check_at("block %d, sinks %d, chunk %d", (int)block, (int)sinks, (int)chunk);
                problem s = all_tokens();
                icecore_cache *cache = create(block, sinks, TOKENS);
                for (int64_t first = 0; first < TOKENS; first += chunk)
                    go_on(cache, &s, first, first + chunk < TOKENS ? first + chunk : TOKENS);
                expect_attention(&s, 0);
                icecore_cache_free(cache);
                problem_free(&s);
            }
}

/* Numbers that codes hold, of rows that 127 sixteenths are the largest of.  8 bits: sixteenths; 4 bits: one number of
 * 16 is not 0, and all of its group's codes are 7 or -7. */
static void make_representable(const icecore_tensor *t, int64_t width, icecore_dtype dtype) {
    for (int64_t h = 0; h < HEADS; h++)
        for (int64_t j = 0; j < TOKENS; j++) {
            float *row = (float *)t->data + h * t->head_stride + j * t->row_stride;
            for (int64_t i = 0; i < width; i++) {
                const float sixteenths = i ? fmaxf(-127.0f, fminf(127.0f, rintf(16.0f * row[i]))) : 127.0f;
                if (dtype == ICECORE_INT8) row[i] = sixteenths / 16.0f;
                else row[i] = i % 16 == j % 16 ? 7.0f * rintf(row[i] * 4.0f) / 16.0f : 0.0f;
            }
        }
}

/* On instruction sets that do not multiply bfloat16: those round queries. */
static void codes_hold_them(icecore_dtype dtype) {
    if (!strcmp(icecore_isa(), "avx512_bf16") || !strcmp(icecore_isa(), "amx")) return;
    for (int64_t chunk = 1; chunk <= TOKENS; chunk = chunk * 5 + 2) {
        check_at("chunk %d", (int)chunk);
        problem s = all_tokens();
        make_representable(&s.p.key, DIM, dtype);
        make_representable(&s.p.value, VALUE_DIM, dtype);
        icecore_cache *cache = create_of(dtype, 8, 3, TOKENS);
        for (int64_t first = 0; first < TOKENS; first += chunk)
            go_on(cache, &s, first, first + chunk < TOKENS ? first + chunk : TOKENS);
        EXPECT(icecore_cache_truncate(cache, 70, 1) == ICECORE_OK && is_valid_cache(cache));
        for (int64_t first = 70; first < TOKENS; first++) go_on(cache, &s, first, first + 1);
        expect_attention(&s, 0);
        icecore_cache_free(cache);
        problem_free(&s);
    }
}

static void int8_holds_them(void) { codes_hold_them(ICECORE_INT8); }
static void int4_holds_them(void) { codes_hold_them(ICECORE_INT4); }

static void forks_and_truncation(void) {
    problem s = all_tokens();
    icecore_cache *cache = create(8, 3, TOKENS);
    for (int64_t first = 0; first < 90; first++) go_on(cache, &s, first, first + 1);
    icecore_cache *fork = NULL;
    EXPECT(icecore_cache_fork(cache, &fork) == ICECORE_OK);
    go_on(fork, &s, 90, 120); /* other rows than the first cache's, which stays where it is */
    for (int64_t length = 88; length >= 0; length -= 11) {
        check_at("length %d", (int)length);
        EXPECT(icecore_cache_truncate(fork, length, 1) == ICECORE_OK);
        EXPECT(state_of(fork).length == length && is_valid_cache(fork));
        if (length % 2) go_on(fork, &s, length, length + 20 < TOKENS ? length + 20 : TOKENS);
    }
    EXPECT(icecore_cache_truncate(fork, state_of(fork).length + 1, 1) == ICECORE_ERROR_VALUE);
    int64_t evicted = 0;
    icecore_cache_free(fork);
    go_on(cache, &s, 90, TOKENS);
    expect_attention(&s, 0);
    EXPECT(icecore_cache_evict(cache, 130, &evicted) == ICECORE_OK && evicted == 128 && is_valid_cache(cache));
    EXPECT(icecore_cache_truncate(cache, 50, 1) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_cache_truncate(cache, 2, 1) == ICECORE_OK && is_valid_cache(cache));
    icecore_cache_free(cache);
    problem_free(&s);
}

/* Queries come with their tokens or with calls of attend; a cache made of either attends by tolerance, and so do its
 * forks. */
/* Caches that attend together, some without queries: all bits are those of each alone, for one thread and two. */
static void several_at_once(void) {
    enum { CACHES = 4, ROWS = 20 };
    const int64_t tokens[CACHES] = {90, 3, 0, 61};
    const icecore_rows rows[CACHES] = {{0, ROWS}, {17, 3}, {20, 0}, {5, 1}};
    problem s = all_tokens();
    for (int threads = 1; threads <= 2; threads++) {
        icecore_cache *together[CACHES], *alone[CACHES];
        float out[CACHES][HEADS * GROUP][ROWS][VALUE_DIM] = {{{{0}}}}, lse[HEADS * GROUP * (ROWS + 3 + 1)],
                                  own[HEADS * GROUP][ROWS][VALUE_DIM], own_lse[HEADS * GROUP * ROWS];
        icecore_attention p = s.p;
        p.queries = ROWS;
        p.query.batch_stride = 0;
        p.out = (icecore_tensor){out, HEADS * GROUP * ROWS * VALUE_DIM, ROWS * VALUE_DIM, VALUE_DIM};
        p.lse = lse;
        p.threads = threads;
        for (int i = 0; i < CACHES; i++) {
            together[i] = create(8, 3, 4);
            if (tokens[i]) go_on(together[i], &s, 0, tokens[i] - 1), go_on(together[i], &s, tokens[i] - 1, tokens[i]);
            EXPECT(icecore_cache_fork(together[i], &alone[i]) == ICECORE_OK);
        }
        EXPECT(icecore_cache_attend(together, CACHES, NULL, &p, NULL, NULL) == ICECORE_ERROR_VALUE); /* too many rows */
        icecore_rows behind[CACHES] = {{0, 1}, {ROWS, 1}};
        EXPECT(icecore_cache_attend(together, CACHES, behind, &p, NULL, NULL) == ICECORE_ERROR_VALUE);
        EXPECT(icecore_cache_attend(together, 0, rows, &p, NULL, NULL) == ICECORE_ERROR_VALUE);
        icecore_cache *twice[2] = {together[0], together[0]};
        const icecore_rows last[2] = {{0, 1}, {1, 1}};
        EXPECT(icecore_cache_attend(twice, 2, last, &p, NULL, NULL) == ICECORE_ERROR_BUSY);
        icecore_rows few[CACHES] = {{0, 9}, {17, 3}, {20, 0}, {5, 1}};
        EXPECT(icecore_cache_attend(together, CACHES, few, &p, NULL, NULL) == ICECORE_OK);
        const float *next = lse;
        for (int i = 0; i < CACHES; i++) {
            check_at("%d threads, cache %d", threads, i);
            icecore_attention one = p;
            one.query = from_row(p.query, few[i].first);
            one.queries = few[i].count;
            one.out = (icecore_tensor){own, 0, ROWS * VALUE_DIM, VALUE_DIM};
            one.lse = own_lse;
            EXPECT(icecore_cache_attend(&alone[i], 1, NULL, &one, NULL, NULL) == ICECORE_OK);
            for (int64_t h = 0; h < HEADS * GROUP; h++)
                EXPECT(!memcmp(out[i][h][few[i].first], own[h][0], (size_t)one.queries * sizeof own[h][0]));
            EXPECT(!memcmp(next, own_lse, (size_t)(HEADS * GROUP * one.queries) * sizeof *lse));
            next += HEADS * GROUP * one.queries;
            EXPECT(is_valid_cache(together[i]));
        }
        for (int i = 0; i < CACHES; i++) {
            icecore_cache_free(together[i]);
            icecore_cache_free(alone[i]);
        }
    }
    problem_free(&s);
}

static void queries_of_tokens(void) {
    for (int appended = 0; appended < 2; appended++) {
        problem s = all_tokens();
        icecore_cache_options o = options(ICECORE_FLOAT32, 16, 3, 0);
        icecore_cache *cache = NULL, *fork = NULL;
        o.tolerance = 1e-7f;
        check_at("appended %d", appended);
        EXPECT(icecore_cache_create(&o, &cache) == ICECORE_OK);
        if (appended) {
            const icecore_attention p = s.p;
            EXPECT(icecore_cache_append(cache, p.dtype, p.key, p.value, p.query, HEADS + 1, 100) ==
                   ICECORE_ERROR_VALUE);
            EXPECT(icecore_cache_append(cache, p.dtype, p.key, p.value, p.query, HEADS * GROUP, 100) == ICECORE_OK);
            EXPECT(is_valid_cache(cache));
        } else {
            go_on(cache, &s, 0, 100);
        }
        EXPECT(icecore_cache_fork(cache, &fork) == ICECORE_OK);
        for (int64_t first = 100; first < TOKENS; first++) go_on(cache, &s, first, first + 1);
        for (int64_t first = 100; first < TOKENS; first += 25) go_on(fork, &s, first, first + 25);
        if (!appended) expect_attention(&s, 0);
        icecore_cache_free(fork);
        icecore_cache_free(cache);
        problem_free(&s);
    }
}

/* Tokens first .. end - 1 of all heads, as they came, from row `row` on of arrays of `count` rows. */
static void expect_rows(const problem *s, const float *keys, const float *values, int64_t count, int64_t row,
                        int64_t first, int64_t end) {
    for (int64_t h = 0; h < HEADS; h++)
        for (int64_t j = first; j < end; j++) {
            const float *key = (const float *)s->p.key.data + h * s->p.key.head_stride + j * s->p.key.row_stride;
            const float *value =
                (const float *)s->p.value.data + h * s->p.value.head_stride + j * s->p.value.row_stride;
            const int64_t at = h * count + row + j - first;
            EXPECT(!keys || memcmp(keys + at * DIM, key, DIM * sizeof *key) == 0);
            EXPECT(!values || memcmp(values + at * VALUE_DIM, value, VALUE_DIM * sizeof *value) == 0);
        }
}

static void read_back(void) {
    static float keys[HEADS * TOKENS * DIM], values[HEADS * TOKENS * VALUE_DIM];
    problem s = all_tokens();
    icecore_cache *cache = create(8, 3, TOKENS);
    EXPECT(icecore_cache_read(cache, NULL, NULL, 0) == ICECORE_OK);
    for (int64_t first = 0; first < TOKENS; first += 25) {
        go_on(cache, &s, first, first + 25);
        EXPECT(icecore_cache_read(cache, keys, values, first + 25) == ICECORE_OK);
        expect_rows(&s, keys, values, first + 25, 0, 0, first + 25);
    }
    EXPECT(icecore_cache_read(cache, keys, values, TOKENS - 1) == ICECORE_ERROR_VALUE);
    int64_t evicted;
    EXPECT(icecore_cache_evict(cache, 130, &evicted) == ICECORE_OK && evicted == 128);
    const int64_t held = 3 + TOKENS - evicted;
    EXPECT(state_of(cache).held == held);
    EXPECT(icecore_cache_read(cache, keys, values, TOKENS) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_cache_read(cache, keys, NULL, held) == ICECORE_OK);
    EXPECT(icecore_cache_read(cache, NULL, values, held) == ICECORE_OK);
    expect_rows(&s, keys, values, held, 0, 0, 3);
    expect_rows(&s, keys, values, held, 3, evicted, TOKENS);
    icecore_cache_free(cache);
    problem_free(&s);
}

static void refused(void) {
    const icecore_cache_options good = {
        .heads = 1, .dim = 4, .value_dim = 4, .near_keys = 1, .block = 1, .cell_size = 1};
    icecore_cache_options wrong[9];
    for (int i = 0; i < 9; i++) wrong[i] = good;
    wrong[0].heads = 0;
    wrong[1].dim = ICECORE_MAX_DIM + 1;
    wrong[2].value_dim = 0;
    wrong[3].dtype = (icecore_dtype)7;
    wrong[4].near_keys = 0;
    wrong[5].tolerance = NAN;
    wrong[6].block = INT64_MAX;
    wrong[7].sinks = -1;
    wrong[8].cell_size = 0;
    icecore_cache *cache = NULL;
    for (int i = 0; i < 9; i++) {
        check_at("options %d", i);
        EXPECT(icecore_cache_create(&wrong[i], &cache) == ICECORE_ERROR_VALUE && !cache);
    }
    problem s = all_tokens();
    icecore_cache *own = create(4, 0, 1);
    EXPECT(icecore_cache_attend(&own, 1, NULL, &s.p, NULL, NULL) == ICECORE_ERROR_VALUE); /* more queries than tokens */
    go_on(own, &s, 0, 100);
    icecore_attention p = s.p;
    p.queries = 90;
    EXPECT(icecore_cache_attend(&own, 1, NULL, &p, NULL, NULL) == ICECORE_ERROR_VALUE); /* behind what is sealed */
    icecore_cache_free(own);
    problem_free(&s);
}

/* ---- Arrays ---- */

/* Two caches of `tokens` tokens that share their first 60 or so: the second went another way. */
static file some_caches(const icecore_cache_options *o, const problem *s, int64_t tokens) {
    icecore_cache *both[2] = {NULL, NULL};
    file f = {.count = 0};
    int64_t evicted;
    EXPECT(icecore_cache_create(o, &both[0]) == ICECORE_OK);
    go_on(both[0], s, 0, 60);
    EXPECT(icecore_cache_fork(both[0], &both[1]) == ICECORE_OK);
    go_on(both[0], s, 60, tokens);
    go_on(both[1], s, 60, tokens);
    EXPECT(icecore_cache_evict(both[1], 30, &evicted) == ICECORE_OK);
    EXPECT(icecore_cache_write((icecore_cache *const *)both, 2, write_arrays, &f) == ICECORE_OK);
    for (int i = 0; i < 2; i++) icecore_cache_free(both[i]);
    return f;
}

static void read_all(icecore_cache *cache) {
    const int64_t held = state_of(cache).held;
    float *keys = malloc((size_t)(HEADS * held * DIM + 1) * sizeof *keys);
    float *values = malloc((size_t)(HEADS * held * VALUE_DIM + 1) * sizeof *values);
    EXPECT(keys && values && icecore_cache_read(cache, keys, values, held) == ICECORE_OK);
    free(keys);
    free(values);
}

/* Everything that a caller can do with a cache that was accepted. */
static void use(icecore_cache *cache, const problem *s) {
    static float lse[HEADS * GROUP * TOKENS];
    icecore_cache *fork = NULL;
    int64_t length = state_of(cache).length, evicted;
    if (icecore_cache_fork(cache, &fork) != ICECORE_OK) return;
    /* one by one over two blocks, so that segments are read and merged */
    for (int64_t i = 0; i < 20; i++) append_and_attend(cache, s, i, i + 1, lse);
    icecore_cache_truncate(cache, length / 2, 1);
    append_and_attend(cache, s, 0, 10, lse);
    append_and_attend(fork, s, 0, 1, lse);
    icecore_cache_evict(fork, length, &evicted);
    append_and_attend(fork, s, 0, 10, lse);
    read_all(cache);
    read_all(fork);
    icecore_cache_free(fork);
    is_valid_cache(cache);
}

static void round_trip(void) {
    problem s = all_tokens();
    for (int64_t block = 1; block <= 16; block *= 4) {
        check_at("block %d", (int)block);
        const icecore_cache_options o = options(ICECORE_FLOAT32, block, 5, TOKENS);
        file f = some_caches(&o, &s, 100);
        int64_t view_bytes = 0; /* of what is known of queries */
        for (int own = 0; own < 2; own++) {
            icecore_cache *mapped[2], *fork = NULL;
            char reason[200];
            EXPECT(icecore_cache_map(&o, f.arrays, f.count, own, mapped, 2, reason, sizeof reason) == ICECORE_OK);
            const icecore_cache_state state = state_of(mapped[0]);
            if (!own) view_bytes = state.bytes;
            EXPECT(state.length == 100 && state.evicted == 0 && (state.bytes > view_bytes) == own);
            EXPECT(is_valid_cache(mapped[0]) && is_valid_cache(mapped[1]));
            file again = {.count = 0};
            EXPECT(icecore_cache_write((icecore_cache *const *)mapped, 2, write_arrays, &again) == ICECORE_OK &&
                   again.count == f.count);
            for (int64_t i = 0; i < f.count; i++)
                EXPECT(f.arrays[i].count == again.arrays[i].count &&
                       memcmp(f.arrays[i].data, again.arrays[i].data,
                              (size_t)f.arrays[i].count * size_of(f.arrays[i].type)) == 0);
            free_arrays(&again);
            EXPECT(icecore_cache_fork(mapped[0], &fork) == ICECORE_OK);
            icecore_cache_free(mapped[0]);
            go_on(fork, &s, 100, TOKENS);
            icecore_cache_free(fork);
            use(mapped[1], &s);
            icecore_cache_free(mapped[1]);
            EXPECT(icecore_cache_map(&o, f.arrays, f.count, own, mapped, 1, reason, sizeof reason) ==
                       ICECORE_ERROR_VALUE &&
                   !mapped[0]);
        }
        free_arrays(&f);
    }
    problem_free(&s);
}

/* Arrays with anything in them are refused, or are safe to use in every way. */
static void lying_arrays(void) {
    int refused = 0, used = 0;
    problem s = all_tokens();
    for (int variant = 0; variant < 4; variant++) {
        icecore_cache_options o = options(ICECORE_FLOAT32, 8, variant % 2 ? 3 : 0, 12);
        if (variant / 2) o.tolerance = 0.1f, o.dtype = ICECORE_BFLOAT16;
        file f = some_caches(&o, &s, 110);
        for (int round = 0; round < 400; round++) {
            const lie told = tell_lie(&f);
            check_at("variant %d, round %d, array %s", variant, round, told.before.name);
            icecore_cache *mapped[2];
            char reason[200] = "";
            if (icecore_cache_map(&o, f.arrays, f.count, round % 2, mapped, 2, reason, sizeof reason) == ICECORE_OK) {
                for (int i = 0; i < 2; i++) use(mapped[i], &s);
                for (int i = 0; i < 2; i++) icecore_cache_free(mapped[i]);
                used++;
            } else {
                EXPECT(reason[0] != '\0' && !mapped[0] && !mapped[1]);
                refused++;
            }
            take_back(&told);
        }
        free_arrays(&f);
    }
    problem_free(&s);
    EXPECT(refused > 100 && used > 100);
}

void cache_tests(void) {
    check_run("cache: with all cells open it is exact attention, whatever the chunks", all_near);
    check_run("cache: 8 bits of numbers that they hold are the numbers", int8_holds_them);
    check_run("cache: 4 bits of numbers that they hold are the numbers", int4_holds_them);
    check_run("cache: forks, truncation, eviction", forks_and_truncation);
    check_run("cache: several at once are each as if alone", several_at_once);
    check_run("cache: queries come with tokens or with calls", queries_of_tokens);
    check_run("cache: what is read back is what came", read_back);
    check_run("cache: bad options and calls", refused);
    check_run("cache: arrays and back", round_trip);
    check_run("cache: arrays that lie", lying_arrays);
}
