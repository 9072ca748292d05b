/* The dynamic index: changes in any order against a plain table, answers against brute force, arrays that lie. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "check.h"
#include "failures.h"
#include "icecore.h"

static float *random_rows(int64_t count, int64_t dim) {
    float *rows = malloc((size_t)(count * dim) * sizeof *rows);
    for (int64_t i = 0; i < count * dim; i++) rows[i] = (float)draw(2001) / 1000.0f - 1.0f;
    return rows;
}

static icecore_index_options options(int64_t dim, icecore_metric metric, int levels, int composites) {
    return (icecore_index_options){
        .dim = dim, .metric = metric, .levels = levels, .composites = composites, .simples = 4, .seed = 7};
}

static icecore_index *create(icecore_index_options o) {
    icecore_index *index = NULL;
    EXPECT(icecore_index_create(&o, &index) == ICECORE_OK);
    return index;
}

static icecore_status add(icecore_index *index, const float *rows, int64_t first_id, int64_t count) {
    int64_t *ids = malloc((size_t)count * sizeof *ids), place = 0;
    for (int64_t i = 0; i < count; i++) ids[i] = first_id + i;
    icecore_status status = icecore_index_add(
        index, &(icecore_addition){.vectors = rows, .ids = ids, .count = count, .threads = 2}, &place);
    free(ids);
    return status;
}

static icecore_index_state state_of(icecore_index *index) {
    icecore_index_state found = {0};
    EXPECT(icecore_index_get_state(index, &found) == ICECORE_OK);
    return found;
}

static void expect_valid(icecore_index *index) {
    char reason[200];
    if (icecore_index_validate(index, reason, sizeof reason) != ICECORE_OK) {
        check_at("%s", reason);
        EXPECT(!"valid");
    }
}

static double score_of(icecore_metric metric, const float *a, const float *b, int64_t dim) {
    double sum = 0.0;
    for (int64_t t = 0; t < dim; t++)
        sum += metric == ICECORE_INNER_PRODUCT ? (double)a[t] * b[t] : ((double)a[t] - b[t]) * ((double)a[t] - b[t]);
    return metric == ICECORE_INNER_PRODUCT ? sum : -sum;
}

/* The best score of each query is that of brute force over rows that are present; ids are present ones. */
static void expect_answers(icecore_index *index, icecore_metric metric, const float *rows, const uint8_t *present,
                           int64_t count, int64_t dim, const icecore_search *search, int must_be_best) {
    enum { QUERIES = 60, MAX_K = 20 };
    float *queries = random_rows(QUERIES, dim), scores[QUERIES * MAX_K];
    int64_t ids[QUERIES * MAX_K], counts[QUERIES], visited[QUERIES], k = search->k, there = 0;
    for (int64_t i = 0; i < count; i++) there += present[i];
    EXPECT(icecore_index_search(index, queries, QUERIES, search, ids, scores, counts, visited) == ICECORE_OK);
    for (int64_t q = 0; q < QUERIES; q++) {
        EXPECT(counts[q] <= k && (!must_be_best || counts[q] == (there < k ? there : k)));
        for (int64_t i = 0; i < k; i++) {
            if (i >= counts[q]) {
                EXPECT(ids[q * k + i] == -1 && isnan(scores[q * k + i]));
                continue;
            }
            int64_t id = ids[q * k + i];
            EXPECT(id >= 0 && id < count && present[id]);
            double sign = metric == ICECORE_INNER_PRODUCT ? 1.0 : -1.0, own = sign * (double)scores[q * k + i];
            EXPECT(fabs(own - score_of(metric, queries + q * dim, rows + id * dim, dim)) < 1e-4);
            EXPECT(i == 0 || own <= sign * (double)scores[q * k + i - 1]);
        }
        if (!must_be_best || there == 0) continue;
        double best = -INFINITY;
        for (int64_t i = 0; i < count; i++)
            if (present[i]) best = fmax(best, score_of(metric, queries + q * dim, rows + i * dim, dim));
        EXPECT(fabs((metric == ICECORE_INNER_PRODUCT ? 1.0 : -1.0) * (double)scores[q * k] - best) < 1e-4);
    }
    free(queries);
}

static void searches(void) {
    static const int64_t dims[] = {1, 3, 32, 65};
    const int64_t count = 2500;
    for (int metric = 0; metric < 2; metric++)
        for (int d = 0; d < 4; d++)
            for (int levels = 1; levels <= 3; levels++)
                for (int composites = 0; composites <= 2; composites += 2) {
                    check_at("metric %d, dim %d, levels %d, composites %d", metric, (int)dims[d], levels, composites);
                    float *rows = random_rows(count, dims[d]);
                    uint8_t *present = malloc((size_t)count);
                    memset(present, 1, (size_t)count);
                    icecore_index *index = create(options(dims[d], (icecore_metric)metric, levels, composites));
                    EXPECT(add(index, rows, 0, count) == ICECORE_OK);
                    expect_valid(index);
                    icecore_search s = {.k = 7, .threads = 2};
                    expect_answers(index, (icecore_metric)metric, rows, present, count, dims[d], &s, 1);
                    s.exact = 1;
                    expect_answers(index, (icecore_metric)metric, rows, present, count, dims[d], &s, 1);
                    s = (icecore_search){.k = 5, .field_of_view = 3, .visit = 100, .retrieve = 9, .threads = 1};
                    expect_answers(index, (icecore_metric)metric, rows, present, count, dims[d], &s, 0);
                    icecore_index_free(index);
                    free(present);
                    free(rows);
                }
}

/* Thousands of changes, one and many at a time, against a table of what is there. */
static void changes(void) {
    enum { IDS = 9000, DIM = 5 };
    for (int variant = 0; variant < 3; variant++) {
        check_at("variant %d", variant);
        icecore_metric metric = variant == 1 ? ICECORE_SQUARED_DISTANCE : ICECORE_INNER_PRODUCT;
        icecore_index *index = create(options(DIM, metric, variant == 2 ? 1 : 2, variant == 2));
        float *rows = random_rows(IDS, DIM);
        uint8_t *present = calloc(IDS, 1);
        int64_t there = 0, place = 0;
        for (int round = 0; round < 4000; round++) {
            int64_t id = (int64_t)draw(IDS);
            if (round % 500 == 499) { /* a long run at once: a segment of its own, unless some of it is there */
                int64_t count = draw(1500) + 1, first = (int64_t)draw((uint64_t)(IDS - count)), clash = 0;
                for (int64_t i = 0; i < count; i++) clash += present[first + i];
                EXPECT(add(index, rows + first * DIM, first, count) == (clash ? ICECORE_ERROR_EXISTS : ICECORE_OK));
                for (int64_t i = 0; i < count && !clash; i++) present[first + i] = 1;
                there += clash ? 0 : count;
            } else if (present[id] && draw(3)) {
                EXPECT(icecore_index_remove(index, &id, 1, 0, 1, &place) == ICECORE_OK);
                present[id] = 0;
                there--;
            } else {
                EXPECT(add(index, rows + id * DIM, id, 1) == (present[id] ? ICECORE_ERROR_EXISTS : ICECORE_OK));
                there += !present[id];
                present[id] = 1;
            }
            if (round % 250 == 0) {
                expect_valid(index);
                icecore_search s = {.k = 20, .threads = 2};
                if (there) expect_answers(index, metric, rows, present, IDS, DIM, &s, 1);
            }
        }
        EXPECT(state_of(index).count == there);
        for (int64_t id = 0; id < IDS; id++) { /* all out, one by one */
            uint8_t is_present;
            EXPECT(icecore_index_contains(index, &id, 1, &is_present) == ICECORE_OK && is_present == present[id]);
            EXPECT(icecore_index_remove(index, &id, 1, 0, 1, &place) ==
                   (present[id] ? ICECORE_OK : ICECORE_ERROR_ABSENT));
        }
        expect_valid(index);
        EXPECT(state_of(index).count == 0);
        EXPECT(icecore_index_compact(index, 1) == ICECORE_OK);
        EXPECT(icecore_index_clear(index) == ICECORE_OK);
        icecore_index_free(index);
        free(present);
        free(rows);
    }
}

static void refusals(void) {
    icecore_index *index = create(options(4, ICECORE_INNER_PRODUCT, 2, 0));
    float *rows = random_rows(3000, 4), vector[8];
    int64_t place = -1, ids[] = {5, 6, 5}, absent[] = {1, 9}, twice[] = {1, 1};
    EXPECT(icecore_index_add(index, &(icecore_addition){.vectors = rows, .ids = ids, .count = 3, .threads = 1},
                             &place) == ICECORE_ERROR_REPEATED &&
           place == 2);
    EXPECT(state_of(index).count == 0);
    EXPECT(add(index, rows, 0, 3) == ICECORE_OK);
    EXPECT(icecore_index_remove(index, absent, 2, 0, 1, &place) == ICECORE_ERROR_ABSENT && place == 1);
    EXPECT(icecore_index_remove(index, twice, 2, 0, 1, &place) == ICECORE_ERROR_REPEATED && place == 1);
    EXPECT(icecore_index_get(index, absent, 2, vector, &place) == ICECORE_ERROR_ABSENT && place == 1);
    EXPECT(state_of(index).count == 3);
    EXPECT(add(index, rows, 2, 2000) == ICECORE_ERROR_EXISTS);
    EXPECT(state_of(index).count == 3 && state_of(index).next_id == 3);
    expect_valid(index);
    icecore_index_free(index);
    free(rows);
    static const icecore_index_options bad[] = {
        {.dim = 0, .simples = 1, .levels = 1},
        {.dim = ICECORE_MAX_INDEX_DIM + 1, .simples = 1, .levels = 1},
        {.dim = 1, .simples = 0, .levels = 1},
        {.dim = 1, .simples = 1, .levels = 0},
        {.dim = 1, .simples = 1, .levels = ICECORE_MAX_LEVELS + 1},
        {.dim = 1, .simples = 1, .levels = 1, .composites = 65},
        {.dim = 1, .simples = 1, .levels = 1, .promotion = 1.0},
        {.dim = 1, .simples = 1, .levels = 1, .promotion = NAN},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        EXPECT(icecore_index_create(&bad[i], &index) == ICECORE_ERROR_VALUE);
}

/* ---- Arrays ---- */

static file arrays_of(icecore_index *index) {
    file f = {.count = 0};
    EXPECT(icecore_index_write(index, write_arrays, &f) == ICECORE_OK);
    return f;
}

static icecore_index *some_index(const icecore_index_options *o, int64_t count) {
    icecore_index *index = create(*o);
    float *rows = random_rows(count + 300, o->dim);
    int64_t place;
    EXPECT(add(index, rows, 0, count) == ICECORE_OK);
    EXPECT(add(index, rows + count * o->dim, count, 300) == ICECORE_OK);
    for (int64_t id = 0; id < count; id += 10) EXPECT(icecore_index_remove(index, &id, 1, 0, 1, &place) == ICECORE_OK);
    free(rows);
    return index;
}

/* Everything that a caller can do with an index that was accepted. */
static void use(icecore_index *index, int64_t dim, int is_mapped) {
    float *queries = random_rows(50, dim), scores[50 * 8];
    int64_t ids[50 * 8], counts[50], place = 0, *all = malloc(5000 * sizeof *all);
    char reason[200];
    const icecore_search searches[] = {{.k = 8}, {.k = 8, .visit = 50, .field_of_view = 2}, {.k = 8, .exact = 1}};
    for (int i = 0; i < 3; i++)
        EXPECT(icecore_index_search(index, queries, 50, &searches[i], ids, scores, counts, NULL) == ICECORE_OK);
    icecore_index_validate(index, reason, sizeof reason);
    int64_t there;
    EXPECT(icecore_index_ids(index, all, 5000, &there) == ICECORE_OK && there <= 5000);
    icecore_index_get(index, all, 1, queries, &place);
    if (!is_mapped) {
        for (int i = 0; i < 40; i++) icecore_index_remove(index, all + i, 1, 0, 1, &place);
        add(index, queries, 1 << 20, 40);
        icecore_index_compact(index, 1);
        icecore_index_search(index, queries, 50, &searches[0], ids, scores, counts, NULL);
    }
    free(all);
    free(queries);
}

static void round_trip(void) {
    for (int variant = 0; variant < 6; variant++) {
        check_at("variant %d", variant);
        const icecore_index_options o = options(6, (icecore_metric)(variant % 2), 1 + variant % 3, variant / 3);
        icecore_index *index = some_index(&o, 2000), *mapped = NULL, *copy = NULL;
        file f = arrays_of(index);
        char reason[200];
        EXPECT(icecore_index_map(&o, f.arrays, f.count, &mapped, reason, sizeof reason) == ICECORE_OK);
        if (mapped) {
            expect_valid(mapped);
            int64_t id = 1, place;
            float row[6] = {0};
            EXPECT(icecore_index_remove(mapped, &id, 1, 0, 1, &place) == ICECORE_ERROR_READ_ONLY);
            EXPECT(icecore_index_add(mapped, &(icecore_addition){.vectors = row, .ids = &id, .count = 1, .threads = 1},
                                     &place) == ICECORE_ERROR_READ_ONLY);
            EXPECT(icecore_index_clear(mapped) == ICECORE_ERROR_READ_ONLY &&
                   icecore_index_compact(mapped, 1) == ICECORE_ERROR_READ_ONLY);
            EXPECT(icecore_index_copy(mapped, &copy) == ICECORE_OK);
            expect_valid(copy);
            float *queries = random_rows(100, 6), scores[3][700];
            int64_t ids[3][700], counts[100];
            icecore_index *all[3] = {index, mapped, copy};
            const icecore_search s = {.k = 7, .field_of_view = 4};
            for (int i = 0; i < 3; i++)
                EXPECT(icecore_index_search(all[i], queries, 100, &s, ids[i], scores[i], counts, NULL) == ICECORE_OK);
            for (int i = 1; i < 3; i++)
                EXPECT(memcmp(ids[0], ids[i], sizeof *ids) == 0 && memcmp(scores[0], scores[i], sizeof *scores) == 0);
            free(queries);
            use(mapped, 6, 1);
            use(copy, 6, 0);
        }
        icecore_index_free(copy);
        icecore_index_free(mapped);
        icecore_index_free(index);
        free_arrays(&f);
    }
}

/* Arrays with anything in them are refused, or are safe to use in every way. */
static void lying_arrays(void) {
    int refused = 0;
    for (int variant = 0; variant < 4; variant++) {
        const icecore_index_options o = options(6, (icecore_metric)(variant % 2), 1 + variant % 3, variant / 2);
        icecore_index *index = some_index(&o, 1500);
        file f = arrays_of(index);
        icecore_index_free(index);
        for (int round = 0; round < 600; round++) {
            const lie told = tell_lie(&f);
            check_at("variant %d, round %d, array %s", variant, round, told.before.name);
            icecore_index *mapped = NULL, *copy = NULL;
            char reason[200] = "";
            if (icecore_index_map(&o, f.arrays, f.count, &mapped, reason, sizeof reason) == ICECORE_OK) {
                use(mapped, 6, 1);
                if (icecore_index_copy(mapped, &copy) == ICECORE_OK &&
                    icecore_index_validate(copy, reason, sizeof reason) == ICECORE_OK)
                    use(copy, 6, 0);
                icecore_index_free(copy);
                icecore_index_free(mapped);
            } else {
                EXPECT(reason[0] != '\0');
                refused++;
            }
            take_back(&told);
        }
        free_arrays(&f);
    }
    EXPECT(refused > 100);
}

/* Numbers near the end of float32's range: scores overflow, ids stay ids. */
static void huge_numbers(void) {
    enum { COUNT = 2000, DIM = 7, K = 30 };
    for (int variant = 0; variant < 6; variant++) {
        icecore_index *index = create(options(DIM, (icecore_metric)(variant % 2), 2, variant / 2 == 1));
        float *rows = random_rows(COUNT, DIM), scores[20 * K], large = variant / 2 == 2 ? 3e38f : 1e30f;
        for (int64_t i = 0; i < COUNT * DIM; i++) rows[i] *= i % 3 || variant / 2 == 2 ? large : 1e-30f;
        EXPECT(add(index, rows, 0, COUNT) == ICECORE_OK);
        int64_t ids[20 * K], counts[20];
        const icecore_search searches[] = {{.k = K}, {.k = K, .exact = 1}, {.k = K, .visit = 500, .field_of_view = 9}};
        for (int i = 0; i < 3; i++) {
            EXPECT(icecore_index_search(index, rows, 20, &searches[i], ids, scores, counts, NULL) == ICECORE_OK);
            for (int64_t j = 0; j < 20 * K; j++)
                EXPECT(j % K < counts[j / K] ? ids[j] >= 0 && ids[j] < COUNT : ids[j] == -1);
        }
        icecore_index_free(index);
        free(rows);
    }
}

static int stop_at_half(void *context, double done) {
    (void)context;
    return done > 0.5;
}

/* A build that is stopped leaves the index as it was. */
static void cancelled(void) {
    icecore_index *index = create(options(8, ICECORE_INNER_PRODUCT, 2, 0));
    float *rows = random_rows(4000, 8);
    int64_t *ids = malloc(4000 * sizeof *ids), place;
    for (int64_t i = 0; i < 4000; i++) ids[i] = i;
    EXPECT(add(index, rows, 0, 100) == ICECORE_OK);
    for (int64_t i = 0; i < 3900; i++) ids[i] = 100 + i;
    EXPECT(icecore_index_add(
               index,
               &(icecore_addition){.vectors = rows, .ids = ids, .count = 3900, .threads = 2, .progress = stop_at_half},
               &place) == ICECORE_INTERRUPTED);
    EXPECT(state_of(index).count == 100);
    expect_valid(index);
    EXPECT(icecore_index_add(index, &(icecore_addition){.vectors = rows, .ids = ids, .count = 3900, .threads = 2},
                             &place) == ICECORE_OK);
    EXPECT(state_of(index).count == 4000);
    expect_valid(index);
    icecore_index_free(index);
    free(ids);
    free(rows);
}

enum { CHECKING, COPYING, WRITING };

static icecore_status read_all(icecore_index *index, int how) {
    char reason[200];
    icecore_index *copied = NULL;
    file f = {.count = 0};
    if (how == CHECKING) return icecore_index_validate(index, reason, sizeof reason);
    const icecore_status status =
        how == COPYING ? icecore_index_copy(index, &copied) : icecore_index_write(index, write_arrays, &f);
    icecore_index_free(copied);
    free_arrays(&f);
    return status;
}

/* Stopped at the first question whether to go on, at the second and so on, until none is left. */
static void interrupted_reading(void) {
    for (int lists = 0; lists < 2; lists++)
        for (int how = CHECKING; how <= WRITING; how++) {
            icecore_index *index = create(options(4, ICECORE_SQUARED_DISTANCE, 2, lists));
            float *rows = random_rows(5000, 4);
            int64_t some[20], place;
            for (int64_t i = 0; i < 20; i++) some[i] = i;
            EXPECT(add(index, rows, 0, 5000) == ICECORE_OK);
            EXPECT(icecore_index_remove(index, some, 20, 0, 1, &place) == ICECORE_OK);
            long questions = 0;
            for (icecore_status status = ICECORE_INTERRUPTED; status == ICECORE_INTERRUPTED; questions++) {
                check_at("lists %d, how %d, question %ld", lists, how, questions);
                interrupt_after(questions);
                status = read_all(index, how);
                EXPECT(is_as_expected(status, ICECORE_OK));
            }
            EXPECT(questions > 5);
            expect_valid(index);
            free(rows);
            icecore_index_free(index);
        }
}

void index_tests(void) {
    check_run("index: searches of all kinds", searches);
    check_run("index: changes in any order", changes);
    check_run("index: what is refused changes nothing", refusals);
    check_run("index: arrays and back", round_trip);
    check_run("index: arrays that lie", lying_arrays);
    check_run("index: huge numbers", huge_numbers);
    check_run("index: a build that is stopped", cancelled);
    check_run("index: checking, copying and writing can be interrupted", interrupted_reading);
}
