/* Checks of numbers that callers give. */
#ifndef ICE_NUMBERS_H
#define ICE_NUMBERS_H

#include <math.h>
#include <stdint.h>

/* Whether all are finite and above 0; NULL: there are none. */
static inline int ice_all_positive(const float *numbers, int64_t count) {
    for (int64_t i = 0; numbers && i < count; i++)
        if (!(numbers[i] > 0.0f && numbers[i] < INFINITY)) return 0;
    return 1;
}

#endif
