#include "cluster/rows.h"

const float *ice_read_array_row(const void *array_rows, int64_t row, float *buffer) {
    const ice_array_rows *a = array_rows;
    if (a->dtype == ICECORE_FLOAT32) return (const float *)a->data + row * a->stride;
    a->kernels->to_float32(a->dtype, (const uint16_t *)a->data + row * a->stride, buffer, a->dim);
    return buffer;
}
