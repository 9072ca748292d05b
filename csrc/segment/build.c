/* A segment for attention: keys and values in the order of their cells, with what the far field needs to know of each cell. */
#include <math.h>
#include <string.h>

#include "segment/cells.h"
#include "segment/segment.h"

static int allocate(icecore_segment *s) {
    s->offset = ice_segment_alloc(s, s->cells + 1, sizeof(int64_t));
    s->order = ice_segment_alloc(s, s->count, sizeof(int32_t));
    s->keys = ice_segment_alloc(s, s->count * s->dim, sizeof(float));
    s->values = ice_segment_alloc(s, s->count * s->value_dim, sizeof(float));
    s->mean_key = ice_segment_alloc(s, s->cells * s->dim, sizeof(float));
    s->mean_value = ice_segment_alloc(s, s->cells * s->value_dim, sizeof(float));
    s->variance = ice_segment_alloc(s, s->cells, sizeof(float));
    s->radius = ice_segment_alloc(s, s->cells, sizeof(float));
    s->log2_count = ice_segment_alloc(s, s->cells, sizeof(float));
    return s->offset && s->order && s->keys && s->values && s->mean_key && s->mean_value && s->variance && s->radius &&
           s->log2_count;
}

static void store_rows(const int32_t *order, const ice_array_rows *rows, int64_t count, float *target) {
    for (int64_t i = 0; i < count; i++, target += rows->dim) {
        const float *row = ice_read_array_row(rows, order[i], target);
        if (row != target) memcpy(target, row, (size_t)rows->dim * sizeof(float));
    }
}

static void summarize(icecore_segment *s) {
    memset(s->mean_value, 0, (size_t)(s->cells * s->value_dim) * sizeof(float));
    for (int64_t c = 0; c < s->cells; c++) {
        const float *mean = s->mean_key + c * s->dim;
        float *mean_value = s->mean_value + c * s->value_dim;
        double total = 0.0, largest = 0.0;
        for (int64_t j = s->offset[c]; j < s->offset[c + 1]; j++) {
            double distance = 0.0;
            for (int64_t t = 0; t < s->dim; t++) {
                double difference = (double)s->keys[j * s->dim + t] - mean[t];
                distance += difference * difference;
            }
            total += distance;
            if (distance > largest) largest = distance;
            for (int64_t t = 0; t < s->value_dim; t++) mean_value[t] += s->values[j * s->value_dim + t];
        }
        double size = (double)(s->offset[c + 1] - s->offset[c]);
        for (int64_t t = 0; t < s->value_dim; t++) mean_value[t] *= (float)(1.0 / size);
        s->variance[c] = (float)(total / (size * (double)s->dim));
        s->radius[c] = (float)sqrt(largest);
        s->log2_count[c] = (float)log2(size);
    }
}

icecore_status icecore_segment_build(icecore_dtype dtype, const void *keys, int64_t key_stride, const void *values,
                                     int64_t value_stride, int64_t count, int64_t dim, int64_t value_dim,
                                     int64_t cell_size, uint64_t seed, icecore_segment **result) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    if (dtype > ICECORE_BFLOAT16 || !keys || count < 1 || count > INT32_MAX || dim < 1 || dim > ICECORE_MAX_DIM || cell_size < 1)
        return ICECORE_ERROR_VALUE;
    if (!values) value_dim = 0;
    if (value_dim < 0 || value_dim > ICECORE_MAX_DIM) return ICECORE_ERROR_VALUE;
    const ice_array_rows key_rows = {kernels, dtype, keys, key_stride, dim};
    const ice_array_rows value_rows = {kernels, dtype, values, value_stride, value_dim};
    const ice_rows rows = {ice_read_array_row, &key_rows, count, dim};
    int64_t wanted = (count + cell_size / 2) / cell_size, work = INT64_MAX;
    ice_cells cells;
    icecore_status status = ice_cells_begin(&cells, kernels, rows, 0.0f, wanted < 1 ? 1 : wanted, seed);
    if (status != ICECORE_OK) return status;
    status = ice_cells_step(&cells, &work, ICE_WITHIN_TASK);
    icecore_segment *s = status == ICECORE_OK ? ice_segment_new() : NULL;
    if (s) {
        s->count = count;
        s->cells = cells.cells;
        s->dim = dim;
        s->value_dim = value_dim;
    }
    if (s && allocate(s)) {
        memcpy(s->offset, cells.offset, (size_t)(s->cells + 1) * sizeof *s->offset);
        memcpy(s->order, cells.order, (size_t)count * sizeof *s->order);
        memcpy(s->mean_key, cells.parents, (size_t)(s->cells * dim) * sizeof(float));
        store_rows(s->order, &key_rows, count, s->keys);
        if (value_dim) store_rows(s->order, &value_rows, count, s->values);
        summarize(s);
        *result = s;
    } else {
        icecore_segment_free(s);
        if (status == ICECORE_OK) status = ICECORE_ERROR_MEMORY;
    }
    ice_cells_end(&cells);
    return status;
}
