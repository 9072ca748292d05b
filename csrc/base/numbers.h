/* The smaller and the larger of two numbers, and checks of numbers that callers give. */
#ifndef ICE_NUMBERS_H
#define ICE_NUMBERS_H

#include <math.h>
#include <stdint.h>

static inline int64_t ice_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ice_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Whether all are finite and above 0; NULL: there are none. */
static inline int ice_all_positive(const float *numbers, int64_t count) {
    for (int64_t i = 0; numbers && i < count; i++)
        if (!(numbers[i] > 0.0f && numbers[i] < INFINITY)) return 0;
    return 1;
}

/* Whether the numbers of `count` matrices, dim x dim each, are finite and their diagonals at least 0; NULL: there are
 * none. */
static inline int ice_are_moments(const float *numbers, int64_t count, int64_t dim) {
    for (int64_t i = 0; numbers && i < count * dim * dim; i++)
        if (!isfinite(numbers[i]) || (i % (dim * dim) % (dim + 1) == 0 && numbers[i] < 0.0f)) return 0;
    return 1;
}

#endif
