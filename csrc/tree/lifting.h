/* Lifting: inner products as distances (IceFormer, equations 4 to 7).  T(x) = [ x / c ; sqrt(1 - |x|^2 / c^2) ], c at
 * least the largest norm. */
#ifndef ICE_LIFTING_H
#define ICE_LIFTING_H

#include <math.h>
#include <stdint.h>

/* The last coordinate of T(x); in double, since 1 - |x|^2 / c^2 cancels for the longest rows. */
static inline float ice_last_coordinate(const float *x, int64_t dim, float lifting) {
    double squared = 0.0;
    for (int64_t t = 0; t < dim; t++) squared += (double)x[t] * x[t];
    double rest = 1.0 - squared / ((double)lifting * lifting);
    return rest > 0.0 ? (float)sqrt(rest) : 0.0f;
}

#endif
