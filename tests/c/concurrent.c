/* Calls from several threads at once: for the thread sanitizer, and what must come of them. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arrays.h"
#include "check.h"
#include "tensors.h"

enum { THREADS = 4 };

/* What the threads share; `failures` counts what did not hold, since EXPECT is for one thread. */
static atomic_int failures, begun;
#define HOLDS(condition) ((void)((condition) || atomic_fetch_add(&failures, 1)))

static void run_threads(void *(*const body[THREADS])(void *), void *shared) {
    pthread_t thread[THREADS];
    atomic_store(&failures, 0);
    for (int i = 0; i < THREADS; i++) EXPECT(pthread_create(&thread[i], NULL, body[i], shared) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    EXPECT(atomic_load(&failures) == 0);
}

/* ---- Attention ---- */

static problem prefill(void) {
    problem s = one_head(120, 120, 16, 16);
    s.p.key_heads = 2;
    s.p.query_heads = 4;
    s.p.causal = 1;
    s.p.sinks = 4;
    s.p.threads = 3;
    return s;
}

static icecore_status attend(const icecore_attention *p, int kind) {
    const icecore_near_far options = {
        .tolerance = kind == 2 ? 0.1f : 0.0f, .near_keys = 10, .block = 16, .cell_size = 4};
    return kind == 0 ? icecore_attend_exact(p) : icecore_attend_near_far(p, &options, NULL);
}

static void *attend_again(void *expected) {
    const problem *all = expected;
    for (int round = 0; round < 6; round++) {
        const problem *wanted = &all[round % 3];
        problem own = prefill();
        problem_allocate(&own);
        HOLDS(attend(&own.p, round % 3) == ICECORE_OK && icecore_default_threads() > 0);
        HOLDS(memcmp(own.p.out.data, wanted->p.out.data, (size_t)own.out_bytes) == 0);
        problem_free(&own);
    }
    return NULL;
}

static int go_on(void) { return 0; }

static void attention(void) {
    problem expected[3];
    void *(*const body[THREADS])(void *) = {attend_again, attend_again, attend_again, attend_again};
    for (int kind = 0; kind < 3; kind++) {
        expected[kind] = prefill();
        problem_allocate(&expected[kind]);
        EXPECT(attend(&expected[kind].p, kind) == ICECORE_OK);
    }
    icecore_set_interrupt_check(go_on);
    run_threads(body, expected);
    icecore_set_interrupt_check(NULL);
    for (int kind = 0; kind < 3; kind++) problem_free(&expected[kind]);
}

/* ---- Index ---- */

enum { DIM = 8, ROUNDS = 40, ROWS = 100 };

static float rows_of[ROUNDS * ROWS * DIM];

static icecore_status add(icecore_index *index, const float *rows, int64_t count, int threads) {
    const icecore_addition added = {.vectors = rows, .count = count, .threads = threads};
    int64_t place;
    return icecore_index_add(index, &added, &place);
}

static void *add_rows(void *index) {
    for (int64_t round = 0; round < ROUNDS; round++)
        HOLDS(add(index, rows_of + round * ROWS * DIM, ROWS, 2) == ICECORE_OK);
    return NULL;
}

static void *remove_rows(void *index) {
    for (int64_t id = 0; id < 500; id++) {
        int64_t place;
        const icecore_status status = icecore_index_remove(index, &id, 1, 0, 1, &place);
        HOLDS(status == ICECORE_OK || status == ICECORE_ERROR_ABSENT);
    }
    return NULL;
}

static void *search_rows(void *index) {
    int64_t ids[20 * 3], counts[20];
    float scores[20 * 3];
    for (int round = 0; round < ROUNDS; round++) {
        const icecore_search search = {.k = 3, .exact = round % 2, .field_of_view = 4, .threads = 2};
        icecore_index_state state;
        HOLDS(icecore_index_search(index, rows_of, 20, &search, ids, scores, counts, NULL) == ICECORE_OK);
        HOLDS(icecore_index_get_state(index, &state) == ICECORE_OK && state.count <= ROUNDS * ROWS);
    }
    return NULL;
}

static void one_index(void) {
    const icecore_index_options options = {.dim = DIM, .metric = ICECORE_SQUARED_DISTANCE, .levels = 2, .simples = 4};
    void *(*const body[THREADS])(void *) = {add_rows, remove_rows, search_rows, search_rows};
    uint64_t seed = 1;
    char reason[200];
    icecore_index *one = NULL;
    for (int64_t i = 0; i < ROUNDS * ROWS * DIM; i++) rows_of[i] = random_float(&seed);
    EXPECT(icecore_index_create(&options, &one) == ICECORE_OK);
    run_threads(body, one);
    EXPECT(icecore_index_validate(one, reason, sizeof reason) == ICECORE_OK);
    icecore_index_free(one);
}

/* ---- Cache ---- */

enum { TOKENS = 400, HEADS = 2 };

static float tokens[TOKENS * DIM]; /* filled by create() */

/* out: heads x count x DIM. */
static icecore_status append_and_attend(icecore_cache *cache, int64_t first, int64_t count, float *out) {
    const icecore_tensor row = {tokens + first * DIM, 0, 0, DIM};
    icecore_status status = icecore_cache_append(cache, ICECORE_FLOAT32, row, row, (icecore_tensor){0}, 0, count);
    icecore_attention p = {.query_heads = HEADS,
                           .queries = count,
                           .query = row,
                           .out = {out, 0, count * DIM, DIM},
                           .scale = 0.3f,
                           .threads = 2};
    return status == ICECORE_OK ? icecore_cache_attend(&cache, 1, NULL, &p, NULL, NULL) : status;
}

static icecore_cache *create(void) {
    const icecore_cache_options options = {
        .heads = HEADS, .dim = DIM, .value_dim = DIM, .near_keys = 8, .block = 16, .sinks = 2, .cell_size = 4};
    icecore_cache *cache = NULL;
    uint64_t seed = 1;
    for (int64_t i = 0; i < TOKENS * DIM; i++) tokens[i] = random_float(&seed);
    EXPECT(icecore_cache_create(&options, &cache) == ICECORE_OK);
    return cache;
}

static void *append_tokens(void *cache) {
    float out[8 * HEADS * DIM];
    for (int64_t first = 0; first + 8 <= TOKENS; first += 8) {
        const icecore_status status = append_and_attend(cache, first, 8, out);
        HOLDS(status == ICECORE_OK || status == ICECORE_ERROR_VALUE); /* others append or forget meanwhile */
    }
    return NULL;
}

static void *look_and_forget(void *cache) {
    for (int round = 0; round < ROUNDS; round++) {
        icecore_cache_state state;
        int64_t evicted;
        HOLDS(icecore_cache_get_state(cache, &state) == ICECORE_OK);
        HOLDS(icecore_cache_evict(cache, state.length / 4, &evicted) == ICECORE_OK);
        HOLDS(is_valid_cache(cache));
    }
    return NULL;
}

static void *fork_and_go_on(void *cache) {
    float out[HEADS * DIM];
    for (int round = 0; round < 4; round++) {
        icecore_cache *own = NULL;
        HOLDS(icecore_cache_fork(cache, &own) == ICECORE_OK);
        for (int64_t i = 0; i < 40; i++) HOLDS(append_and_attend(own, i, 1, out) == ICECORE_OK);
        HOLDS(is_valid_cache(own));
        icecore_cache_free(own);
    }
    return NULL;
}

static void one_cache(void) {
    void *(*const body[THREADS])(void *) = {append_tokens, append_tokens, look_and_forget, fork_and_go_on};
    icecore_cache *cache = create();
    run_threads(body, cache);
    EXPECT(is_valid_cache(cache));
    icecore_cache_free(cache);
}

typedef struct {
    icecore_cache *cache[THREADS];
    float out[THREADS][100 * HEADS * DIM];
} family;

static void *go_on_alone(void *shared) {
    family *all = shared;
    const int own = atomic_fetch_add(&begun, 1);
    for (int64_t i = 0; i < 100; i++)
        HOLDS(append_and_attend(all->cache[own], 100 + i, 1, all->out[own] + i * HEADS * DIM) == ICECORE_OK);
    return NULL;
}

/* Forks of one cache build the same segments together, and all come to the same. */
static void forks(void) {
    static family all;
    void *(*const body[THREADS])(void *) = {go_on_alone, go_on_alone, go_on_alone, go_on_alone};
    float out[100 * HEADS * DIM];
    atomic_store(&begun, 0);
    all.cache[0] = create();
    EXPECT(append_and_attend(all.cache[0], 0, 100, out) == ICECORE_OK);
    for (int i = 1; i < THREADS; i++) EXPECT(icecore_cache_fork(all.cache[0], &all.cache[i]) == ICECORE_OK);
    run_threads(body, &all);
    for (int i = 0; i < THREADS; i++) {
        EXPECT(memcmp(all.out[i], all.out[0], sizeof all.out[0]) == 0);
        icecore_cache_free(all.cache[i]);
    }
}

/* ---- Locks ---- */

static icecore_index *used;
static icecore_cache *appended;
static icecore_status answers[6];
static int64_t seen;

/* As a signal handler that uses what it interrupts. */
static int use_both(void) {
    icecore_index_state index_state;
    icecore_cache_state cache_state;
    int64_t place, id = 0;
    answers[0] = icecore_index_get_state(used, &index_state);
    answers[1] = icecore_index_remove(used, &id, 1, 0, 1, &place);
    answers[2] = icecore_cache_get_state(appended, &cache_state);
    answers[3] = icecore_cache_truncate(appended, 0, 1);
    seen++;
    return 0;
}

/* A thread that would wait for itself is refused; reading while one reads is not. */
static void from_within(void) {
    const icecore_index_options options = {.dim = DIM, .metric = ICECORE_SQUARED_DISTANCE, .levels = 1, .simples = 4};
    const icecore_search search = {.k = 1, .exact = 1, .threads = 1};
    float many[2000 * DIM], score, out[TOKENS * HEADS * DIM];
    int64_t id, count;
    uint64_t seed = 1;
    for (int64_t i = 0; i < 2000 * DIM; i++) many[i] = random_float(&seed);
    EXPECT(icecore_index_create(&options, &used) == ICECORE_OK);
    appended = create();
    icecore_set_interrupt_check(use_both);
    /* the last question of an addition is asked in any case, with the lock held for writing */
    seen = 0;
    EXPECT(add(used, many, 2000, 1) == ICECORE_OK && seen > 0);
    EXPECT(answers[0] == ICECORE_ERROR_BUSY && answers[1] == ICECORE_ERROR_BUSY && answers[2] == ICECORE_OK &&
           answers[3] == ICECORE_OK);
    for (seen = 0; !seen;)
        EXPECT(icecore_index_search(used, many, 1, &search, &id, &score, &count, NULL) == ICECORE_OK);
    EXPECT(answers[0] == ICECORE_OK && answers[1] == ICECORE_ERROR_BUSY);
    for (seen = 0; !seen;) {
        EXPECT(append_and_attend(appended, 0, TOKENS, out) == ICECORE_OK);
        if (!seen) EXPECT(icecore_cache_truncate(appended, 0, 1) == ICECORE_OK);
    }
    EXPECT(answers[0] == ICECORE_OK && answers[2] == ICECORE_ERROR_BUSY && answers[3] == ICECORE_ERROR_BUSY);
    icecore_set_interrupt_check(NULL);
    icecore_index_free(used);
    icecore_cache_free(appended);
}

static atomic_int at_work, may_end;

static int stay(void *context, double done) {
    (void)context, (void)done;
    atomic_store(&at_work, 1);
    while (!atomic_load(&may_end)) usleep(1000);
    return 0;
}

static void *add_slowly(void *context) {
    static float many[2000 * DIM];
    int64_t place;
    HOLDS(icecore_index_add(context,
                            &(icecore_addition){.vectors = many, .count = 2000, .threads = 1, .progress = stay},
                            &place) == ICECORE_OK);
    return NULL;
}

/* A process that is forked while another thread adds gets an error where it would wait for ever; what nobody was
 * changing is usable. */
static void fork_at_work(void) {
    const icecore_index_options options = {.dim = DIM, .metric = ICECORE_SQUARED_DISTANCE, .levels = 2, .simples = 4};
    icecore_index *busy = NULL, *idle = NULL;
    pthread_t thread;
    EXPECT(icecore_index_create(&options, &busy) == ICECORE_OK && icecore_index_create(&options, &idle) == ICECORE_OK);
    EXPECT(add(idle, rows_of, ROWS, 1) == ICECORE_OK);
    atomic_store(&at_work, 0);
    atomic_store(&may_end, 0);
    EXPECT(pthread_create(&thread, NULL, add_slowly, busy) == 0);
    while (!atomic_load(&at_work)) usleep(1000);
    const pid_t pid = fork();
    if (pid == 0) {
        alarm(60); /* a child that hangs fails */
        icecore_index_state state;
        int as_told = icecore_index_get_state(busy, &state) == ICECORE_ERROR_FORKED &&
                      icecore_index_clear(busy) == ICECORE_ERROR_FORKED;
        as_told &= icecore_index_get_state(idle, &state) == ICECORE_OK && state.count == ROWS &&
                   icecore_index_clear(idle) == ICECORE_OK;
        icecore_index_free(busy);
        icecore_index_free(idle);
        _exit(as_told ? 0 : 1);
    }
    int status = -1;
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    atomic_store(&may_end, 1);
    pthread_join(thread, NULL);
    icecore_index_free(busy);
    icecore_index_free(idle);
}

/* ---- A step whose cells several threads share ---- */

static icecore_tensor from_row(icecore_tensor t, int64_t row) {
    t.data = (float *)t.data + row * t.row_stride;
    return t;
}

static void step_in_parts(void) {
    enum { TOKENS = 4400, STEPS = 4, QUERY_HEADS = 4, HEADS = 2 };
    const icecore_cache_options options = {.heads = HEADS,
                                           .dim = DIM,
                                           .value_dim = DIM,
                                           .dtype = ICECORE_FLOAT32,
                                           .near_keys = 1,
                                           .tolerance = 0.1f,
                                           .block = 64,
                                           .cell_size = 16};
    problem s = one_head(TOKENS, TOKENS, DIM, DIM);
    icecore_cache *cache = NULL;
    s.p.query_heads = QUERY_HEADS;
    s.p.key_heads = HEADS;
    s.p.causal = 1;
    problem_allocate(&s);
    EXPECT(icecore_cache_create(&options, &cache) == ICECORE_OK);
    EXPECT(icecore_cache_append(cache, s.p.dtype, s.p.key, s.p.value, s.p.query, QUERY_HEADS, TOKENS - STEPS) ==
           ICECORE_OK);
    for (int64_t token = TOKENS - STEPS; token < TOKENS; token++) {
        float out[2][QUERY_HEADS * DIM];
        EXPECT(icecore_cache_append(cache, s.p.dtype, from_row(s.p.key, token), from_row(s.p.value, token),
                                    (icecore_tensor){0}, 0, 1) == ICECORE_OK);
        for (int i = 0; i < 2; i++) {
            icecore_cache *fork = NULL;
            icecore_attention p = s.p;
            p.query = from_row(p.query, token);
            p.queries = 1;
            p.out = (icecore_tensor){out[i], 0, DIM, DIM};
            p.lse = NULL;
            p.threads = i ? 3 : 1;
            EXPECT(icecore_cache_fork(cache, &fork) == ICECORE_OK);
            EXPECT(icecore_cache_attend(i ? &cache : &fork, 1, NULL, &p, NULL, NULL) == ICECORE_OK);
            icecore_cache_free(fork);
        }
        EXPECT(memcmp(out[0], out[1], sizeof out[0]) == 0);
    }
    icecore_cache_free(cache);
    problem_free(&s);
}

void concurrent_tests(void) {
    check_run("concurrent: attention", attention);
    check_run("concurrent: an index that changes while it is searched", one_index);
    check_run("concurrent: one cache", one_cache);
    check_run("concurrent: forks of a cache", forks);
    check_run("concurrent: calls from within a call", from_within);
    check_run("concurrent: a step in parts", step_in_parts);
    check_run("concurrent: a fork while another thread is at work", fork_at_work);
}
