#include "tree/frame.h"

#include <math.h>
#include <string.h>

#include "base/order.h"

/* Rows looked at, evenly spread. */
#define SAMPLE 512
#define OUTLYING 16.0f
/* Binary orders of magnitude between two scales, and the largest one: scale and 1 / scale are normal numbers. */
#define SCALE_STEP 32
#define MAX_EXPONENT 126

static int64_t sample_size(const ice_rows *rows) { return rows->count < SAMPLE ? rows->count : SAMPLE; }

static const float *read_sampled(const ice_rows *rows, int64_t number, float *buffer) {
    return rows->read(rows->context, number * rows->count / sample_size(rows), buffer);
}

static double largest_component(const float *x, const float *centre, int64_t dim) {
    double largest = 0.0;
    for (int64_t t = 0; t < dim; t++) largest = fmax(largest, fabs((double)x[t] - (centre ? (double)centre[t] : 0.0)));
    return largest;
}

void ice_frame_centre(const ice_rows *rows, double *work, float *centre) {
    const int64_t sampled = sample_size(rows), dim = rows->dim;
    float size[SAMPLE], *row = (float *)(work + dim);
    uint64_t sorted[SAMPLE], spare[SAMPLE];
    for (int64_t i = 0; i < sampled; i++) {
        size[i] = (float)largest_component(read_sampled(rows, i, row), NULL, dim);
        sorted[i] = (uint64_t)ice_ordered(size[i]) << 32;
    }
    ice_sort(sorted, spare, sampled);
    const float median = ice_unordered((uint32_t)(sorted[sampled / 2] >> 32));
    double trusted = 0.0;
    memset(work, 0, (size_t)dim * sizeof *work);
    for (int64_t i = 0; i < sampled; i++) {
        if (size[i] / OUTLYING > median) continue;
        const float *x = read_sampled(rows, i, row);
        for (int64_t t = 0; t < dim; t++) work[t] += (double)x[t];
        trusted += 1.0;
    }
    for (int64_t t = 0; t < dim; t++) centre[t] = (float)(work[t] / trusted);
}

float ice_frame_scale(const ice_rows *rows, const float *centre, float *row) {
    double exponents = 0.0, differing = 0.0;
    for (int64_t i = 0; i < sample_size(rows); i++) {
        const double largest = largest_component(read_sampled(rows, i, row), centre, rows->dim);
        if (largest == 0.0) continue;
        exponents += log2(largest);
        differing += 1.0;
    }
    if (differing == 0.0) return centre ? ice_frame_scale(rows, NULL, row) : 1.0f;
    const double exponent = -SCALE_STEP * round(exponents / differing / SCALE_STEP);
    return (float)exp2(fmin(fmax(exponent, -MAX_EXPONENT), MAX_EXPONENT));
}
