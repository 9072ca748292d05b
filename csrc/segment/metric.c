#include "segment/metric.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/order.h"

/* So many rows are looked at, up to twice as many, spread evenly: it is a small share of what sealing costs. */
#define SAMPLE 256
/* Exponents of two are within this of the largest, and so of 0, which is their mean. */
#define LARGEST_EXPONENT 6.0
/* So much of the variance counts as if it were alike in all components: a key may stand out in one in which no other
 * differs. */
#define EVEN_SHARE 0.1f

static int64_t sample_step(int64_t count) { return count < SAMPLE ? 1 : count / SAMPLE; }

/* So little of the metric's trace may be missing from a projection. */
#define LEFT_OUT 0.02
/* And so much of the mean of the diagonal of M is added to it: directions in which the sampled queries happen not to
 * point. */
#define RIDGE 0x1p-10

static void metric_of_squares(const float *squares, int64_t step, int64_t dim, float *metric) {
    double exponent[ICECORE_MAX_DIM], mean = 0.0;
    float largest = 0.0f;
    int usable = 1;
    for (int64_t t = 0; t < dim; t++) {
        usable &= squares[t * step] <= FLT_MAX;
        largest = squares[t * step] > largest ? squares[t * step] : largest;
    }
    usable &= largest > 0.0f;
    for (int64_t t = 0; t < dim && usable; t++) {
        exponent[t] = 0.5 * log2(fmax((double)squares[t * step] / (double)largest, exp2(-2.0 * LARGEST_EXPONENT)));
        mean += exponent[t] / (double)dim;
    }
    for (int64_t t = 0; t < dim; t++) metric[t] = usable ? (float)exp2(exponent[t] - mean) : 1.0f;
}

void ice_find_metric(const float *moments, int64_t dim, float *metric) {
    metric_of_squares(moments, dim + 1, dim, metric);
}

/* The root mean square of components goes where the queries' goes: what training gives a component of keys it gives
 * that of queries, too (SmolLM2, 90 key heads: correlation of the logarithms 0.85). */
void ice_find_key_metric(const ice_rows *keys, float *metric) {
    const int64_t dim = keys->dim, step = sample_step(keys->count);
    float buffer[ICECORE_MAX_DIM], squares[ICECORE_MAX_DIM] = {0};
    for (int64_t i = step / 2; i < keys->count; i += step) {
        const float *key = keys->read(keys->context, i, buffer);
        for (int64_t t = 0; t < dim; t++) squares[t] += key[t] * key[t];
    }
    metric_of_squares(squares, 1, dim, metric);
}

/* Rows whose squared norm is above so many times the median are left out: padding may hold anything. */
#define OUTLYING 100.0f

/* Which sampled rows are to be trusted; returns how many. */
static int64_t trusted_rows(const ice_rows *rows, int32_t *row) {
    const int64_t dim = rows->dim, step = sample_step(rows->count);
    float buffer[ICECORE_MAX_DIM], squared[2 * SAMPLE];
    uint64_t sorted[2 * SAMPLE], spare[2 * SAMPLE];
    int64_t count = 0, trusted = 0;
    for (int64_t i = step / 2; i < rows->count && count < 2 * SAMPLE; i += step) {
        const float *x = rows->read(rows->context, i, buffer);
        float sum = 0.0f;
        for (int64_t t = 0; t < dim; t++) sum += x[t] * x[t];
        if (!(sum <= FLT_MAX)) continue;
        squared[count] = sum;
        sorted[count] = (uint64_t)ice_ordered(sum) << 32;
        row[count++] = (int32_t)i;
    }
    ice_sort(sorted, spare, count);
    const float limit = count ? OUTLYING * ice_unordered((uint32_t)(sorted[count / 2] >> 32)) : 0.0f;
    for (int64_t i = 0; i < count; i++)
        if (squared[i] <= limit || limit == 0.0f) row[trusted++] = row[i];
    return trusted;
}

void ice_find_spread(const ice_rows *keys, double *spread) {
    const int64_t dim = keys->dim;
    int32_t row[2 * SAMPLE];
    const int64_t rows = trusted_rows(keys, row);
    float buffer[ICECORE_MAX_DIM];
    double mean[ICECORE_MAX_DIM] = {0};
    memset(spread, 0, (size_t)dim * sizeof *spread);
    for (int64_t i = 0; i < rows; i++) {
        const float *key = keys->read(keys->context, row[i], buffer);
        for (int64_t t = 0; t < dim; t++) { /* Welford */
            const double before = (double)key[t] - mean[t];
            mean[t] += before / (double)(i + 1);
            spread[t] += before * ((double)key[t] - mean[t]);
        }
    }
    for (int64_t t = 0; t < dim; t++) spread[t] = rows && isfinite(spread[t]) ? sqrt(spread[t] / (double)rows) : 0.0;
}

int64_t ice_find_projection(const float *moments, const ice_rows *keys, float *projection) {
    const int64_t dim = keys->dim;
    double spread[ICECORE_MAX_DIM], left[ICECORE_MAX_DIM], trace = 0.0, ridge = 0.0, remaining;
    ice_find_spread(keys, spread);
    for (int64_t t = 0; t < dim; t++) ridge += RIDGE / (double)dim * (double)moments[t * dim + t];
    for (int64_t t = 0; t < dim; t++) {
        left[t] = spread[t] * spread[t] * ((double)moments[t * dim + t] + ridge);
        trace += left[t];
    }
    if (!(trace > 0.0 && trace <= FLT_MAX)) return 0;
    int64_t count = 0;
    const int64_t maximum = dim < ICE_MAX_PROJECTED ? dim : ICE_MAX_PROJECTED;
    for (remaining = trace; count < maximum && remaining > LEFT_OUT * trace; count++) {
        int64_t pivot = 0;
        for (int64_t t = 1; t < dim; t++)
            if (left[t] > left[pivot]) pivot = t;
        if (!(left[pivot] > 0.0)) break;
        /* a row of the factor of spread M spread: what of the pivot's own row earlier rows have not explained */
        float *row = projection + count * dim;
        const float inverse = (float)(1.0 / sqrt(left[pivot]));
        for (int64_t t = 0; t < dim; t++) row[t] = (float)(spread[pivot] * spread[t]) * moments[pivot * dim + t];
        row[pivot] += (float)(spread[pivot] * spread[pivot] * ridge);
        for (int64_t i = 0; i < count; i++) {
            const float *earlier = projection + i * dim, factor = earlier[pivot];
            for (int64_t t = 0; t < dim; t++) row[t] -= factor * earlier[t];
        }
        remaining = 0.0;
        for (int64_t t = 0; t < dim; t++) {
            row[t] *= inverse;
            left[t] = t == pivot ? 0.0 : fmax(0.0, left[t] - (double)row[t] * (double)row[t]);
            remaining += left[t];
        }
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t t = 0; t < dim; t++)
            projection[i * dim + t] = spread[t] > 0.0 ? (float)((double)projection[i * dim + t] / spread[t]) : 0.0f;
    return count;
}

void ice_find_centre(const ice_rows *rows, float *centre) {
    int32_t row[2 * SAMPLE];
    const int64_t count = trusted_rows(rows, row);
    float buffer[ICECORE_MAX_DIM];
    double sum[ICECORE_MAX_DIM] = {0};
    for (int64_t i = 0; i < count; i++) {
        const float *x = rows->read(rows->context, row[i], buffer);
        for (int64_t t = 0; t < rows->dim; t++) sum[t] += (double)x[t];
    }
    for (int64_t t = 0; t < rows->dim; t++) centre[t] = count ? (float)(sum[t] / (double)count) : 0.0f;
}

void ice_find_component_variance(icecore_segment *s, const ice_kernels *kernels) {
    const int64_t dim = s->dim, step = sample_step(s->count);
    float mean[ICECORE_MAX_DIM], key[ICECORE_MAX_DIM], squares[ICECORE_MAX_DIM] = {0}, sum = 0.0f;
    int64_t cell = -1;
    for (int64_t i = step / 2; i < s->count; i += step) {
        if (cell < 0 || i >= s->cell.offset[cell + 1]) {
            do cell++;
            while (i >= s->cell.offset[cell + 1]);
            kernels->to_float32(s->mean_dtype,
                                (const char *)s->cell.mean_key + (size_t)(cell * dim) * ice_element_size(s->mean_dtype),
                                mean, dim);
            for (int64_t t = 0; t < dim; t++) mean[t] = s->relative ? 0.0f : mean[t] + s->centre[t];
        }
        if (isnan(s->cell.log2_weight[cell])) continue; /* its mean is not finite, or its only key */
        ice_read_stored(s, kernels, s->keys, i, 1, dim, key);
        for (int64_t t = 0; t < dim; t++) {
            const float difference = (key[t] - mean[t]) * s->metric[t];
            squares[t] += difference * difference;
        }
    }
    for (int64_t t = 0; t < dim; t++) sum += squares[t];
    const int usable = sum > 0.0f && sum <= FLT_MAX;
    for (int64_t t = 0; t < dim; t++)
        s->component_variance[t] = usable ? EVEN_SHARE + (1.0f - EVEN_SHARE) * (squares[t] / sum * (float)dim) : 1.0f;
}
