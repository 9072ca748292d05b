/* A segment for attention: keys and values in the order of their cells, with what the far field needs to know of cells and parents. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/parallel.h"
#include "segment/build.h"
#include "segment/fields.h"
#include "segment/metric.h"

/* Rows whose distances are found at a time; those that are widened first. */
#define BLOCK 128
#define WIDENED 16

/* Rows first .. end - 1 in the order of the cells, in the segment's dtype. */
static void store_rows(const ice_builder *b, const ice_rows *rows, int64_t first, int64_t end, void *target) {
    const icecore_segment *s = b->segment;
    const size_t bytes = ice_row_bytes(s->dtype, rows->dim);
    float buffer[ICECORE_MAX_DIM];
    for (int64_t i = first; i < end; i++) {
        char *place = (char *)target + (size_t)i * bytes;
        const void *stored = rows->stored ? rows->stored(rows->context, s->order[i], s->dtype) : NULL;
        if (stored) memcpy(place, stored, bytes);
        else b->kernels->from_float32(s->dtype, rows->read(rows->context, s->order[i], buffer), place, rows->dim);
    }
}

/* The mean of stored rows first .. end - 1, less `centre` (or NULL), into `stored`, and the distances from it as it is stored.  0 when the mean is not finite: then
 * 0 is stored. */
static int summarize_rows(const ice_kernels *kernels, const icecore_segment *s, const void *rows, int64_t dim, const float *metric,
                          const float *centre, int64_t first, int64_t end, void *stored, double *mean_square, double *largest) {
    const icecore_dtype dtype = s->dtype;
    const size_t bytes = ice_row_bytes(dtype, dim);
    const int widening = metric || dtype == ICECORE_INT8;
    const int64_t block = widening ? WIDENED : BLOCK;
    float mean[ICECORE_MAX_DIM] = {0}, weight[BLOCK], distance[BLOCK], widened[WIDENED][ICECORE_MAX_DIM];
    const void *row[BLOCK];
    int finite = 1;
    for (int i = 0; i < BLOCK; i++) weight[i] = 1.0f / (float)(end - first);
    for (int64_t i = first; i < end; i += BLOCK)
        kernels->row_weighted_sum(weight, end - i < BLOCK ? end - i : BLOCK, dtype, (const char *)rows + (size_t)i * bytes,
                                  ice_row_stride(dtype, dim), dim, 1.0f, mean);
    for (int64_t t = 0; t < dim; t++) finite &= isfinite(mean[t]) != 0;
    if (!finite) memset(mean, 0, sizeof mean);
    /* distances are those from what is stored */
    for (int64_t t = 0; centre && finite && t < dim; t++) mean[t] -= centre[t];
    kernels->from_float32(s->mean_dtype, mean, stored, dim);
    kernels->to_float32(s->mean_dtype, stored, mean, dim);
    for (int64_t t = 0; centre && t < dim; t++) mean[t] += centre[t];
    if (metric) kernels->multiply(mean, metric, dim, mean);
    *mean_square = *largest = 0.0;
    for (int64_t i = first; i < end; i += block) {
        int64_t count = end - i < block ? end - i : block;
        for (int64_t j = 0; j < count; j++) {
            row[j] = (const char *)rows + (size_t)(i + j) * bytes;
            if (!widening) continue;
            kernels->to_float32(dtype, row[j], widened[j], dim);
            if (metric) kernels->multiply(widened[j], metric, dim, widened[j]);
            row[j] = widened[j];
        }
        kernels->gathered_scores(mean, dim, 1, widening ? ICECORE_FLOAT32 : dtype, row, count, distance);
        for (int64_t j = 0; j < count; j++) {
            double squared = -2.0 * (double)distance[j];
            *mean_square += squared / (double)(end - first);
            if (!(squared <= *largest)) *largest = squared;
        }
    }
    return finite;
}

static void summarize(const ice_builder *b, const ice_nodes *nodes, int64_t n, int64_t first, int64_t end) {
    const icecore_segment *s = b->segment;
    const size_t element = ice_element_size(s->mean_dtype);
    double of_keys, of_values, radius, unused;
    int finite = summarize_rows(b->kernels, s, s->keys, s->dim, b->metric, s->centre, first, end,
                                (char *)nodes->mean_key + (size_t)(n * s->dim) * element, &of_keys, &radius);
    finite &= summarize_rows(b->kernels, s, s->values, s->value_dim, NULL, NULL, first, end,
                             (char *)nodes->mean_value + (size_t)(n * s->value_dim) * element, &of_values, &unused);
    if (end - first == 1) of_keys = 0.0;   /* but for the rounding of its mean */
    nodes->variance[n] = (float)(of_keys / (double)s->dim);
    nodes->radius[n] = (float)sqrt(radius);
    nodes->log2_count[n] = (float)log2((double)(end - first));
    nodes->log2_weight[n] = finite ? (float)(log2((double)(end - first)) + 0.5 * log2(of_values + b->mass_weight)) : NAN;
    nodes->half_log2_variance[n] = 0.5f * log2f(nodes->variance[n]);
}

/* The next parent's rows and summaries; its cells become the next ones of the segment. */
static void store_parent(ice_builder *b) {
    icecore_segment *s = b->segment;
    const int64_t parent = b->next++, *group = b->groups.cell + b->groups.parent[parent], cell = s->cell.count;
    const int64_t cells = b->groups.parent[parent + 1] - b->groups.parent[parent];
    const int64_t first = group[0], end = group[cells];
    store_rows(b, &b->keys, first, end, s->keys);
    store_rows(b, &b->values, first, end, s->values);
    memcpy(s->cell.offset + cell, group, (size_t)(cells + 1) * sizeof *group);
    for (int64_t c = 0; c < cells; c++) summarize(b, &s->cell, cell + c, group[c], group[c + 1]);
    summarize(b, &s->parent, parent, first, end);
    s->parent.offset[parent + 1] = s->cells = s->cell.count += cells;
}

/* Units of work (groups.h) of storing and summarizing a row. */
#define STORE_COST 12

int64_t ice_builder_work(int64_t rows, int64_t cell_size) { return ice_groups_work(rows, cell_size) + STORE_COST * rows; }

static const float *read_measured(const void *builder, int64_t row, float *buffer) {
    const ice_builder *b = builder;
    b->kernels->multiply(b->keys.read(b->keys.context, row, buffer), b->metric, b->keys.dim, buffer);
    return buffer;
}

icecore_status ice_builder_begin(ice_builder *b, const ice_kernels *kernels, ice_rows keys, ice_rows values, icecore_dtype storage,
                                 icecore_dtype means, const float *moments, int64_t cell_size, uint64_t seed) {
    *b = (ice_builder){.kernels = kernels, .keys = keys, .values = values, .storage = storage, .means = means};
    ice_projection projection = {0};
    if (moments) {
        ice_find_metric(moments, keys.dim, b->metric);
        projection.rows = b->projection = ice_alloc(ICE_MOST_PROJECTED * keys.dim, sizeof(float));
        if (!b->projection) return ICECORE_ERROR_MEMORY;
        projection.count = ice_find_projection(moments, &keys, b->projection);
    } else {
        ice_find_key_metric(&keys, b->metric);
    }
    if (!projection.count) projection.rows = NULL;
    float mean_value[ICECORE_MAX_DIM];
    ice_find_centre(&values, mean_value);
    for (int64_t t = 0; t < values.dim; t++) b->mass_weight += (double)mean_value[t] * (double)mean_value[t];
    const ice_rows measured = projection.rows ? keys : (ice_rows){read_measured, b, keys.count, keys.dim, NULL};
    icecore_status status = ice_groups_begin(&b->groups, kernels, measured, projection, cell_size, seed);
    if (status != ICECORE_OK) ice_free(b->projection);
    return status;
}

static icecore_status begin_storing(ice_builder *b) {
    icecore_segment *s = ice_segment_new();
    if (s) {
        s->count = b->keys.count;
        s->dim = b->keys.dim;
        s->value_dim = b->values.dim;
        s->dtype = b->storage;
        s->mean_dtype = b->means;
        s->query_numbers = b->query_numbers;
        s->cell.count = b->groups.cells;
        s->parent.count = b->groups.parents;
    }
    if (!s || !ice_attention_alloc(s)) {
        icecore_segment_free(s);
        return ICECORE_ERROR_MEMORY;
    }
    memcpy(s->order, b->groups.order, (size_t)s->count * sizeof *s->order);
    memcpy(s->metric, b->metric, (size_t)s->dim * sizeof *s->metric);
    ice_find_centre(&b->keys, s->centre);
    if (s->query_numbers) memcpy(s->query_sum, b->query_sum, (size_t)s->query_numbers * sizeof *s->query_sum);
    ice_groups_forget_rows(&b->groups);   /* a cache counts every byte while it merges */
    s->cell.count = s->parent.offset[0] = 0;   /* grow parent by parent */
    b->segment = s;
    return ICECORE_OK;
}

icecore_status ice_builder_step(ice_builder *b, int64_t *work) {
    if (!ice_groups_done(&b->groups)) {
        icecore_status status = ice_groups_step(&b->groups, work);
        if (status != ICECORE_OK || !ice_groups_done(&b->groups)) return status;
    }
    if (!b->segment) {
        icecore_status status = begin_storing(b);
        if (status != ICECORE_OK) return status;
    }
    while (*work > 0 && !ice_builder_done(b)) {
        if (ice_interrupted()) return ICECORE_INTERRUPTED;
        const int64_t *parent = b->groups.parent + b->next;
        *work -= STORE_COST * (b->groups.cell[parent[1]] - b->groups.cell[parent[0]]);
        store_parent(b);
        if (ice_builder_done(b)) ice_find_component_variance(b->segment, b->kernels);
    }
    return ICECORE_OK;
}

int ice_builder_done(const ice_builder *b) { return b->segment && b->next == b->segment->parent.count; }

icecore_segment *ice_builder_take(ice_builder *b) {
    icecore_segment *s = b->segment;
    b->segment = NULL;
    ice_builder_end(b);
    return s;
}

void ice_builder_end(ice_builder *b) {
    ice_groups_end(&b->groups);
    ice_free(b->projection);
    ice_free(b->query_sum);
    icecore_segment_free(b->segment);
    *b = (ice_builder){0};
}

icecore_status icecore_segment_build(icecore_dtype dtype, const void *keys, int64_t key_stride, const void *values,
                                     int64_t value_stride, int64_t count, int64_t dim, int64_t value_dim, icecore_dtype storage,
                                     const float *moments, int64_t cell_size, uint64_t seed, icecore_segment **result) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    if (dtype > ICECORE_BFLOAT16 || storage > ICECORE_INT8 || !keys || !values || count < 1 || count > INT32_MAX || dim < 1 ||
        dim > ICECORE_MAX_DIM || value_dim < 1 || value_dim > ICECORE_MAX_DIM || !ice_are_moments(moments, 1, dim) || cell_size < 1)
        return ICECORE_ERROR_VALUE;
    const ice_array_rows key_rows = {kernels, dtype, keys, key_stride, dim}, value_rows = {kernels, dtype, values, value_stride, value_dim};
    int64_t work = INT64_MAX;
    ice_builder b;
    icecore_status status = ice_builder_begin(&b, kernels, (ice_rows){ice_read_array_row, &key_rows, count, dim, NULL},
                                              (ice_rows){ice_read_array_row, &value_rows, count, value_dim, NULL}, storage,
                                              storage == ICECORE_INT8 ? ICECORE_FLOAT32 : storage, moments, cell_size, seed);
    if (status != ICECORE_OK) return status;
    status = ice_builder_step(&b, &work);
    if (status == ICECORE_OK) *result = ice_builder_take(&b);
    else ice_builder_end(&b);
    return status;
}
