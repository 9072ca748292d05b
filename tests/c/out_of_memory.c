/* When memory runs out, at whichever allocation, the call says so and leaves nothing behind. */
#include <stdlib.h>

#include "arrays.h"
#include "check.h"
#include "failures.h"
#include "tensors.h"

static problem some_keys(int causal, int64_t queries) {
    problem s =
        one_head(queries, queries == 1 ? 5000 : 100, 32, 32); /* widths that are rounded and split, where any are */
    s.p.query_heads = s.p.key_heads = 2;
    s.p.causal = causal;
    s.p.threads = 1;
    problem_allocate(&s);
    return s;
}

static icecore_status exact(const problem *s) { return icecore_attend_exact(&s->p); }

static icecore_status rounded(const problem *s) {
    const icecore_near_far options = {.tolerance = 0.1f};
    const int can_be = icecore_multiplies_bfloat16(s->p.dim, s->p.value_dim);
    return can_be ? icecore_attend_rounded(&s->p, &options, NULL) : icecore_attend_exact(&s->p);
}

static icecore_status near_far(const problem *s) {
    const icecore_near_far options = {.near_keys = 4, .block = 8, .cell_size = 2};
    return icecore_attend_near_far(&s->p, &options, NULL);
}

static icecore_status top_k(const problem *s) { return icecore_attend_top_k(&s->p, 4, NULL); }
static icecore_status block_sparse(const problem *s) { return icecore_attend_block_sparse(&s->p, 4, NULL); }
static icecore_status minference(const problem *s) { return icecore_attend_minference(&s->p, 4, 8, NULL); }
static icecore_status xattention(const problem *s) { return icecore_attend_xattention(&s->p, 8, 0.5, NULL); }
static icecore_status zeta(const problem *s) { return icecore_attend_zeta(&s->p, 4, 0, NULL); }
static icecore_status vattention(const problem *s) {
    const icecore_vattention options = {4, 2, 2, 0.1, 0.1, 0};
    return icecore_attend_vattention(&s->p, &options, NULL);
}
static icecore_status retroinfer(const problem *s) {
    const icecore_retroinfer options = {30, 2, 3, 0.1, 0.1, 0};
    return icecore_attend_retroinfer(&s->p, &options, NULL);
}
static icecore_status arkvale(const problem *s) { return icecore_attend_arkvale(&s->p, 4, 8, NULL); }
static icecore_status pdci(const problem *s) { return icecore_attend_pdci(&s->p, 4, 8, 0, NULL); }

static icecore_status sparq(const problem *s) { return icecore_attend_sparq(&s->p, 4, 2, 1, NULL); }

static icecore_status magicpig(const problem *s) { return icecore_attend_magicpig(&s->p, 3, 4, 1, 2, 0, NULL); }

static icecore_status indexed(const problem *s) {
    const int32_t list[3] = {5, -1, 7};
    const icecore_indices indices = {.data = list, .count = 3, .index_stride = 1};
    int64_t place;
    return icecore_attend_indices(&s->p, &indices, &place);
}

static icecore_status indexer(const problem *s) {
    const icecore_attention *p = &s->p;
    const float weights[1024] = {0};
    int32_t indices[4096];
    const icecore_indexer x = {.dtype = p->dtype,
                               .batch = p->batch,
                               .heads = p->query_heads / p->key_heads,
                               .queries = p->queries,
                               .keys = p->keys,
                               .dim = p->dim,
                               .query = p->query,
                               .key = p->key,
                               .weights = weights,
                               .count = 4,
                               .indices = indices};
    EXPECT(x.batch * x.queries * x.heads <= 1024 && x.batch * x.queries * x.count <= 4096);
    return icecore_indexer_top_k(&x);
}

static icecore_status segment(const problem *s) {
    icecore_segment *built = NULL;
    icecore_segment_source source = segment_source(s);
    source.cell_size = 2;
    icecore_status status = icecore_segment_build(&source, &built);
    EXPECT((status == ICECORE_OK) == (built != NULL));
    icecore_segment_free(built);
    return status;
}

/* Appends, seals, forks, is written and mapped, forgets; whatever fails leaves a valid cache. */
static icecore_status use_cache(const problem *s, icecore_dtype dtype) {
    const icecore_attention *p = &s->p;
    const icecore_cache_options o = {.heads = 2,
                                     .dim = p->dim,
                                     .value_dim = p->value_dim,
                                     .dtype = dtype,
                                     .near_keys = 4,
                                     .block = 8,
                                     .sinks = 3,
                                     .cell_size = 2};
    icecore_attention last = *p;
    icecore_cache *cache = NULL, *fork = NULL;
    icecore_status status = icecore_cache_create(&o, &cache);
    last.queries = last.batch = 1;
    for (int64_t i = 0; i < 60 && status == ICECORE_OK; i++) {
        icecore_tensor key = p->key, value = p->value, query = {0};
        key.data = (float *)key.data + i * key.row_stride;
        value.data = (float *)value.data + i * value.row_stride;
        status = icecore_cache_append(cache, p->dtype, key, value, i % 2 ? p->query : query, p->query_heads, 1);
        if (status == ICECORE_OK) status = icecore_cache_attend(&cache, 1, NULL, &last, NULL, NULL);
        if (i == 40 && status == ICECORE_OK) status = icecore_cache_fork(cache, &fork);
    }
    icecore_cache *both[2] = {cache, fork};
    last.query.batch_stride = last.out.batch_stride = 0; /* the same queries, into the same place */
    last.threads = 1;
    if (status == ICECORE_OK) status = icecore_cache_attend(both, 2, NULL, &last, NULL, NULL);
    file f = {.count = 0};
    if (status == ICECORE_OK) status = icecore_cache_write(&cache, 1, write_arrays, &f);
    for (int own = 0; own < 2 && status == ICECORE_OK; own++) {
        icecore_cache *mapped;
        char reason[200];
        status = icecore_cache_map(&o, f.arrays, f.count, own, &mapped, 1, reason, sizeof reason);
        EXPECT((status == ICECORE_OK) == (mapped != NULL));
        icecore_cache_free(mapped);
    }
    free_arrays(&f);
    if (status == ICECORE_OK) status = icecore_cache_truncate(cache, 20, 1);
    fail_nothing();
    EXPECT(!cache || is_valid_cache(cache));
    icecore_cache_free(fork);
    icecore_cache_free(cache);
    return status;
}

static icecore_status cache_of(const problem *s) { return use_cache(s, ICECORE_FLOAT32); }
static icecore_status short_cache_of(const problem *s) { return use_cache(s, ICECORE_BFLOAT16); }

/* Of keys that share a large offset. */
static icecore_status offset_cache_of(const problem *s) {
    for (int64_t i = 0; i < 2 * s->p.keys; i++)
        ((float *)s->p.key.data)[i * s->p.key.row_stride] = 1000.0f + (float)(i % 3);
    return use_cache(s, ICECORE_INT8);
}

/* Adds, merges, searches, copies, is written and mapped; whatever fails leaves a valid index. */
static icecore_status index_of(const problem *s) {
    const icecore_index_options o = {.dim = s->p.dim, .simples = 3, .levels = 2, .composites = (int)s->p.queries % 2};
    enum { ROWS = 1100 };
    float *rows = calloc(ROWS * (size_t)o.dim, sizeof *rows), scores[3];
    int64_t *ids = calloc(ROWS, sizeof *ids), found[3], counts[1], place;
    icecore_index *index = NULL, *copy = NULL;
    for (int64_t i = 0; i < ROWS * o.dim; i++) rows[i] = (float)(i * 7919 % 1000) / 1000.0f;
    icecore_status status = icecore_index_create(&o, &index);
    for (int part = 0; part < 3 && status == ICECORE_OK; part++) {
        for (int64_t i = 0; i < ROWS; i++) ids[i] = part * ROWS + i;
        status = icecore_index_add(index, &(icecore_addition){.vectors = rows, .ids = ids, .count = ROWS, .threads = 1},
                                   &place);
    }
    const icecore_search search = {.k = 3, .threads = 1};
    if (status == ICECORE_OK) status = icecore_index_remove(index, ids, 900, 0, 1, &place);
    if (status == ICECORE_OK) status = icecore_index_search(index, rows, 1, &search, found, scores, counts, NULL);
    if (status == ICECORE_OK) status = icecore_index_copy(index, &copy);
    file f = {.count = 0};
    char reason[200];
    if (status == ICECORE_OK) status = icecore_index_write(index, write_arrays, &f);
    if (status == ICECORE_OK) {
        icecore_index *mapped = NULL;
        status = icecore_index_map(&o, f.arrays, f.count, &mapped, reason, sizeof reason);
        EXPECT((status == ICECORE_OK) == (mapped != NULL));
        icecore_index_free(mapped);
    }
    free_arrays(&f);
    if (status == ICECORE_OK) status = icecore_index_compact(index, 1);
    fail_nothing();
    if (index) EXPECT(icecore_index_validate(index, reason, sizeof reason) == ICECORE_OK);
    icecore_index_free(copy);
    icecore_index_free(index);
    free(ids);
    free(rows);
    return status;
}

/* Fails at the first allocation, the second and so on, until there is enough.  (Scratch of an earlier call may be
 * enough at once.) */
static void expect_errors(icecore_status (*call)(const problem *s), int causal, int64_t queries) {
    problem s = some_keys(causal, queries);
    icecore_status status = ICECORE_ERROR_MEMORY;
    long enough = 0;
    for (; enough < 10000 && status == ICECORE_ERROR_MEMORY; enough++) {
        fail_allocation(enough, 0);
        status = call(&s);
    }
    fail_nothing();
    EXPECT(status == ICECORE_OK);
    problem_free(&s);
}

static void exact_attention(void) {
    expect_errors(exact, 0, 1);
    expect_errors(exact, 0, 50);
    expect_errors(exact, 0, 300);
}

static void near_far_attention(void) {
    expect_errors(rounded, 0, 50);
    expect_errors(near_far, 0, 50);
    expect_errors(near_far, 1, 50);
    expect_errors(pdci, 0, 50);
    expect_errors(top_k, 0, 50);
    expect_errors(sparq, 0, 50);
    expect_errors(magicpig, 0, 50);
    expect_errors(block_sparse, 0, 50);
    expect_errors(minference, 1, 50);
    expect_errors(xattention, 1, 50);
    expect_errors(zeta, 0, 50);
    expect_errors(vattention, 0, 50);
    expect_errors(arkvale, 0, 50);
    expect_errors(retroinfer, 0, 50);
}

static void listed_keys(void) {
    expect_errors(indexed, 1, 50);
    expect_errors(indexer, 1, 50);
}

static void segments(void) { expect_errors(segment, 0, 50); }

static void caches(void) {
    expect_errors(cache_of, 0, 65);
    expect_errors(short_cache_of, 0, 65);
    expect_errors(offset_cache_of, 0, 65);
}

static void indices(void) {
    expect_errors(index_of, 0, 2);
    expect_errors(index_of, 0, 3);
}

void out_of_memory_tests(void) {
    check_run("out of memory: exact attention", exact_attention);
    check_run("out of memory: near/far attention and selectors", near_far_attention);
    check_run("out of memory: listed keys", listed_keys);
    check_run("out of memory: segments", segments);
    check_run("out of memory: indices", indices);
    check_run("out of memory: caches", caches);
}
