/* A segment for attention: keys and values in the order of their cells, with what the far field needs to know of cells and parents. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "segment/groups.h"
#include "segment/segment.h"

/* Rows whose distances are found at a time. */
#define BLOCK 128

static int allocate_nodes(icecore_segment *s, ice_nodes *nodes, int64_t count) {
    size_t element = s->dtype == ICECORE_FLOAT32 ? 4 : 2;
    nodes->count = count;
    nodes->offset = ice_segment_alloc(s, count + 1, sizeof(int64_t));
    nodes->mean_key = ice_segment_alloc(s, count * s->dim, element);
    nodes->mean_value = ice_segment_alloc(s, count * s->value_dim, element);
    nodes->variance = ice_segment_alloc(s, count, sizeof(float));
    nodes->radius = ice_segment_alloc(s, count, sizeof(float));
    nodes->log2_count = ice_segment_alloc(s, count, sizeof(float));
    nodes->log2_risk = ice_segment_alloc(s, count, sizeof(float));
    return nodes->offset && nodes->mean_key && nodes->mean_value && nodes->variance && nodes->radius && nodes->log2_count &&
           nodes->log2_risk;
}

static int allocate(icecore_segment *s, const ice_groups *groups) {
    size_t element = s->dtype == ICECORE_FLOAT32 ? 4 : 2;
    s->order = ice_segment_alloc(s, s->count, sizeof(int32_t));
    s->keys = ice_segment_alloc(s, s->count * s->dim, element);
    s->values = ice_segment_alloc(s, s->count * s->value_dim, element);
    return s->order && s->keys && s->values && allocate_nodes(s, &s->cell, groups->cells) &&
           allocate_nodes(s, &s->parent, groups->parents);
}

/* Rows in the order of the cells, in the segment's dtype. */
static void store_rows(const icecore_segment *s, const ice_array_rows *rows, void *target) {
    const size_t element = s->dtype == ICECORE_FLOAT32 ? 4 : 2, bytes = (size_t)rows->dim * element;
    float buffer[ICECORE_MAX_DIM];
    char *to = target;
    for (int64_t i = 0; i < s->count; i++, to += bytes) {
        if (rows->dtype == s->dtype)
            memcpy(to, (const char *)rows->data + (size_t)(s->order[i] * rows->stride) * element, bytes);
        else
            rows->kernels->from_float32(s->dtype, ice_read_array_row(rows, s->order[i], buffer), to, rows->dim);
    }
}

/* The mean of stored rows first .. end - 1 into `mean`, rounded as it is stored into `stored`, and the distances from it.
 * 0 when the mean is not finite: then 0 is stored. */
static int summarize_rows(const ice_kernels *kernels, icecore_dtype dtype, const void *rows, int64_t dim, int64_t first, int64_t end,
                          void *stored, double *mean_square, double *largest) {
    const size_t element = dtype == ICECORE_FLOAT32 ? 4 : 2;
    float mean[ICECORE_MAX_DIM] = {0}, weight[BLOCK], distance[BLOCK];
    const void *row[BLOCK];
    int finite = 1;
    for (int i = 0; i < BLOCK; i++) weight[i] = 1.0f / (float)(end - first);
    for (int64_t i = first; i < end; i += BLOCK)
        kernels->row_weighted_sum(weight, end - i < BLOCK ? end - i : BLOCK, dtype, (const char *)rows + (size_t)(i * dim) * element,
                                  dim, dim, 1.0f, mean);
    for (int64_t t = 0; t < dim; t++) finite &= isfinite(mean[t]) != 0;
    if (!finite) memset(mean, 0, sizeof mean);
    /* distances are those from what is stored */
    kernels->from_float32(dtype, mean, stored, dim);
    kernels->to_float32(dtype, stored, mean, dim);
    *mean_square = *largest = 0.0;
    for (int64_t i = first; i < end; i += BLOCK) {
        int64_t count = end - i < BLOCK ? end - i : BLOCK;
        for (int64_t j = 0; j < count; j++) row[j] = (const char *)rows + (size_t)((i + j) * dim) * element;
        kernels->gathered_scores(mean, dim, 1, dtype, row, count, distance);
        for (int64_t j = 0; j < count; j++) {
            double squared = -2.0 * (double)distance[j];
            *mean_square += squared / (double)(end - first);
            if (!(squared <= *largest)) *largest = squared;
        }
    }
    return finite;
}

static void summarize(const icecore_segment *s, const ice_kernels *kernels, const ice_nodes *nodes, int64_t n, int64_t first, int64_t end) {
    const size_t element = s->dtype == ICECORE_FLOAT32 ? 4 : 2;
    double of_keys, of_values, radius, unused;
    int finite = summarize_rows(kernels, s->dtype, s->keys, s->dim, first, end,
                                (char *)nodes->mean_key + (size_t)(n * s->dim) * element, &of_keys, &radius);
    finite &= summarize_rows(kernels, s->dtype, s->values, s->value_dim, first, end,
                             (char *)nodes->mean_value + (size_t)(n * s->value_dim) * element, &of_values, &unused);
    nodes->variance[n] = (float)(of_keys / (double)s->dim);
    nodes->radius[n] = (float)sqrt(radius);
    nodes->log2_count[n] = (float)log2((double)(end - first));
    nodes->log2_risk[n] = finite ? (float)(log2((double)(end - first)) + 0.5 * log2(of_keys / (double)s->dim) + 0.5 * log2(of_values)) : NAN;
}

static void fill(icecore_segment *s, const ice_kernels *kernels, const ice_groups *groups, const ice_array_rows *keys,
                 const ice_array_rows *values) {
    memcpy(s->order, groups->order, (size_t)s->count * sizeof *s->order);
    memcpy(s->cell.offset, groups->cell, (size_t)(groups->cells + 1) * sizeof *groups->cell);
    memcpy(s->parent.offset, groups->parent, (size_t)(groups->parents + 1) * sizeof *groups->parent);
    store_rows(s, keys, s->keys);
    store_rows(s, values, s->values);
    for (int64_t c = 0; c < groups->cells; c++) summarize(s, kernels, &s->cell, c, groups->cell[c], groups->cell[c + 1]);
    for (int64_t p = 0; p < groups->parents; p++)
        summarize(s, kernels, &s->parent, p, groups->cell[groups->parent[p]], groups->cell[groups->parent[p + 1]]);
}

icecore_status icecore_segment_build(icecore_dtype dtype, const void *keys, int64_t key_stride, const void *values,
                                     int64_t value_stride, int64_t count, int64_t dim, int64_t value_dim, icecore_dtype storage,
                                     int64_t cell_size, uint64_t seed, icecore_segment **result) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    if (dtype > ICECORE_BFLOAT16 || storage > ICECORE_BFLOAT16 || !keys || !values || count < 1 || count > INT32_MAX || dim < 1 ||
        dim > ICECORE_MAX_DIM || value_dim < 1 || value_dim > ICECORE_MAX_DIM || cell_size < 1)
        return ICECORE_ERROR_VALUE;
    const ice_array_rows key_rows = {kernels, dtype, keys, key_stride, dim};
    const ice_array_rows value_rows = {kernels, dtype, values, value_stride, value_dim};
    ice_groups groups;
    icecore_status status = ice_group_rows(&groups, kernels, (ice_rows){ice_read_array_row, &key_rows, count, dim}, cell_size, seed);
    if (status != ICECORE_OK) return status;
    icecore_segment *s = ice_segment_new();
    if (s) {
        s->count = count;
        s->cells = groups.cells;
        s->dim = dim;
        s->value_dim = value_dim;
        s->dtype = storage;
    }
    if (s && allocate(s, &groups)) {
        fill(s, kernels, &groups, &key_rows, &value_rows);
        *result = s;
    } else {
        icecore_segment_free(s);
        status = ICECORE_ERROR_MEMORY;
    }
    ice_groups_end(&groups);
    return status;
}
