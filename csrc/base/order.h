/* Sorting and selecting numbers that carry something with them: 64-bit keys, the number in the high half. */
#ifndef ICE_ORDER_H
#define ICE_ORDER_H

#include <stdint.h>

#include "base/half.h"

/* 32 bits that compare as the floats do; -0 is 0.  NaN lies outside of all. */
static inline uint32_t ice_ordered(float x) {
    uint32_t bits = ice_float_bits(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static inline float ice_unordered(uint32_t bits) {
    return ice_bits_float(bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits);
}

/* Ascending.  `spare`: room for as many. */
void ice_sort(uint64_t *keys, uint64_t *spare, int64_t count);
/* Brings the `wanted` largest to the front, in any order. */
void ice_select_largest(uint64_t *keys, int64_t count, int64_t wanted);

#endif
