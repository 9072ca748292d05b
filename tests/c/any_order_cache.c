/* Caches in any order of calls, of which some fail for want of memory or are interrupted, against lists of tokens.
 *
 * All cells are open, so that attention is exact, and the formula in double precision is what comes out.  A call that
 * fails leaves every cache with the tokens it had. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "check.h"
#include "failures.h"

enum { HEADS = 2, QUERY_HEADS = 4, DIM = 8, VALUE_DIM = 5, MAX_TOKENS = 360, MAX_CACHES = 4, MAX_FILES = 6 };
enum { MACHINES = 30, STEPS = 40 };

typedef struct {
    icecore_cache *cache; /* NULL: free */
    int64_t length, evicted;
    float key[HEADS][MAX_TOKENS][DIM], value[HEADS][MAX_TOKENS][VALUE_DIM];
} pair;

typedef struct {
    icecore_cache_options options;
    pair pairs[MAX_CACHES];
    file files[MAX_FILES]; /* that caches are views of */
    int file_count;
} machine;

static float some_number(void) { return (float)draw(33) / 8.0f - 2.0f; }

static icecore_tensor tensor_of(float *data, int64_t rows, int64_t width) {
    return (icecore_tensor){.data = data, .head_stride = rows * width, .row_stride = width};
}

/* ---- What must hold ---- */

/* Softmax over the tokens that the query may see, in double precision; 0 where all are evicted. */
static void expected_row(const machine *m, const pair *c, int64_t head, const float *query, int64_t position,
                         double *row) {
    double largest = -INFINITY, sum = 0.0;
    double score[MAX_TOKENS];
    for (int64_t j = 0; j <= position; j++) {
        score[j] = -INFINITY;
        if (j >= m->options.sinks && j < c->evicted) continue;
        score[j] = 0.0;
        for (int64_t t = 0; t < DIM; t++) score[j] += (double)query[t] * c->key[head][j][t];
        largest = fmax(largest, score[j]);
    }
    for (int64_t t = 0; t < VALUE_DIM; t++) row[t] = 0.0;
    for (int64_t j = 0; j <= position; j++) {
        const double weight = score[j] > -INFINITY ? exp(score[j] - largest) : 0.0;
        sum += weight;
        for (int64_t t = 0; t < VALUE_DIM; t++) row[t] += weight * c->value[head][j][t];
    }
    for (int64_t t = 0; t < VALUE_DIM && sum > 0.0; t++) row[t] /= sum;
}

/* What rounding of keys, values and, on some instruction sets, of queries and weights may make of it. */
static double tolerance_of(icecore_dtype dtype) {
    if (dtype == ICECORE_FLOAT32) return 1e-4;
    return dtype == ICECORE_INT8 ? 0.3 : 0.05;
}

static icecore_cache_state state_of(icecore_cache *cache) {
    icecore_cache_state state = {0};
    EXPECT(icecore_cache_get_state(cache, &state) == ICECORE_OK);
    return state;
}

/* Attends the last `count` tokens' queries; where the call succeeds, out is what it must be. */
static icecore_status attend(const machine *m, const pair *c, icecore_cache *cache, int64_t count, int threads) {
    float query[QUERY_HEADS][MAX_TOKENS][DIM], out[QUERY_HEADS][MAX_TOKENS][VALUE_DIM];
    for (int64_t h = 0; h < QUERY_HEADS; h++)
        for (int64_t i = 0; i < count * DIM; i++) (&query[h][0][0])[i] = some_number();
    const icecore_attention p = {.dtype = ICECORE_FLOAT32,
                                 .query_heads = QUERY_HEADS,
                                 .queries = count,
                                 .query = tensor_of(&query[0][0][0], MAX_TOKENS, DIM),
                                 .out = tensor_of(&out[0][0][0], MAX_TOKENS, VALUE_DIM),
                                 .scale = 1.0f,
                                 .threads = threads};
    const icecore_status status = icecore_cache_attend(&cache, 1, NULL, &p, NULL, NULL);
    for (int64_t h = 0; h < QUERY_HEADS && status == ICECORE_OK; h++)
        for (int64_t i = 0; i < count; i++) {
            double row[VALUE_DIM];
            expected_row(m, c, h / (QUERY_HEADS / HEADS), query[h][i], c->length - count + i, row);
            for (int64_t t = 0; t < VALUE_DIM; t++)
                EXPECT(fabs((double)out[h][i][t] - row[t]) <= tolerance_of(m->options.dtype));
        }
    return status;
}

/* What is read back of a head is the bits of its list where storage holds them. */
static void expect_stored(const machine *m, const pair *c) {
    static float keys[HEADS * MAX_TOKENS * DIM], values[HEADS * MAX_TOKENS * VALUE_DIM];
    const int64_t held = state_of(c->cache).held;
    EXPECT(icecore_cache_read(c->cache, keys, values, held) == ICECORE_OK);
    if (m->options.dtype == ICECORE_INT8) return;
    for (int64_t h = 0; h < HEADS; h++)
        for (int64_t j = 0, row = h * held; j < c->length; j++) {
            if (j >= m->options.sinks && j < c->evicted) continue;
            EXPECT(memcmp(keys + row * DIM, c->key[h][j], DIM * sizeof *keys) == 0);
            EXPECT(memcmp(values + row * VALUE_DIM, c->value[h][j], VALUE_DIM * sizeof *values) == 0);
            row++;
        }
}

/* Each cache holds what its list does.  It is a fork that is asked: caches stay as unfinished as they are. */
static void expect_tokens(const machine *m) {
    for (int i = 0; i < MAX_CACHES; i++) {
        const pair *c = &m->pairs[i];
        if (!c->cache) continue;
        const icecore_cache_state state = state_of(c->cache);
        EXPECT(state.length == c->length && state.evicted == c->evicted);
        EXPECT(is_valid_cache(c->cache));
        expect_stored(m, c);
        if (!c->length || draw(3)) continue;
        icecore_cache *fork = NULL;
        EXPECT(icecore_cache_fork(c->cache, &fork) == ICECORE_OK);
        EXPECT(attend(m, c, fork, 1, 1 + (int)draw(2)) == ICECORE_OK);
        EXPECT(is_valid_cache(fork));
        icecore_cache_free(fork);
    }
}

/* ---- Calls ---- */

static void append(pair *c, int64_t count) {
    float query[QUERY_HEADS][MAX_TOKENS][DIM];
    float *key[HEADS], *value[HEADS];
    if (c->length + count > MAX_TOKENS) return;
    for (int64_t h = 0; h < HEADS; h++) {
        key[h] = c->key[h][c->length];
        value[h] = c->value[h][c->length];
        for (int64_t i = 0; i < count * DIM; i++) key[h][i] = some_number();
        for (int64_t i = 0; i < count * VALUE_DIM; i++) value[h][i] = some_number();
    }
    for (int64_t h = 0; h < QUERY_HEADS; h++)
        for (int64_t i = 0; i < count * DIM; i++) (&query[h][0][0])[i] = some_number();
    icecore_tensor queries = {0};
    if (draw(2)) queries = tensor_of(&query[0][0][0], MAX_TOKENS, DIM);
    fail_at_random();
    const icecore_status status =
        icecore_cache_append(c->cache, ICECORE_FLOAT32, tensor_of(key[0], MAX_TOKENS, DIM),
                             tensor_of(value[0], MAX_TOKENS, VALUE_DIM), queries, QUERY_HEADS, count);
    EXPECT(is_as_expected(status, ICECORE_OK));
    if (status == ICECORE_OK) c->length += count;
}

static void attend_some(const machine *m, const pair *c, int64_t count) {
    const icecore_cache_state state = state_of(c->cache);
    if (count > c->length) return;
    fail_at_random();
    const icecore_status status = attend(m, c, c->cache, count, 1);
    EXPECT(is_as_expected(status, c->length - count < state.first_query ? ICECORE_ERROR_VALUE : ICECORE_OK));
}

static void decode(const machine *m, pair *c, int64_t steps) {
    for (; steps > 0; steps--) {
        const int64_t before = c->length;
        append(c, 1);
        if (c->length > before) attend_some(m, c, 1);
    }
}

static void truncate(const machine *m, pair *c, int64_t length) {
    fail_at_random();
    const icecore_status status = icecore_cache_truncate(c->cache, length, 1);
    const int allowed = length <= m->options.sinks || length >= c->evicted;
    EXPECT(is_as_expected(status, allowed ? ICECORE_OK : ICECORE_ERROR_VALUE));
    if (status != ICECORE_OK) return;
    c->length = length;
    if (c->evicted > length) c->evicted = state_of(c->cache).evicted;
}

static void evict(pair *c, int64_t before) {
    int64_t evicted = c->evicted;
    fail_at_random();
    const icecore_status status = icecore_cache_evict(c->cache, before, &evicted);
    EXPECT(is_as_expected(status, ICECORE_OK));
    if (status != ICECORE_OK) return;
    EXPECT(evicted >= c->evicted && (evicted == c->evicted || evicted <= before));
    c->evicted = evicted;
}

static void forget_cache(pair *c) {
    icecore_cache_free(c->cache);
    c->cache = NULL;
}

/* In the place of another, or beside it. */
static void put(machine *m, const pair *from, icecore_cache *cache, int place) {
    pair *to = &m->pairs[place];
    if (to != from) memcpy(to, from, sizeof *to);
    else icecore_cache_free(to->cache);
    to->cache = cache;
}

static void fork_cache(machine *m, const pair *c, int place) {
    icecore_cache *fork = NULL;
    fail_at_random();
    const icecore_status status = icecore_cache_fork(c->cache, &fork);
    EXPECT(is_as_expected(status, ICECORE_OK) && (status == ICECORE_OK) == (fork != NULL));
    if (!fork) return;
    if (&m->pairs[place] != c && m->pairs[place].cache) forget_cache(&m->pairs[place]);
    put(m, c, fork, place);
}

/* Written and opened again, in memory of its own or as a view of the arrays. */
static void write_and_map(machine *m, const pair *c, int place) {
    if (m->file_count == MAX_FILES) return;
    file *f = &m->files[m->file_count];
    *f = (file){.count = 0};
    fail_at_random();
    icecore_status status = icecore_cache_write(&c->cache, 1, write_arrays, f);
    EXPECT(is_as_expected(status, ICECORE_OK));
    icecore_cache *mapped = NULL;
    const int own = (int)draw(2);
    if (status == ICECORE_OK) {
        char reason[200];
        fail_at_random();
        status = icecore_cache_map(&m->options, f->arrays, f->count, own, &mapped, 1, reason, sizeof reason);
        EXPECT(is_as_expected(status, ICECORE_OK) && (status == ICECORE_OK) == (mapped != NULL));
    }
    if (mapped && !own) m->file_count++;
    else free_arrays(f);
    if (!mapped) return;
    if (&m->pairs[place] != c && m->pairs[place].cache) forget_cache(&m->pairs[place]);
    put(m, c, mapped, place);
}

static void validate(const pair *c) {
    const char *fault = NULL;
    fail_at_random();
    EXPECT(is_as_expected(icecore_cache_validate(c->cache, &fault), ICECORE_OK) && !fault);
}

static void step(machine *m) {
    const int i = (int)draw(MAX_CACHES), place = (int)draw(MAX_CACHES);
    pair *c = &m->pairs[i];
    if (!c->cache) return;
    switch (draw(12)) {
    case 0: append(c, (int64_t)draw(40)); break;
    case 1: attend_some(m, c, (int64_t)draw(30)); break;
    case 2: truncate(m, c, (int64_t)draw((uint64_t)c->length + 1)); break;
    case 3: truncate(m, c, c->length - (int64_t)draw(c->length < 4 ? (uint64_t)c->length + 1 : 4)); break;
    case 4: evict(c, (int64_t)draw((uint64_t)c->length + 1)); break;
    case 5:
    case 6: fork_cache(m, c, place); break;
    case 7: write_and_map(m, c, place); break;
    case 8: validate(c); break;
    default: decode(m, c, (int64_t)draw(25));
    }
}

static void run(machine *m) {
    static const icecore_dtype dtypes[] = {ICECORE_FLOAT32, ICECORE_FLOAT32, ICECORE_BFLOAT16, ICECORE_INT8};
    static const int64_t blocks[] = {1, 3, 8, 20}, sinks[] = {0, 2, 9};
    const int by_tolerance = draw(4) == 0;
    m->options = (icecore_cache_options){.heads = HEADS,
                                         .dim = DIM,
                                         .value_dim = VALUE_DIM,
                                         .dtype = dtypes[draw(4)],
                                         .near_keys = by_tolerance ? 0 : MAX_TOKENS,
                                         .tolerance = by_tolerance ? 1e-6f : 0.0f,
                                         .block = blocks[draw(4)],
                                         .sinks = sinks[draw(3)],
                                         .cell_size = 4};
    EXPECT(icecore_cache_create(&m->options, &m->pairs[0].cache) == ICECORE_OK);
    for (int i = 0; i < STEPS; i++) {
        check_at("block %d, sinks %d, dtype %d, by tolerance %d, step %d", (int)m->options.block, (int)m->options.sinks,
                 (int)m->options.dtype, by_tolerance, i);
        step(m);
        expect_tokens(m);
    }
    for (int i = 0; i < MAX_CACHES; i++) icecore_cache_free(m->pairs[i].cache);
    for (int i = 0; i < m->file_count; i++) free_arrays(&m->files[i]);
}

static void any_order(void) {
    const long machines = MACHINES * test_factor();
    for (long i = 0; i < machines; i++) {
        machine *m = calloc(1, sizeof *m);
        run(m);
        free(m);
    }
}

void any_order_cache_tests(void) {
    check_run("cache: calls in any order, of which some fail, lose nothing", any_order);
}
