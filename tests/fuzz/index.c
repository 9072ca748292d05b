/* An index over any arrays: it is refused with a reason, or is safe in every use; what was valid stays valid. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

enum { QUERIES = 5, K = 4, MAX_ROWS = 1200 };

static float rows[MAX_ROWS * 256]; /* zeros and a few numbers: what is added and asked for */

static int is_valid(icecore_index *index) {
    char reason[256];
    const icecore_status status = icecore_index_validate(index, reason, sizeof reason);
    PROMISE(status == ICECORE_OK || (status == ICECORE_ERROR_VALUE && reason[0]));
    return status == ICECORE_OK;
}

static void expect_valid(icecore_index *index) {
    char reason[256];
    if (icecore_index_validate(index, reason, sizeof reason) == ICECORE_OK) return;
    fprintf(stderr, "%s\n", reason);
    PROMISE(!"valid");
}

static void search(icecore_index *index) {
    float scores[QUERIES * K];
    int64_t ids[QUERIES * K], counts[QUERIES], visited[QUERIES], some[] = {0, 1, 2, 7, -1, INT64_MAX};
    const icecore_search searches[] = {
        {.k = K, .exact = 1, .threads = 1},
        {.k = K, .threads = 1},
        {.k = K, .visit = 20, .retrieve = 6, .field_of_view = 2, .threads = 1},
        {.k = K, .field_of_view = 2, .extend = 1, .threads = 1},
        {.k = K, .allowed = some, .allowed_count = 6, .threads = 1},
        {.k = K, .excluded = some, .excluded_count = 6, .threads = 1},
    };
    for (size_t i = 0; i < sizeof searches / sizeof *searches; i++) {
        PROMISE(icecore_index_search(index, rows, QUERIES, &searches[i], ids, scores, counts, visited) == ICECORE_OK);
        for (int q = 0; q < QUERIES; q++) {
            uint8_t present[K] = {0};
            PROMISE(counts[q] >= 0 && counts[q] <= K && visited[q] >= 0);
            PROMISE(icecore_index_contains(index, ids + q * K, counts[q], present) == ICECORE_OK);
            for (int64_t i = 0; i < counts[q]; i++) PROMISE(present[i]);
        }
    }
}

static int64_t *all_ids(icecore_index *index, int64_t *count) {
    PROMISE(icecore_index_ids(index, NULL, 0, count) == ICECORE_OK);
    int64_t *ids = malloc((size_t)(*count + 1) * sizeof *ids);
    PROMISE(icecore_index_ids(index, ids, *count, count) == ICECORE_OK);
    return ids;
}

static void read(icecore_index *index, int64_t dim) {
    int64_t count, place = 0;
    icecore_index_state state;
    PROMISE(icecore_index_get_state(index, &state) == ICECORE_OK);
    int64_t *ids = all_ids(index, &count);
    PROMISE(count == state.count);
    float *found = malloc((size_t)(count * dim + 1) * sizeof *found);
    PROMISE(icecore_index_get(index, ids, count, found, &place) == ICECORE_OK);
    free(found);
    free(ids);
    search(index);
}

/* What is valid may be written and mapped again. */
static void write_and_map(icecore_index *index, const icecore_index_options *o) {
    file f = {.count = 0};
    icecore_index *again = NULL;
    char reason[256];
    const int was_valid = is_valid(index);
    PROMISE(icecore_index_write(index, write_arrays, &f) == ICECORE_OK);
    const icecore_status status = icecore_index_map(o, f.arrays, f.count, &again, reason, sizeof reason);
    if (status != ICECORE_OK) fprintf(stderr, "%s\n", reason);
    PROMISE(status == ICECORE_OK);
    if (was_valid) expect_valid(again);
    search(again);
    icecore_index_free(again);
    free_arrays(&f);
}

static void step(icecore_index *index, uint8_t what) {
    int64_t count, place = 0, *ids = all_ids(index, &count), some = 1 + what / 8;
    if (some > count) some = count;
    icecore_addition counting = {.vectors = rows, .count = 3, .threads = 1};
    const icecore_addition named = {.vectors = rows, .ids = ids, .count = some, .threads = 1};
    icecore_addition replacing = named;
    replacing.replace = 1;
    switch (what % 8) {
    case 0: icecore_index_add(index, &counting, &place); break;
    case 1: icecore_index_add(index, &replacing, &place); break;
    case 2: icecore_index_add(index, &named, &place); break;
    case 3: icecore_index_remove(index, ids, some, 0, 1, &place); break;
    case 4: icecore_index_remove(index, ids, count / 2, 1, 1, &place); break;
    case 5: icecore_index_compact(index, 1); break;
    case 6: /* enough to seal, now and then */
        counting.count = what == 6 ? MAX_ROWS : 20;
        icecore_index_add(index, &counting, &place);
        break;
    default: icecore_index_reserve(index, count + some);
    }
    free(ids);
}

static void change(icecore_index *index, const uint8_t *option) {
    for (int i = 0; i < STEPS && option[AT_STEPS + i]; i++) {
        const int was_valid = is_valid(index);
        step(index, option[AT_STEPS + i]);
        if (was_valid) expect_valid(index);
    }
    search(index);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    input in;
    read_input(&in, bytes, size);
    choose_isa(in.option);
    if (!rows[0])
        for (int i = 0; i < MAX_ROWS * 256; i++) rows[i] = (float)(i * 37 % 101 - 50) / 16.0f;
    const icecore_index_options o = index_options(in.option);
    icecore_index *mapped = NULL, *copy = NULL;
    char reason[256] = "";
    const icecore_status status = icecore_index_map(&o, in.array, in.count, &mapped, reason, sizeof reason);
    PROMISE(status == ICECORE_OK || (status == ICECORE_ERROR_VALUE && reason[0] && !mapped));
    if (mapped) {
        is_valid(mapped);
        read(mapped, o.dim);
        write_and_map(mapped, &o);
        PROMISE(icecore_index_copy(mapped, &copy) == ICECORE_OK);
        icecore_index_free(mapped);
    }
    free_input(&in); /* a copy has memory of its own */
    if (copy) {
        change(copy, in.option);
        write_and_map(copy, &o);
        read(copy, o.dim);
        icecore_index_free(copy);
    }
    return 0;
}
