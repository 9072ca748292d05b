/* An index under calls in any order, of which some fail for want of memory or are interrupted, against a plain table.
 *
 * A call that fails leaves all vectors where they were. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "check.h"
#include "failures.h"

enum { DIM = 5, IDS = 12000, MAX_VECTORS = 5000, MAX_ADDED = 1300, QUERIES = 3, MAX_K = 6 };
enum { MACHINES = 6, STEPS = 40 };

typedef struct {
    icecore_index_options options;
    icecore_index *index;
    int64_t count, next_id;
    uint8_t present[IDS];
    float row[IDS][DIM];
} machine;

static void random_row(float *row) {
    for (int t = 0; t < DIM; t++) row[t] = (float)draw(65) / 16.0f - 2.0f; /* which 16 bits hold */
}

/* ---- What must hold ---- */

static double score_of(const machine *m, const float *a, const float *b) {
    double sum = 0.0;
    for (int t = 0; t < DIM; t++) {
        const double difference = (double)a[t] - b[t];
        sum += m->options.metric == ICECORE_INNER_PRODUCT ? -(double)a[t] * b[t] : difference * difference;
    }
    return sum;
}

static void expect_vectors(const machine *m) {
    char reason[200];
    icecore_index_state state = {0};
    EXPECT(icecore_index_validate(m->index, reason, sizeof reason) == ICECORE_OK);
    EXPECT(icecore_index_get_state(m->index, &state) == ICECORE_OK);
    EXPECT(state.count == m->count && state.next_id == m->next_id);
    int64_t *ids = malloc(IDS * sizeof *ids), found = 0, place;
    uint8_t *present = malloc(IDS);
    for (int64_t id = 0; id < IDS; id++) ids[id] = id;
    EXPECT(icecore_index_contains(m->index, ids, IDS, present) == ICECORE_OK);
    EXPECT(memcmp(present, m->present, IDS) == 0);
    for (int64_t id = 0; id < IDS; id++)
        if (m->present[id]) ids[found++] = id;
    float *rows = malloc((size_t)(found + 1) * DIM * sizeof *rows);
    EXPECT(icecore_index_get(m->index, ids, found, rows, &place) == ICECORE_OK);
    for (int64_t i = 0; i < found; i++) EXPECT(memcmp(rows + i * DIM, m->row[ids[i]], sizeof m->row[0]) == 0);
    free(rows);
    free(present);
    free(ids);
}

static int compare_numbers(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The scores found are the best of those that `wanted` leaves, of ids that it leaves, each its own. */
static void expect_best(const machine *m, const float *query, const uint8_t *wanted, const int64_t *ids,
                        const float *scores, int64_t k) {
    double *best = malloc(IDS * sizeof *best);
    const double sign = m->options.metric == ICECORE_INNER_PRODUCT ? -1.0 : 1.0;
    int64_t there = 0;
    for (int64_t id = 0; id < IDS; id++)
        if (m->present[id] && wanted[id]) best[there++] = score_of(m, query, m->row[id]);
    qsort(best, (size_t)there, sizeof *best, compare_numbers);
    for (int64_t i = 0; i < k; i++) {
        EXPECT((ids[i] < 0) == (i >= there));
        if (ids[i] < 0 || i >= there) continue;
        EXPECT(ids[i] < IDS && m->present[ids[i]] && wanted[ids[i]]);
        EXPECT(fabs(sign * (double)scores[i] - best[i]) < 1e-4);
        EXPECT(fabs(sign * (double)scores[i] - score_of(m, query, m->row[ids[i]])) < 1e-4);
    }
    free(best);
}

/* ---- Calls ---- */

/* `count` distinct ids, at random. */
static void some_ids(int64_t *ids, int64_t count) {
    uint8_t *taken = calloc(IDS, 1);
    for (int64_t i = 0; i < count; i++) {
        do ids[i] = (int64_t)draw(IDS);
        while (taken[ids[i]]++);
    }
    free(taken);
}

static void take_in(machine *m, const int64_t *ids, const float *rows, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        m->count += !m->present[ids[i]];
        m->present[ids[i]] = 1;
        memcpy(m->row[ids[i]], rows + i * DIM, sizeof m->row[0]);
        if (m->next_id <= ids[i]) m->next_id = ids[i] + 1;
    }
}

static void add(machine *m, int64_t count) {
    int64_t ids[MAX_ADDED], place = 0;
    float *rows = malloc(MAX_ADDED * DIM * sizeof *rows);
    const int replace = (int)draw(2), by_count = draw(3) == 0 && m->next_id + count <= IDS;
    icecore_status expected = ICECORE_OK;
    some_ids(ids, count);
    for (int64_t i = 0; i < count; i++) {
        random_row(rows + i * DIM);
        if (by_count) ids[i] = m->next_id + i;
        else if (!replace && m->present[ids[i]]) expected = ICECORE_ERROR_EXISTS;
    }
    fail_at_random();
    const icecore_status status = icecore_index_add(
        m->index,
        &(icecore_addition){
            .vectors = rows, .ids = by_count ? NULL : ids, .count = count, .replace = replace, .threads = 1},
        &place);
    EXPECT(is_as_expected(status, expected));
    if (status == ICECORE_OK) take_in(m, ids, rows, count);
    free(rows);
}

static void take_out(machine *m, const int64_t *ids, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        m->count -= m->present[ids[i]];
        m->present[ids[i]] = 0;
    }
}

/* Of ids that are there, or that need not be; or of one too many. */
static void take_some_out(machine *m, int64_t count) {
    int64_t ids[MAX_ADDED + 1], there = 0, place = 0, before = m->count;
    const int absent_too = (int)draw(2);
    some_ids(ids, count);
    if (!absent_too) {
        for (int64_t i = 0; i < count; i++)
            if (m->present[ids[i]]) ids[there++] = ids[i];
        count = there;
    }
    icecore_status expected = ICECORE_OK;
    if (!absent_too && count && draw(4) == 0) {
        ids[count] = ids[0];
        expected = ICECORE_ERROR_REPEATED;
    }
    fail_at_random();
    const icecore_status status =
        icecore_index_remove(m->index, ids, count + (expected != ICECORE_OK), absent_too, 1, &place);
    EXPECT(is_as_expected(status, expected));
    if (status != ICECORE_OK) return;
    take_out(m, ids, count);
    EXPECT(place == before - m->count);
}

static void search(const machine *m, int exact) {
    float queries[QUERIES][DIM], scores[QUERIES][MAX_K];
    int64_t ids[QUERIES][MAX_K], counts[QUERIES], *named = malloc(2 * IDS * sizeof *named), *excluded = named + IDS;
    uint8_t *wanted = malloc(IDS);
    const int filtered = (int)draw(2), excluding = (int)draw(2);
    int64_t allowed = 0, left_out = 0;
    for (int64_t id = 0; id < IDS; id++) {
        const int kept = !filtered || draw(3) == 0, out = excluding && draw(3) == 0;
        if (kept) named[allowed++] = id;
        if (out) excluded[left_out++] = id;
        wanted[id] = kept && !out;
    }
    for (int q = 0; q < QUERIES; q++) random_row(queries[q]);
    const icecore_search s = {.k = 1 + (int64_t)draw(MAX_K),
                              .visit = exact ? 0 : 1000000,
                              .retrieve = exact ? 0 : 1000000,
                              .field_of_view = exact ? 0 : 1000000,
                              .exact = exact,
                              .allowed = filtered ? named : NULL,
                              .allowed_count = filtered ? allowed : 0,
                              .excluded = excluding ? excluded : NULL,
                              .excluded_count = left_out,
                              .threads = 1};
    fail_at_random();
    const icecore_status status =
        icecore_index_search(m->index, &queries[0][0], QUERIES, &s, &ids[0][0], &scores[0][0], counts, NULL);
    EXPECT(is_as_expected(status, ICECORE_OK));
    for (int q = 0; q < QUERIES && status == ICECORE_OK; q++)
        expect_best(m, queries[q], wanted, &ids[0][0] + q * s.k, &scores[0][0] + q * s.k, s.k);
    free(wanted);
    free(named);
}

static void compact(const machine *m) {
    fail_at_random();
    EXPECT(is_as_expected(icecore_index_compact(m->index, 1), ICECORE_OK));
}

static void reserve(const machine *m) {
    fail_at_random();
    EXPECT(is_as_expected(icecore_index_reserve(m->index, (int64_t)draw(2 * MAX_VECTORS)), ICECORE_OK));
}

static void validate(const machine *m) {
    char reason[200];
    fail_at_random();
    EXPECT(is_as_expected(icecore_index_validate(m->index, reason, sizeof reason), ICECORE_OK));
}

static void clear(machine *m) {
    EXPECT(icecore_index_clear(m->index) == ICECORE_OK);
    memset(m->present, 0, sizeof m->present);
    m->count = m->next_id = 0;
}

static void copy(machine *m) {
    icecore_index *copied = NULL;
    fail_at_random();
    const icecore_status status = icecore_index_copy(m->index, &copied);
    EXPECT(is_as_expected(status, ICECORE_OK) && (status == ICECORE_OK) == (copied != NULL));
    if (!copied) return;
    icecore_index_free(m->index);
    m->index = copied;
}

/* Written and mapped, and a copy of what was mapped goes on. */
static void write_and_map(machine *m) {
    file f = {.count = 0};
    fail_at_random();
    icecore_status status = icecore_index_write(m->index, write_arrays, &f);
    EXPECT(is_as_expected(status, ICECORE_OK));
    icecore_index *mapped = NULL;
    if (status == ICECORE_OK) {
        char reason[200];
        fail_at_random();
        status = icecore_index_map(&m->options, f.arrays, f.count, &mapped, reason, sizeof reason);
        EXPECT(is_as_expected(status, ICECORE_OK) && (status == ICECORE_OK) == (mapped != NULL));
    }
    if (mapped) {
        icecore_index_free(m->index);
        m->index = mapped;
        expect_vectors(m);
        search(m, (int)draw(2));
        m->index = NULL;
        EXPECT(icecore_index_copy(mapped, &m->index) == ICECORE_OK);
        icecore_index_free(mapped);
    }
    free_arrays(&f);
}

static void step(machine *m) {
    if (m->count > MAX_VECTORS || m->next_id > IDS - MAX_ADDED) clear(m);
    switch (draw(12)) {
    case 0: add(m, (int64_t)draw(MAX_ADDED)); break;
    case 1:
    case 2: add(m, 1024); break;
    case 3: add(m, (int64_t)draw(40)); break;
    case 4: take_some_out(m, (int64_t)draw(20)); break;
    case 5: take_some_out(m, (int64_t)draw(MAX_ADDED)); break;
    case 6: compact(m); break;
    case 7: copy(m); break;
    case 8: write_and_map(m); break;
    case 9:
        reserve(m);
        validate(m);
        break;
    default: search(m, (int)draw(2));
    }
}

static void run(machine *m) {
    m->options = (icecore_index_options){.dim = DIM,
                                         .metric = draw(2) ? ICECORE_INNER_PRODUCT : ICECORE_SQUARED_DISTANCE,
                                         .composites = (int)draw(2),
                                         .simples = 3,
                                         .levels = 1 + (int)draw(3),
                                         .dtype = draw(3) ? ICECORE_FLOAT32 : ICECORE_BFLOAT16,
                                         .seed = draw(9)};
    EXPECT(icecore_index_create(&m->options, &m->index) == ICECORE_OK);
    for (int i = 0; i < STEPS; i++) {
        check_at("metric %d, composites %d, levels %d, dtype %d, step %d", (int)m->options.metric,
                 m->options.composites, m->options.levels, (int)m->options.dtype, i);
        step(m);
        expect_vectors(m);
    }
    icecore_index_free(m->index);
}

static void any_order(void) {
    const long machines = MACHINES * test_factor();
    for (long i = 0; i < machines; i++) {
        machine *m = calloc(1, sizeof *m);
        run(m);
        free(m);
    }
}

void any_order_index_tests(void) {
    check_run("index: calls in any order, of which some fail, lose nothing", any_order);
}
