/* Attention to listed keys is the formula with a mask: the log of how often a key is listed, -inf where it is not. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "naive.h"

typedef struct {
    problem s;
    icecore_indices x;
    int64_t extent[4]; /* batch, key heads, members, queries: 1 where lists are shared */
} listed;

static void set_index(const icecore_indices *x, int64_t offset, int64_t index) {
    if (x->is_int64) ((int64_t *)(uintptr_t)x->data)[offset] = index;
    else ((int32_t *)(uintptr_t)x->data)[offset] = (int32_t)index;
}

static int64_t offset_of(const icecore_indices *x, int64_t batch, int64_t key_head, int64_t member, int64_t query,
                         int64_t n) {
    return batch * x->batch_stride + key_head * x->key_head_stride + member * x->member_stride + query * x->row_stride +
           n * x->index_stride;
}

/* Random lists of exactly as many numbers as there must be, of blocks where l->x.block says so; `shared`: bit i shares
 * along axis i. */
static void listed_allocate(listed *l, int64_t count, int is_int64, int shared) {
    icecore_attention *p = &l->s.p;
    problem_allocate(&l->s);
    const int64_t extent[4] = {p->batch, p->key_heads, p->query_heads / p->key_heads, p->queries};
    int64_t strides[4], size = count;
    const int64_t block = l->x.block, limit = block ? (p->keys + block - 1) / block : p->keys;
    for (int axis = 3; axis >= 0; axis--) {
        l->extent[axis] = shared >> axis & 1 ? 1 : extent[axis];
        strides[axis] = l->extent[axis] > 1 ? size : 0;
        size *= l->extent[axis];
    }
    l->x = (icecore_indices){malloc((size_t)(size ? size : 1) * (is_int64 ? 8 : 4)),
                             is_int64,
                             count,
                             block,
                             strides[0],
                             strides[1],
                             strides[2],
                             strides[3],
                             1};
    uint64_t random = 3;
    for (int64_t i = 0; i < size; i++)
        set_index(&l->x, i, next_random(&random) % 4 == 0 ? -1 : (int64_t)(next_random(&random) >> 20) % limit);
}

static void listed_free(listed *l) {
    free((void *)(uintptr_t)l->x.data);
    problem_free(&l->s);
}

static void expect_listed(listed *l) {
    icecore_attention *p = &l->s.p;
    int64_t place = -5, group = p->query_heads / p->key_heads;
    check_at("dtype %d, heads %d of %d, queries %d, keys %d, dim %d, value_dim %d, causal %d, count %d, %d bytes, "
             "block %d, strides %d %d %d %d",
             (int)p->dtype, (int)p->query_heads, (int)p->key_heads, (int)p->queries, (int)p->keys, (int)p->dim,
             (int)p->value_dim, p->causal, (int)l->x.count, l->x.is_int64 ? 8 : 4, (int)l->x.block,
             (int)l->x.batch_stride, (int)l->x.key_head_stride, (int)l->x.member_stride, (int)l->x.row_stride);
    EXPECT(icecore_attend_indices(p, &l->x, &place) == ICECORE_OK);
    EXPECT(place == -5);
    float *mask = calloc((size_t)(p->batch * p->query_heads * p->queries * p->keys + 1), sizeof *mask), *row = mask;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->query_heads; h++)
            for (int64_t i = 0; i < p->queries; i++, row += p->keys) {
                for (int64_t n = 0; n < l->x.count; n++) {
                    int64_t at = offset_of(&l->x, b, h / group, h % group, i, n);
                    int64_t index = l->x.is_int64 ? ((const int64_t *)l->x.data)[at] : ((const int32_t *)l->x.data)[at];
                    const int64_t size = l->x.block ? l->x.block : 1;
                    for (int64_t j = index * size; index >= 0 && j < p->keys && j < (index + 1) * size; j++)
                        row[j] += 1.0f;
                }
                for (int64_t j = 0; j < p->keys; j++) row[j] = logf(row[j]);
            }
    icecore_attention before = *p;
    p->mask_kind = ICECORE_MASK_FLOAT32, p->mask = mask;
    p->mask_key_stride = 1, p->mask_row_stride = p->keys, p->mask_head_stride = p->keys * p->queries;
    p->mask_batch_stride = p->mask_head_stride * p->query_heads;
    expect_attention(&l->s, 0);
    *p = before;
    free(mask);
}

static listed small(int64_t group) {
    listed l = {.s = one_head(5, 140, 6, 7)};
    l.s.p.key_heads = 2;
    l.s.p.query_heads = 2 * group;
    return l;
}

static void sharing(void) {
    static const int64_t groups[] = {1, 3, 9, 50};
    for (int shared = 0; shared < 16; shared++)
        for (int g = 0; g < 4; g++) {
            listed l = small(groups[g]);
            l.s.p.batch = 2;
            l.s.p.causal = g % 2;
            listed_allocate(&l, 30, shared % 2, shared);
            expect_listed(&l);
            listed_free(&l);
        }
}

static void sizes(void) {
    static const int64_t dims[] = {1, 17, 64, ICECORE_MAX_DIM}, counts[] = {0, 1, 127, 128, 129, 400};
    for (int d = 0; d < 4; d++)
        for (int c = 0; c < 6; c++)
            for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
                for (int64_t group = 2; group <= 10; group += 8) {
                    listed l = {.s = one_head(2, 60, dims[d], dims[3 - d])};
                    l.s.p.query_heads = group;
                    l.s.p.dtype = (icecore_dtype)dtype;
                    l.s.p.causal = c % 2;
                    l.s.pad = 3 * (d % 2);
                    l.s.layout = c % 2 ? ROWS_FIRST : HEADS_FIRST;
                    listed_allocate(&l, counts[c], d % 2, 4);
                    expect_listed(&l);
                    listed_free(&l);
                }
}

/* Of neighbouring keys, the last of them fewer; single ones, and more keys than there are. */
static void blocks(void) {
    static const int64_t blocks[] = {1, 3, 16, 64, 200}, counts[] = {0, 1, 5, 40};
    for (int i = 0; i < 5; i++)
        for (int c = 0; c < 4; c++)
            for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
                for (int64_t group = 2; group <= 50; group += 24) {
                    listed l = {.s = one_head(7, 150, 32, 16), .x.block = blocks[i]};
                    l.s.p.query_heads = group;
                    l.s.p.dtype = (icecore_dtype)dtype;
                    l.s.p.causal = c % 2;
                    l.s.pad = 3 * (c % 2);
                    listed_allocate(&l, counts[c], i % 2, c % 2 ? 4 : 0);
                    expect_listed(&l);
                    listed_free(&l);
                }
}

static void bad_indices(void) {
    static const int64_t wrong[] = {140, -2, INT32_MAX, INT32_MIN, (int64_t)1 << 40, INT64_MAX, INT64_MIN};
    for (int shared = 0; shared < 16; shared++)
        for (int w = 0; w < 7; w++) {
            listed l = small(3);
            l.s.p.batch = 2;
            listed_allocate(&l, 9, w > 3 || shared % 2, shared);
            /* the last list along every axis that has several */
            int64_t at[4], place = -5, wanted = 0;
            const int64_t extent[4] = {2, 2, 3, 5};
            for (int axis = 0; axis < 4; axis++) {
                at[axis] = l.extent[axis] - 1;
                wanted = wanted * extent[axis] + at[axis];
            }
            int64_t offset = offset_of(&l.x, at[0], at[1], at[2], at[3], 7);
            set_index(&l.x, offset, wrong[w]);
            set_index(&l.x, offset + 1, 140);
            check_at("shared %d, index %lld", shared, (long long)wrong[w]);
            EXPECT(icecore_attend_indices(&l.s.p, &l.x, &place) == ICECORE_ERROR_INDEX);
            EXPECT(place == wanted * 9 + 7);
            EXPECT(problem_is_clear(&l.s));
            listed_free(&l);
        }
}

static void arguments(void) {
    listed l = small(1);
    listed_allocate(&l, 4, 0, 0);
    int64_t place = -5;
    icecore_indices none = l.x, negative = l.x, backwards = l.x;
    icecore_attention windowed = l.s.p, masked = l.s.p, headless = l.s.p;
    const uint8_t keep = 1;
    none.data = NULL;
    negative.count = -1;
    backwards.block = -1;
    windowed.window_right = 5;
    masked.mask_kind = ICECORE_MASK_BOOL;
    masked.mask = &keep;
    headless.key_heads = 0;
    EXPECT(icecore_attend_indices(&l.s.p, &none, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&l.s.p, &negative, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&l.s.p, &backwards, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&windowed, &l.x, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&masked, &l.x, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&headless, &l.x, &place) == ICECORE_ERROR_VALUE);
    EXPECT(problem_is_clear(&l.s));
    EXPECT(place == -5);
    listed_free(&l);
}

/* ---- Indexers ---- */

enum { HEADS = 50, QUERIES = 3, KEYS = 140, DIM = 20 };

typedef struct {
    icecore_indexer x;
    problem s; /* its queries and keys, as those of attention */
    float weights[2 * QUERIES * HEADS];
    int32_t indices[2 * QUERIES * KEYS];
} indexed;

static void indexed_allocate(indexed *own, icecore_dtype dtype, int64_t heads, int64_t count) {
    uint64_t random = 11;
    own->s = one_head(QUERIES, KEYS, DIM, 1);
    own->s.p.dtype = dtype;
    own->s.p.batch = 2;
    own->s.p.query_heads = heads;
    problem_allocate(&own->s);
    const icecore_attention *p = &own->s.p;
    for (int64_t i = 0; i < 2 * QUERIES * HEADS; i++) own->weights[i] = random_float(&random);
    for (int64_t i = 0; i < 2 * QUERIES * KEYS; i++) own->indices[i] = -5;
    own->x = (icecore_indexer){.dtype = dtype,
                               .batch = 2,
                               .heads = heads,
                               .queries = QUERIES,
                               .keys = KEYS,
                               .dim = DIM,
                               .query = p->query,
                               .key = p->key,
                               .weights = own->weights,
                               .causal = 1,
                               .count = count,
                               .indices = own->indices};
}

static double indexer_score(const indexed *own, int64_t batch, int64_t query, int64_t key) {
    const icecore_indexer *x = &own->x;
    double score = 0.0;
    for (int64_t h = 0; h < x->heads; h++) {
        double product = 0.0;
        for (int64_t t = 0; t < DIM; t++)
            product += element_get(&x->query, x->dtype, element_index(&x->query, batch, h, query, t)) *
                       element_get(&x->key, x->dtype, element_index(&x->key, batch, 0, key, t));
        if (product > 0.0) score += (double)x->weights[(batch * QUERIES + query) * x->heads + h] * product;
    }
    return score;
}

/* So many keys, ascending and then -1, and none that is left out has a clearly larger score. */
static void expect_row(const indexed *own, int64_t batch, int64_t query) {
    const int64_t count = own->x.count, visible = KEYS - QUERIES + query + 1, kept = visible < count ? visible : count;
    const int32_t *row = own->indices + (batch * QUERIES + query) * count;
    double smallest = INFINITY;
    char chosen[KEYS] = {0};
    for (int64_t n = 0; n < count; n++) {
        if (n >= kept) {
            EXPECT(row[n] == -1);
            continue;
        }
        EXPECT(row[n] >= 0 && row[n] < visible && (n == 0 || row[n] > row[n - 1]));
        if (row[n] < 0 || row[n] >= visible) return;
        chosen[row[n]] = 1;
        smallest = fmin(smallest, indexer_score(own, batch, query, row[n]));
    }
    for (int64_t j = 0; j < visible; j++) EXPECT(chosen[j] || indexer_score(own, batch, query, j) < smallest + 1e-4);
}

static void indexers(void) {
    static const int64_t heads[] = {1, 3, 48, HEADS}, counts[] = {1, 16, 139, KEYS};
    static indexed own;
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++)
        for (int h = 0; h < 4; h++)
            for (int c = 0; c < 4; c++) {
                indexed_allocate(&own, (icecore_dtype)dtype, heads[h], counts[c]);
                check_at("dtype %d, heads %d, count %d", dtype, (int)heads[h], (int)counts[c]);
                EXPECT(icecore_indexer_top_k(&own.x) == ICECORE_OK);
                for (int64_t i = 0; i < 2 * QUERIES; i++) expect_row(&own, i / QUERIES, i % QUERIES);
                problem_free(&own.s);
            }
}

static void expect_indexer_refused(const icecore_indexer *x, const char *what) {
    check_at("%s", what);
    EXPECT(icecore_indexer_top_k(x) == ICECORE_ERROR_VALUE);
}

static void indexer_arguments(void) {
    static indexed own;
    indexed_allocate(&own, ICECORE_FLOAT32, 3, 4);
    icecore_indexer x = own.x;
    x.count = 0, expect_indexer_refused(&x, "no keys wanted"), x = own.x;
    x.heads = 0, expect_indexer_refused(&x, "no heads"), x = own.x;
    x.dim = ICECORE_MAX_DIM + 1, expect_indexer_refused(&x, "a large dim"), x = own.x;
    x.keys = -1, expect_indexer_refused(&x, "negative keys"), x = own.x;
    x.weights = NULL, expect_indexer_refused(&x, "no weights"), x = own.x;
    x.indices = NULL, expect_indexer_refused(&x, "no place for indices"), x = own.x;
    x.key.data = NULL, expect_indexer_refused(&x, "no keys");
    for (int i = 0; i < 2 * QUERIES * 4; i++) EXPECT(own.indices[i] == -5);
    problem_free(&own.s);
}

void indices_tests(void) {
    check_run("listed keys: lists shared along any axes", sharing);
    check_run("listed keys: dims, counts on both sides of a block, types, layouts", sizes);
    check_run("listed keys: blocks", blocks);
    check_run("listed keys: bad indices are found before anything is written", bad_indices);
    check_run("listed keys: arguments that cannot be", arguments);
    check_run("indexers: the largest scores", indexers);
    check_run("indexers: arguments that cannot be", indexer_arguments);
}
