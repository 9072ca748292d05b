/* float16 and bfloat16 as bit patterns, one number at a time. */
#ifndef ICE_HALF_H
#define ICE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t ice_float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float ice_bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline float ice_bfloat16_to_float(uint16_t h) { return ice_bits_float((uint32_t)h << 16); }

/* Round to nearest, ties to even; a NaN stays a (quiet) NaN. */
static inline uint16_t ice_float_to_bfloat16(float x) {
    uint32_t bits = ice_float_bits(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static inline float ice_float16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1Fu, mantissa = h & 0x3FFu;
    if (exponent == 31) return ice_bits_float(sign | 0x7F800000u | (mantissa << 13));
    if (exponent != 0) return ice_bits_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    float magnitude = (float)mantissa * 0x1p-24f; /* zero or subnormal: exact */
    return sign ? -magnitude : magnitude;
}

/* Round to nearest, ties to even; past the range it becomes inf. */
static inline uint16_t ice_float_to_float16(float x) {
    uint32_t bits = ice_float_bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and above round to inf */
    if (magnitude < 0x38800000u) { /* below 2^-14: subnormal, let float addition round */
        uint32_t rounded = ice_float_bits(ice_bits_float(magnitude) + 0.5f) - 0x3F000000u;
        return (uint16_t)(sign | rounded);
    }
    uint32_t rebased = magnitude - (112u << 23);
    return (uint16_t)(sign | ((rebased + 0xFFFu + ((rebased >> 13) & 1u)) >> 13));
}

#endif
