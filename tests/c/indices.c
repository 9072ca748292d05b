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

/* Random lists of exactly as many numbers as there must be; `shared`: bit i shares along axis i. */
static void listed_allocate(listed *l, int64_t count, int is_int64, int shared) {
    icecore_attention *p = &l->s.p;
    problem_allocate(&l->s);
    const int64_t extent[4] = {p->batch, p->key_heads, p->query_heads / p->key_heads, p->queries};
    int64_t strides[4], size = count;
    for (int axis = 3; axis >= 0; axis--) {
        l->extent[axis] = shared >> axis & 1 ? 1 : extent[axis];
        strides[axis] = l->extent[axis] > 1 ? size : 0;
        size *= l->extent[axis];
    }
    l->x = (icecore_indices){malloc((size_t)(size ? size : 1) * (is_int64 ? 8 : 4)),
                             is_int64,
                             count,
                             strides[0],
                             strides[1],
                             strides[2],
                             strides[3],
                             1};
    uint64_t random = 3;
    for (int64_t i = 0; i < size; i++)
        set_index(&l->x, i, next_random(&random) % 4 == 0 ? -1 : (int64_t)(next_random(&random) >> 20) % p->keys);
}

static void listed_free(listed *l) {
    free((void *)(uintptr_t)l->x.data);
    problem_free(&l->s);
}

static void expect_listed(listed *l) {
    icecore_attention *p = &l->s.p;
    int64_t place = -5, group = p->query_heads / p->key_heads;
    check_at("dtype %d, heads %d of %d, queries %d, keys %d, dim %d, value_dim %d, causal %d, count %d, %d bytes, "
             "strides %d %d %d %d",
             (int)p->dtype, (int)p->query_heads, (int)p->key_heads, (int)p->queries, (int)p->keys, (int)p->dim,
             (int)p->value_dim, p->causal, (int)l->x.count, l->x.is_int64 ? 8 : 4, (int)l->x.batch_stride,
             (int)l->x.key_head_stride, (int)l->x.member_stride, (int)l->x.row_stride);
    EXPECT(icecore_attend_indices(p, &l->x, &place) == ICECORE_OK);
    EXPECT(place == -5);
    float *mask = calloc((size_t)(p->batch * p->query_heads * p->queries * p->keys + 1), sizeof *mask), *row = mask;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->query_heads; h++)
            for (int64_t i = 0; i < p->queries; i++, row += p->keys) {
                for (int64_t n = 0; n < l->x.count; n++) {
                    int64_t at = offset_of(&l->x, b, h / group, h % group, i, n);
                    int64_t index = l->x.is_int64 ? ((const int64_t *)l->x.data)[at] : ((const int32_t *)l->x.data)[at];
                    if (index >= 0) row[index] += 1.0f;
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
    icecore_indices none = l.x, negative = l.x;
    icecore_attention windowed = l.s.p, masked = l.s.p, headless = l.s.p;
    const uint8_t keep = 1;
    none.data = NULL;
    negative.count = -1;
    windowed.window_right = 5;
    masked.mask_kind = ICECORE_MASK_BOOL;
    masked.mask = &keep;
    headless.key_heads = 0;
    EXPECT(icecore_attend_indices(&l.s.p, &none, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&l.s.p, &negative, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&windowed, &l.x, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&masked, &l.x, &place) == ICECORE_ERROR_VALUE);
    EXPECT(icecore_attend_indices(&headless, &l.x, &place) == ICECORE_ERROR_VALUE);
    EXPECT(problem_is_clear(&l.s));
    EXPECT(place == -5);
    listed_free(&l);
}

void indices_tests(void) {
    check_run("listed keys: lists shared along any axes", sharing);
    check_run("listed keys: dims, counts on both sides of a block, types, layouts", sizes);
    check_run("listed keys: bad indices are found before anything is written", bad_indices);
    check_run("listed keys: arguments that cannot be", arguments);
}
