#include "attend/finite.h"

#include "base/half.h"

/* The exponent bits of a 16-bit type: all set in NaN and inf. */
static uint16_t exponent_of(icecore_dtype dtype) { return dtype == ICECORE_FLOAT16 ? 0x7C00u : 0x7F80u; }

int ice_all_finite(const ice_numbers *rows) {
    uint32_t found = 0;
    for (int64_t j = 0; j < rows->count; j++) {
        if (rows->dtype == ICECORE_FLOAT32) {
            const uint32_t *row = (const uint32_t *)rows->data + j * rows->stride;
            for (int64_t t = 0; t < rows->dim; t++) found |= (row[t] & 0x7F800000u) == 0x7F800000u;
        } else {
            const uint16_t exponent = exponent_of(rows->dtype), *row = (const uint16_t *)rows->data + j * rows->stride;
            for (int64_t t = 0; t < rows->dim; t++) found |= (row[t] & exponent) == exponent;
        }
    }
    return !found;
}

static float number_at(icecore_dtype dtype, const void *rows, int64_t index) {
    switch (dtype) {
    case ICECORE_FLOAT16: return ice_float16_to_float(((const uint16_t *)rows)[index]);
    case ICECORE_BFLOAT16: return ice_bfloat16_to_float(((const uint16_t *)rows)[index]);
    default: return ((const float *)rows)[index];
    }
}

static void copy_finite(const ice_numbers *rows, void *target) {
    for (int64_t j = 0; j < rows->count; j++)
        for (int64_t t = 0; t < rows->dim; t++) {
            const int64_t from = j * rows->stride + t, to = j * rows->dim + t;
            const float x = number_at(rows->dtype, rows->data, from);
            const int finite = x - x == 0.0f;
            if (rows->dtype == ICECORE_FLOAT32) ((float *)target)[to] = finite ? x : 0.0f;
            else ((uint16_t *)target)[to] = finite ? ((const uint16_t *)rows->data)[from] : 0;
        }
}

int ice_clean(ice_numbers *rows, int hidden, void *target) {
    if (!hidden || ice_all_finite(rows)) return 0;
    copy_finite(rows, target);
    rows->data = target;
    rows->stride = rows->dim;
    return 1;
}

void ice_add_nonfinite(const ice_numbers *rows, const float *weights, int lanes, int64_t lane_step,
                       float *accumulator) {
    for (int64_t j = 0; j < rows->count; j++)
        for (int64_t t = 0; t < rows->dim; t++) {
            float value = number_at(rows->dtype, rows->data, j * rows->stride + t);
            if (value - value == 0.0f) continue; /* finite */
            for (int lane = 0; lane < lanes; lane++)
                if (weights[j * lane_step + lane] != 0.0f)
                    accumulator[t * lane_step + lane] += weights[j * lane_step + lane] * value;
        }
}
