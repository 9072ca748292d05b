/* One lane: the meaning of the vector layer, in plain C. */
#ifndef ICE_SIMD_SCALAR_H
#define ICE_SIMD_SCALAR_H

#include <math.h>
#include <stdint.h>

#include "base/half.h"

#define VF_WIDTH 1
#define KEY_TILE 4
#define QUERY_VECTORS 3

typedef float vf;
typedef int vm;

static inline vf vf_zero(void) { return 0.0f; }
static inline vf vf_set1(float x) { return x; }
static inline vf vf_load(const float *p) { return *p; }
static inline void vf_store(float *p, vf v) { *p = v; }
static inline vf vf_load_n(const float *p, int n) { return n > 0 ? *p : 0.0f; }
static inline void vf_store_n(float *p, vf v, int n) {
    if (n > 0) *p = v;
}
static inline vf vf_load_bf16(const uint16_t *p) { return ice_bfloat16_to_float(*p); }
static inline vf vf_load_f16(const uint16_t *p) { return ice_float16_to_float(*p); }
static inline vf vf_load_bf16_n(const uint16_t *p, int n) { return n > 0 ? vf_load_bf16(p) : 0.0f; }
static inline vf vf_load_f16_n(const uint16_t *p, int n) { return n > 0 ? vf_load_f16(p) : 0.0f; }
static inline vf vf_set1_bf16(const void *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return ice_bfloat16_to_float(h);
}
static inline vf vf_load_i8(const int8_t *p) { return (float)*p; }
static inline vf vf_load_i8_n(const int8_t *p, int n) { return n > 0 ? vf_load_i8(p) : 0.0f; }
static inline vf vf_load_i4(const uint8_t *p, int first) {
    const int code = p[first % 8] >> first / 8 * 4 & 15;
    return (float)((code ^ 8) - 8);
}
static inline void vf_store_bf16(uint16_t *p, vf v) { *p = ice_float_to_bfloat16(v); }
static inline void vf_store_f16(uint16_t *p, vf v) { *p = ice_float_to_float16(v); }
static inline void vf_store_bf16_n(uint16_t *p, vf v, int n) {
    if (n > 0) vf_store_bf16(p, v);
}
static inline void vf_store_f16_n(uint16_t *p, vf v, int n) {
    if (n > 0) vf_store_f16(p, v);
}
static inline vf vf_add(vf a, vf b) { return a + b; }
static inline vf vf_sub(vf a, vf b) { return a - b; }
static inline vf vf_mul(vf a, vf b) { return a * b; }
static inline vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf vf_max(vf a, vf b) { return a > b ? a : b; }
static inline vf vf_min(vf a, vf b) { return a < b ? a : b; }
static inline vf vf_div(vf a, vf b) { return a / b; }
static inline vf vf_sqrt(vf a) { return sqrtf(a); }
static inline vm vf_gt(vf a, vf b) { return a > b; }
static inline vm vf_ge(vf a, vf b) { return a >= b; }
static inline vm vm_and(vm a, vm b) { return a & b; }
static inline uint32_t vm_bits(vm m) { return (uint32_t)m; }
static inline vf vf_select(vm m, vf a, vf b) { return m ? a : b; }
static inline vf vf_butterfly(vf v, int half) {
    (void)half; /* there is no other lane */
    return v;
}
static inline float vf_reduce_add(vf v) { return v; }
static inline float vf_reduce_max(vf v) { return v; }
static inline void vf_reduce_add4(vf a, vf b, vf c, vf d, float *out) {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

static inline void vf_transpose(vf v[VF_WIDTH]) { (void)v; }

#include "simd/exp2.h"

static inline vf vf_exp2(vf x) {
    if (x < EXP2_MIN) return 0.0f;
    if (x >= 128.0f) return INFINITY;
    if (x != x) return x;
    float n = (x + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: rounds to the nearest integer */
    float f = x - n;
    /* two factors: 2^128 alone is not a float, although 2^127.9 is */
    return exp2_of_fraction(f) * 2.0f * ice_bits_float((uint32_t)((int32_t)n + 126) << 23);
}

/* Sums of four products of bytes a lane: vq holds signed query bytes, vk unsigned code bytes of one key. */
typedef int32_t vi;
typedef struct {
    int8_t byte[4];
} vq;
typedef struct {
    uint8_t byte[4];
} vk;

static inline vi vi_load(const int32_t *p) { return *p; }
static inline vq vq_load(const int8_t *p) { return (vq){{p[0], p[1], p[2], p[3]}}; }
static inline vk vk_set1(const uint8_t *p) { return (vk){{p[0], p[1], p[2], p[3]}}; }
static inline vi vi_dot4(vi sum, vk x, vq q) {
    for (int i = 0; i < 4; i++) sum += x.byte[i] * q.byte[i];
    return sum;
}
static inline vf vf_from_vi(vi v) { return (float)v; }

#endif
