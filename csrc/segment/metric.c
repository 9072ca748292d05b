#include "segment/metric.h"

#include <float.h>
#include <math.h>

/* So many rows are looked at, up to twice as many, spread evenly: it is a small share of what sealing costs. */
#define SAMPLE 256
/* Exponents of two are within this of the largest, and so of 0, which is their mean. */
#define LARGEST_EXPONENT 6.0
/* So much of the variance counts as if it were alike in all components: a key may stand out in one in which no other differs. */
#define EVEN_SHARE 0.1f

static int64_t sample_step(int64_t count) { return count < SAMPLE ? 1 : count / SAMPLE; }

/* The root mean square of components goes where the queries' goes: what training gives a component of keys it gives that of queries, too
 * (SmolLM2, 90 key heads: correlation of the logarithms 0.85). */
void ice_find_key_metric(const ice_rows *keys, float *metric) {
    const int64_t dim = keys->dim, step = sample_step(keys->count);
    float buffer[ICECORE_MAX_DIM], squares[ICECORE_MAX_DIM] = {0}, largest = 0.0f;
    double exponent[ICECORE_MAX_DIM], mean = 0.0;
    for (int64_t i = step / 2; i < keys->count; i += step) {
        const float *key = keys->read(keys->context, i, buffer);
        for (int64_t t = 0; t < dim; t++) squares[t] += key[t] * key[t];
    }
    int usable = 1;
    for (int64_t t = 0; t < dim; t++) {
        usable &= squares[t] <= FLT_MAX;
        largest = squares[t] > largest ? squares[t] : largest;
    }
    usable &= largest > 0.0f;
    for (int64_t t = 0; t < dim && usable; t++) {
        exponent[t] = 0.5 * log2(fmax((double)squares[t] / (double)largest, exp2(-2.0 * LARGEST_EXPONENT)));
        mean += exponent[t] / (double)dim;
    }
    for (int64_t t = 0; t < dim; t++) metric[t] = usable ? (float)exp2(exponent[t] - mean) : 1.0f;
}

void ice_find_component_variance(icecore_segment *s, const ice_kernels *kernels) {
    const int64_t dim = s->dim, step = sample_step(s->count);
    float mean[ICECORE_MAX_DIM], key[ICECORE_MAX_DIM], squares[ICECORE_MAX_DIM] = {0}, sum = 0.0f;
    int64_t cell = -1;
    for (int64_t i = step / 2; i < s->count; i += step) {
        if (cell < 0 || i >= s->cell.offset[cell + 1]) {
            do cell++;
            while (i >= s->cell.offset[cell + 1]);
            kernels->to_float32(s->mean_dtype, (const char *)s->cell.mean_key + (size_t)(cell * dim) * ice_element_size(s->mean_dtype), mean, dim);
        }
        if (isnan(s->cell.log2_risk[cell])) continue;   /* its mean is not finite */
        kernels->to_float32(s->dtype, (const char *)s->keys + (size_t)i * ice_row_bytes(s->dtype, dim), key, dim);
        for (int64_t t = 0; t < dim; t++) {
            const float difference = (key[t] - mean[t]) * s->metric[t];
            squares[t] += difference * difference;
        }
    }
    for (int64_t t = 0; t < dim; t++) sum += squares[t];
    const int usable = sum > 0.0f && sum <= FLT_MAX;
    for (int64_t t = 0; t < dim; t++) s->component_variance[t] = usable ? EVEN_SHARE + (1.0f - EVEN_SHARE) * (squares[t] / sum * (float)dim) : 1.0f;
}
