/* A segment for attention: keys and values in the order of their cells, with what the far field needs to know of cells
 * and parents. */
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

static void store_halves(const ice_builder *b, const ice_rows *rows, int64_t first, int64_t end, void *target) {
    icecore_segment *s = b->segment;
    const int64_t dim = rows->dim;
    float buffer[ICECORE_MAX_DIM];
    for (int64_t i = first; i < end; i++)
        if (b->kernels->split(rows->read(rows->context, s->order[i], buffer), ice_first_half(target, i, dim),
                              ice_second_half(s, target, i, dim), dim))
            s->halves = ICE_WHOLE_IN_HALVES;
}

/* Rows first .. end - 1 in the order of the cells, in the segment's dtype. */
static void store_rows(const ice_builder *b, const ice_rows *rows, int64_t first, int64_t end, void *target) {
    const icecore_segment *s = b->segment;
    const size_t bytes = ice_row_bytes(s->dtype, rows->dim);
    float buffer[ICECORE_MAX_DIM];
    if (s->halves) {
        store_halves(b, rows, first, end, target);
        return;
    }
    for (int64_t i = first; i < end; i++) {
        char *place = (char *)target + (size_t)i * bytes;
        const void *stored = rows->stored ? rows->stored(rows->context, s->order[i], s->dtype) : NULL;
        if (stored) memcpy(place, stored, bytes);
        else b->kernels->from_float32(s->dtype, rows->read(rows->context, s->order[i], buffer), place, rows->dim);
    }
}

/* The keys of `cells` cells of the segment from `cell` on, less their means, which are stored first. */
static void store_relative_keys(const ice_builder *b, int64_t cell, int64_t cells) {
    const icecore_segment *s = b->segment;
    const size_t bytes = ice_row_bytes(s->dtype, s->dim);
    float buffer[ICECORE_MAX_DIM];
    for (int64_t c = cell; c < cell + cells; c++) {
        const int64_t first = s->cell.offset[c], end = s->cell.offset[c + 1];
        const float weight = 1.0f / (float)(end - first);
        float *mean = (float *)s->cell.mean_key + c * s->dim;
        int finite = 1;
        memset(mean, 0, (size_t)s->dim * sizeof *mean);
        for (int64_t i = first; i < end; i++) {
            const float *key = b->keys.read(b->keys.context, s->order[i], buffer);
            b->kernels->row_weighted_sum(&weight, 1, ICECORE_FLOAT32, key, s->dim, s->dim, 1.0f, mean);
        }
        for (int64_t t = 0; t < s->dim; t++) finite &= isfinite(mean[t]) != 0;
        if (!finite) memset(mean, 0, (size_t)s->dim * sizeof *mean);
        for (int64_t i = first; i < end; i++) {
            const float *key = b->keys.read(b->keys.context, s->order[i], buffer);
            for (int64_t t = 0; t < s->dim; t++) buffer[t] = key[t] - mean[t];
            b->kernels->from_float32(s->dtype, buffer, (char *)s->keys + (size_t)i * bytes, s->dim);
        }
    }
}

/* Stored keys, or values, of some cells from `cell` on. */
typedef struct {
    void *data;
    int64_t dim, first, end, cell;
    const float *metric; /* of distances, or NULL */
    const float *centre; /* which stored means lack, or NULL */
    int relative;        /* keys that lack their cells' means */
} summarized;

/* 0 when the mean is not finite: then it becomes 0. */
static int find_mean(const ice_kernels *kernels, const icecore_segment *s, const summarized *rows, float *mean) {
    const size_t bytes = ice_row_bytes(s->dtype, rows->dim);
    float weight[BLOCK];
    int finite = 1;
    for (int i = 0; i < BLOCK; i++) weight[i] = 1.0f / (float)(rows->end - rows->first);
    memset(mean, 0, (size_t)rows->dim * sizeof *mean);
    for (int64_t i = rows->first; s->halves && i < rows->end; i += WIDENED) {
        const int64_t count = rows->end - i < WIDENED ? rows->end - i : WIDENED;
        float joined[WIDENED * ICECORE_MAX_DIM];
        ice_read_stored(s, kernels, rows->data, i, count, rows->dim, joined);
        kernels->row_weighted_sum(weight, count, ICECORE_FLOAT32, joined, rows->dim, rows->dim, 1.0f, mean);
    }
    for (int64_t i = rows->first; !s->halves && i < rows->end; i += BLOCK) {
        const int64_t count = rows->end - i < BLOCK ? rows->end - i : BLOCK;
        kernels->row_weighted_sum(weight, count, s->dtype, (const char *)rows->data + (size_t)i * bytes,
                                  ice_row_stride(s->dtype, rows->dim), rows->dim, 1.0f, mean);
    }
    for (int64_t t = 0; t < rows->dim; t++) finite &= isfinite(mean[t]) != 0;
    if (!finite || rows->relative) memset(mean, 0, (size_t)rows->dim * sizeof *mean);
    for (int64_t cell = rows->cell; finite && rows->relative && s->cell.offset[cell] < rows->end; cell++) {
        const int64_t *offset = s->cell.offset + cell;
        const float *base = ice_base_of(s, cell),
                    share = (float)(offset[1] - offset[0]) / (float)(offset[1] - rows->first);
        for (int64_t t = 0; t < rows->dim; t++) mean[t] += share * (base[t] - mean[t]);
    }
    return finite;
}

/* Means of rows in halves are bfloat16 (other rows fit the dtype of their means). */
static int is_rounded_to_infinity(const float *mean, int64_t dim) {
    int over = 0;
    for (int64_t t = 0; t < dim; t++) over |= fabsf(mean[t]) >= 0x1.FFp127f;
    return over;
}

/* The mean into `stored`, and the distances from it as it is stored.  0 when the mean is not finite: then 0 is stored.
 */
static int summarize_rows(const ice_kernels *kernels, const icecore_segment *s, const summarized *rows, void *stored,
                          double *mean_square, double *largest) {
    const icecore_dtype dtype = s->dtype;
    const int64_t dim = rows->dim;
    const size_t bytes = ice_row_bytes(dtype, dim);
    const int widening = rows->metric || ice_is_quantized(dtype) || s->halves;
    const int64_t block = widening ? WIDENED : BLOCK;
    float mean[ICECORE_MAX_DIM], distance[BLOCK], widened[WIDENED * ICECORE_MAX_DIM];
    const void *row[BLOCK];
    int finite = find_mean(kernels, s, rows, mean);
    /* distances are those from what is stored */
    for (int64_t t = 0; rows->centre && finite && t < dim; t++) mean[t] -= rows->centre[t];
    finite &= !s->halves || !is_rounded_to_infinity(mean, dim);
    if (!finite) memset(mean, 0, (size_t)dim * sizeof *mean);
    kernels->from_float32(s->mean_dtype, mean, stored, dim);
    kernels->to_float32(s->mean_dtype, stored, mean, dim);
    for (int64_t t = 0; rows->centre && t < dim; t++) mean[t] += rows->centre[t];
    if (rows->metric) kernels->multiply(mean, rows->metric, dim, mean);
    *mean_square = *largest = 0.0;
    for (int64_t i = rows->first, cell = rows->cell; i < rows->end; i += block) {
        int64_t count = rows->end - i < block ? rows->end - i : block;
        if (widening) ice_read_stored(s, kernels, rows->data, i, count, dim, widened);
        for (int64_t j = 0; j < count; j++) {
            float *own = widened + j * dim;
            row[j] = widening ? (const void *)own : (const char *)rows->data + (size_t)(i + j) * bytes;
            while (rows->relative && i + j >= s->cell.offset[cell + 1]) cell++;
            for (int64_t t = 0; rows->relative && t < dim; t++) own[t] += ice_base_of(s, cell)[t];
        }
        if (rows->metric)
            for (int64_t j = 0; j < count; j++)
                kernels->multiply(widened + j * dim, rows->metric, dim, widened + j * dim);
        kernels->gathered_scores(mean, dim, 1, widening ? ICECORE_FLOAT32 : dtype, row, count, distance);
        for (int64_t j = 0; j < count; j++) {
            double squared = -2.0 * (double)distance[j];
            *mean_square += squared / (double)(rows->end - rows->first);
            if (!(squared <= *largest)) *largest = squared;
        }
    }
    return finite;
}

/* Node n holds the rows first .. end - 1, the first of them in `cell`. */
static void summarize(const ice_builder *b, const ice_nodes *nodes, int64_t n, int64_t cell, int64_t first,
                      int64_t end) {
    const icecore_segment *s = b->segment;
    const size_t element = ice_element_size(s->mean_dtype);
    const summarized keys = {s->keys, s->dim, first, end, cell, b->metric, s->centre, s->relative};
    const summarized values = {s->values, s->value_dim, first, end, cell, NULL, NULL, 0};
    double of_keys, of_values, radius, unused;
    int finite = summarize_rows(b->kernels, s, &keys, (char *)nodes->mean_key + (size_t)(n * s->dim) * element,
                                &of_keys, &radius);
    finite &= summarize_rows(b->kernels, s, &values, (char *)nodes->mean_value + (size_t)(n * s->value_dim) * element,
                             &of_values, &unused);
    if (end - first == 1) of_keys = 0.0; /* but for the rounding of its mean */
    nodes->variance[n] = (float)(of_keys / (double)s->dim);
    nodes->radius[n] = (float)sqrt(radius);
    nodes->log2_count[n] = (float)log2((double)(end - first));
    nodes->log2_weight[n] =
        finite ? (float)(log2((double)(end - first)) + 0.5 * log2(of_values + b->mass_weight)) : NAN;
    nodes->half_log2_variance[n] = 0.5f * log2f(nodes->variance[n]);
}

/* What is apart: one mean cannot stand for what has nothing in common, and a key alone is as cheap as its mean, but
 * exact, and counts as such. */
static void always_open(icecore_segment *s, int64_t parent, int64_t cell, int64_t cells) {
    s->parent.log2_weight[parent] = NAN;
    for (int64_t c = cell; c < cell + cells; c++)
        if (s->cell.offset[c + 1] - s->cell.offset[c] == 1) s->cell.log2_weight[c] = NAN;
}

/* The next parent's rows and summaries; its cells become the next ones of the segment. */
static void store_parent(ice_builder *b) {
    icecore_segment *s = b->segment;
    const int64_t parent = b->next++, *group = b->groups.found.cell + b->groups.parent[parent], cell = s->cell.count;
    const int64_t cells = b->groups.parent[parent + 1] - b->groups.parent[parent];
    const int64_t first = group[0], end = group[cells];
    memcpy(s->cell.offset + cell, group, (size_t)(cells + 1) * sizeof *group);
    if (s->relative) store_relative_keys(b, cell, cells);
    else store_rows(b, &b->keys, first, end, s->keys);
    store_rows(b, &b->values, first, end, s->values);
    for (int64_t c = 0; c < cells; c++) summarize(b, &s->cell, cell + c, cell + c, group[c], group[c + 1]);
    summarize(b, &s->parent, parent, cell, first, end);
    if (b->groups.has_apart && ice_builder_done(b)) always_open(s, parent, cell, cells);
    s->parent.offset[parent + 1] = s->cells = s->cell.count += cells;
}

/* Units of work (groups.h) of storing and summarizing a row. */
#define STORE_COST 12

int64_t ice_builder_work(int64_t rows, int64_t cell_size) {
    return ice_groups_work(rows, cell_size) + STORE_COST * rows;
}

static const float *read_measured(const void *builder, int64_t row, float *buffer) {
    const ice_builder *b = builder;
    b->kernels->multiply(b->keys.read(b->keys.context, row, buffer), b->metric, b->keys.dim, buffer);
    return buffer;
}

icecore_status ice_builder_begin(ice_builder *b, const ice_builder_plan *plan) {
    const ice_rows keys = plan->keys, values = plan->values;
    *b = (ice_builder){
        .kernels = plan->kernels, .keys = keys, .values = values, .storage = plan->storage, .means = plan->means};
    ice_projection projection = {0};
    if (plan->moments) {
        ice_find_metric(plan->moments, keys.dim, b->metric);
        projection.rows = b->projection = ice_alloc(ICE_MAX_PROJECTED * keys.dim, sizeof(float));
        if (!b->projection) return ICECORE_ERROR_MEMORY;
        projection.count = ice_find_projection(plan->moments, &keys, b->projection);
    } else {
        ice_find_key_metric(&keys, b->metric);
    }
    if (!projection.count) projection.rows = NULL;
    float mean_value[ICECORE_MAX_DIM];
    ice_find_centre(&values, mean_value);
    for (int64_t t = 0; t < values.dim; t++) b->mass_weight += (double)mean_value[t] * (double)mean_value[t];
    const ice_rows measured = projection.rows ? keys : (ice_rows){read_measured, b, keys.count, keys.dim, NULL};
    icecore_status status =
        ice_groups_begin(&b->groups, plan->kernels, measured, projection, plan->cell_size, plan->seed);
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
        s->relative = b->relative;
        s->halves = b->halves ? ICE_HALVES : ICE_WHOLE;
        s->query_numbers = b->query_numbers;
        s->cell.count = b->groups.found.cells;
        s->parent.count = b->groups.parents;
    }
    if (!s || !ice_attention_alloc(s)) {
        icecore_segment_free(s);
        return ICECORE_ERROR_MEMORY;
    }
    memcpy(s->order, b->groups.found.order, (size_t)s->count * sizeof *s->order);
    memcpy(s->metric, b->metric, (size_t)s->dim * sizeof *s->metric);
    if (s->relative) memset(s->centre, 0, (size_t)s->dim * sizeof *s->centre);
    else ice_find_centre(&b->keys, s->centre);
    if (s->query_numbers) memcpy(s->query_sum, b->query_sum, (size_t)s->query_numbers * sizeof *s->query_sum);
    ice_groups_forget_rows(&b->groups);      /* a cache counts every byte while it merges */
    s->cell.count = s->parent.offset[0] = 0; /* grow parent by parent */
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
        *work -= STORE_COST * (b->groups.found.cell[parent[1]] - b->groups.found.cell[parent[0]]);
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

static int is_width(int64_t width) { return width >= 1 && width <= ICECORE_MAX_DIM; }

icecore_status icecore_segment_build(const icecore_segment_source *s, icecore_segment **result) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    if (s->dtype > ICECORE_BFLOAT16 || s->storage > ICECORE_INT4 || !s->keys || !s->values || s->count < 1 ||
        s->count > INT32_MAX || !is_width(s->dim) || !is_width(s->value_dim) ||
        !ice_are_moments(s->moments, 1, s->dim) || s->cell_size < 1)
        return ICECORE_ERROR_VALUE;
    const ice_array_rows keys = {kernels, s->dtype, s->keys, s->key_stride, s->dim},
                         values = {kernels, s->dtype, s->values, s->value_stride, s->value_dim};
    const ice_builder_plan plan = {.kernels = kernels,
                                   .keys = {ice_read_array_row, &keys, s->count, s->dim, NULL},
                                   .values = {ice_read_array_row, &values, s->count, s->value_dim, NULL},
                                   .storage = s->storage,
                                   .means = ice_is_quantized(s->storage) ? ICECORE_FLOAT32 : s->storage,
                                   .moments = s->moments,
                                   .cell_size = s->cell_size,
                                   .seed = s->seed};
    int64_t work = INT64_MAX;
    ice_builder b;
    icecore_status status = ice_builder_begin(&b, &plan);
    if (status != ICECORE_OK) return status;
    status = ice_builder_step(&b, &work);
    if (status == ICECORE_OK) *result = ice_builder_take(&b);
    else ice_builder_end(&b);
    return status;
}
