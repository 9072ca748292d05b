/* What a sealed segment promises. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "tensors.h"

/* Keys and values of one head, as a problem without queries allocates them. */
static problem rows(icecore_dtype dtype, int64_t count, int64_t dim, int64_t value_dim, int64_t pad) {
    problem s = one_head(0, count, dim, value_dim);
    s.p.dtype = dtype;
    s.pad = pad;
    problem_allocate(&s);
    return s;
}

static icecore_segment *build(const problem *s, int64_t cell_size, uint64_t seed) {
    icecore_segment_source source = segment_source(s);
    icecore_segment *segment = NULL;
    source.cell_size = cell_size;
    source.seed = seed;
    EXPECT(icecore_segment_build(&source, &segment) == ICECORE_OK);
    return segment;
}

/* The mean of stored rows first .. end - 1 is `mean` + `centre` (NULL: 0); returns the largest distance from it, and
 * the mean squared one, in a metric (NULL: ones). */
static double expect_mean(const float *stored, int64_t width, int64_t first, int64_t end, const float *from_centre,
                          const float *centre, const float *metric, double *mean_squared) {
    double mean[ICECORE_MAX_DIM];
    for (int64_t t = 0; t < width; t++) mean[t] = (double)from_centre[t] + (centre ? (double)centre[t] : 0.0);
    double largest = 0.0, total = 0.0;
    for (int64_t t = 0; t < width; t++) {
        double sum = 0.0;
        for (int64_t j = first; j < end; j++) sum += (double)stored[j * width + t];
        EXPECT(fabs(sum / (double)(end - first) - mean[t]) < 1e-5);
    }
    for (int64_t j = first; j < end; j++) {
        double squared = 0.0;
        for (int64_t t = 0; t < width; t++)
            squared += pow(((double)stored[j * width + t] - mean[t]) * (metric ? (double)metric[t] : 1.0), 2.0);
        total += squared;
        if (squared > largest) largest = squared;
    }
    *mean_squared = total / (double)(end - first);
    return sqrt(largest);
}

/* Of the segment: of all its values. */
static double squared_mean_value(const icecore_segment_view *v) {
    double squared = 0.0;
    for (int64_t t = 0; t < v->value_dim; t++) {
        double sum = 0.0;
        for (int64_t j = 0; j < v->count; j++) sum += (double)((const float *)v->values)[j * v->value_dim + t];
        squared += pow(sum / (double)v->count, 2.0);
    }
    return squared;
}

/* always_open: it says so by a NaN. */
static void expect_nodes(const icecore_segment_view *v, const icecore_nodes_view *nodes, int64_t node, int64_t first,
                         int64_t end, int always_open) {
    const float *mean_key = (const float *)nodes->mean_key + node * v->dim,
                *mean_value = (const float *)nodes->mean_value + node * v->value_dim;
    double squared, of_values,
        radius = expect_mean(v->keys, v->dim, first, end, mean_key, v->centre, v->metric, &squared);
    EXPECT(first < end);
    expect_mean(v->values, v->value_dim, first, end, mean_value, NULL, NULL, &of_values);
    EXPECT(fabs((double)nodes->radius[node] - radius) < 1e-5 * (1.0 + radius));
    EXPECT(fabs((double)nodes->variance[node] - squared / (double)v->dim) < 1e-5);
    EXPECT(fabs((double)nodes->log2_count[node] - log2((double)(end - first))) < 1e-6);
    const double weight = of_values + squared_mean_value(v);
    EXPECT(!isnan(nodes->log2_weight[node]) == !always_open);
    if (weight > 1e-3 && !always_open)
        EXPECT(fabs((double)nodes->log2_weight[node] - log2((double)(end - first)) - 0.5 * log2(weight)) < 1e-3);
}

static void expect_valid(const problem *s, const icecore_segment *segment) {
    const icecore_attention *p = &s->p;
    const icecore_segment_view v = icecore_segment_get(segment);
    const float *keys = v.keys, *values = v.values;
    EXPECT(v.dtype == ICECORE_FLOAT32 && v.count == p->keys && v.dim == p->dim && v.value_dim == p->value_dim);
    double exponents = 0.0, of_components = 0.0;
    for (int64_t t = 0; t < v.dim; t++) {
        exponents += log2((double)v.metric[t]);
        of_components += (double)v.component_variance[t];
        EXPECT(v.component_variance[t] >= 0.0f);
    }
    EXPECT(fabs(exponents) < 1e-4 && fabs(of_components - (double)v.dim) < 1e-3);
    EXPECT(v.cell.offset[0] == 0 && v.cell.offset[v.cell.count] == v.count);
    EXPECT(v.parent.offset[0] == 0 && v.parent.offset[v.parent.count] == v.cell.count);
    char *seen = calloc((size_t)v.count, 1);
    for (int64_t j = 0; j < v.count; j++) {
        int32_t row = v.order[j];
        EXPECT(row >= 0 && row < v.count && !seen[row]);
        seen[row] = 1;
        int64_t key = element_index(&p->key, 0, 0, row, 0), value = element_index(&p->value, 0, 0, row, 0);
        for (int64_t t = 0; t < v.dim; t++)
            EXPECT((double)keys[j * v.dim + t] == element_get(&p->key, p->dtype, key + t));
        for (int64_t t = 0; t < v.value_dim; t++)
            EXPECT((double)values[j * v.value_dim + t] == element_get(&p->value, p->dtype, value + t));
    }
    /* what is apart is under the last parent */
    const int64_t last = v.parent.count - 1, first_apart = v.parent.offset[last];
    const int has_apart = isnan(v.parent.log2_weight[last]) != 0;
    for (int64_t c = 0; c < v.cell.count; c++) {
        const int64_t first = v.cell.offset[c], end = v.cell.offset[c + 1];
        expect_nodes(&v, &v.cell, c, first, end, has_apart && c >= first_apart && end - first == 1);
    }
    for (int64_t n = 0; n <= last; n++)
        expect_nodes(&v, &v.parent, n, v.cell.offset[v.parent.offset[n]], v.cell.offset[v.parent.offset[n + 1]],
                     has_apart && n == last);
    free(seen);
}

static void invariants(void) {
    static const int64_t counts[] = {1, 2, 31, 48, 49, 500}, dims[] = {1, 17, ICECORE_MAX_DIM};
    static const int64_t sizes[] = {1, 2, 32, 1000000, INT64_MAX};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 3; j++)
            for (int k = 0; k < 5; k++) {
                if (counts[i] * dims[j] > 20000 && sizes[k] < 32) continue; /* slow, and nothing new */
                problem s = rows(ICECORE_FLOAT32, counts[i], dims[j], dims[2 - j], 0);
                check_at("count %d, dim %d, cell_size %lld", (int)counts[i], (int)dims[j], (long long)sizes[k]);
                icecore_segment *segment = build(&s, sizes[k], 5);
                if (segment) expect_valid(&s, segment);
                icecore_segment_free(segment);
                problem_free(&s);
            }
}

static void dtypes_and_strides(void) {
    for (int dtype = ICECORE_FLOAT32; dtype <= ICECORE_BFLOAT16; dtype++) {
        problem s = rows((icecore_dtype)dtype, 100, 13, 7, 4);
        check_at("dtype %d", dtype);
        icecore_segment *segment = build(&s, 8, 5);
        if (segment) expect_valid(&s, segment);
        icecore_segment_free(segment);
        problem_free(&s);
    }
}

/* Equal keys end under one parent, because the smaller one wins. */
static void equal_keys(void) {
    problem s = rows(ICECORE_FLOAT32, 100, 6, 6, 0);
    for (int64_t i = 0; i < 600; i++) ((float *)s.p.key.data)[i] = (float)(i % 6);
    icecore_segment *segment = build(&s, 4, 5);
    if (segment) {
        EXPECT(icecore_segment_get(segment).parent.count == 1);
        expect_valid(&s, segment);
    }
    icecore_segment_free(segment);
    problem_free(&s);
}

/* Well separated clumps, each with a sampled parent, end in cells of their own. */
static void clumps(void) {
    problem s = rows(ICECORE_FLOAT32, 96, 2, 1, 0);
    for (int64_t i = 0; i < 96; i++) {
        ((float *)s.p.key.data)[2 * i] *= 0.01f;
        ((float *)s.p.key.data)[2 * i + 1] = 100.0f * (float)(i % 2);
    }
    icecore_segment *segment = build(&s, 4, 5);
    if (segment) {
        icecore_segment_view v = icecore_segment_get(segment);
        for (int64_t c = 0; c < v.cell.count; c++) EXPECT(v.cell.radius[c] < 1.0f);
    }
    icecore_segment_free(segment);
    problem_free(&s);
}

static void seeds(void) {
    problem s = rows(ICECORE_FLOAT32, 300, 8, 4, 0);
    icecore_segment *a = build(&s, 8, 5), *same = build(&s, 8, 5), *other = build(&s, 8, 6);
    if (a && same && other) {
        icecore_segment_view x = icecore_segment_get(a), y = icecore_segment_get(same), z = icecore_segment_get(other);
        EXPECT(x.cell.count == y.cell.count);
        EXPECT(memcmp(x.order, y.order, 300 * sizeof *x.order) == 0);
        EXPECT(memcmp(x.cell.mean_key, y.cell.mean_key, (size_t)(x.cell.count * x.dim) * sizeof(float)) == 0);
        EXPECT(memcmp(x.order, z.order, 300 * sizeof *x.order) != 0);
    }
    icecore_segment_free(a);
    icecore_segment_free(same);
    icecore_segment_free(other);
    problem_free(&s);
    icecore_segment_free(NULL);
}

void segment_tests(void) {
    check_run("segments: offsets, order, means, variances and radii", invariants);
    check_run("segments: 16-bit types, strides, no values", dtypes_and_strides);
    check_run("segments: equal keys share a cell", equal_keys);
    check_run("segments: separate clumps share none", clumps);
    check_run("segments: the seed decides, and nothing else", seeds);
}
