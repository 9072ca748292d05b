/* AArch64 NEON: 4 lanes, 32 registers. */
#ifndef ICE_SIMD_NEON_H
#define ICE_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define VF_WIDTH 4
#define KEY_TILE 8
#define QUERY_VECTORS 3

typedef float32x4_t vf;
typedef uint32x4_t vm;

static inline vf vf_zero(void) { return vdupq_n_f32(0.0f); }
static inline vf vf_set1(float x) { return vdupq_n_f32(x); }
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf v) { vst1q_f32(p, v); }
static inline vf vf_load_n(const float *p, int n) {
    float lanes[VF_WIDTH] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *p);
    return vld1q_f32(lanes);
}
static inline void vf_store_n(float *p, vf v, int n) {
    float lanes[VF_WIDTH];
    vst1q_f32(lanes, v);
    memcpy(p, lanes, (size_t)n * sizeof *p);
}

static inline vf vf_from_bf16(uint16x4_t h) { return vreinterpretq_f32_u32(vshll_n_u16(h, 16)); }
static inline uint16x4_t vf_to_bf16(vf v) {
    uint32x4_t bits = vreinterpretq_u32_f32(v);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16);
}
static inline vf vf_from_f16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
static inline uint16x4_t vf_to_f16(vf v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
static inline uint16x4_t vf_load_16_n(const uint16_t *p, int n) {
    uint16_t lanes[VF_WIDTH] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *p);
    return vld1_u16(lanes);
}
static inline void vf_store_16_n(uint16_t *p, uint16x4_t v, int n) {
    uint16_t lanes[VF_WIDTH];
    vst1_u16(lanes, v);
    memcpy(p, lanes, (size_t)n * sizeof *p);
}
static inline vf vf_load_bf16(const uint16_t *p) { return vf_from_bf16(vld1_u16(p)); }
static inline vf vf_load_f16(const uint16_t *p) { return vf_from_f16(vld1_u16(p)); }
static inline vf vf_load_bf16_n(const uint16_t *p, int n) { return vf_from_bf16(vf_load_16_n(p, n)); }
static inline vf vf_load_f16_n(const uint16_t *p, int n) { return vf_from_f16(vf_load_16_n(p, n)); }
static inline vf vf_set1_bf16(const void *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return vf_from_bf16(vdup_n_u16(h));
}
static inline vf vf_load_i8_n(const int8_t *p, int n) {
    int8_t lanes[8] = {0};
    memcpy(lanes, p, (size_t)n);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(lanes)))));
}
static inline vf vf_load_i8(const int8_t *p) { return vf_load_i8_n(p, VF_WIDTH); }
/* The wanted half of each byte goes to the top, which brings its sign. */
static inline vf vf_load_i4(const uint8_t *p, int first) {
    uint8_t byte[8] = {0};
    memcpy(byte, p + first % 8, 4);
    const uint8x8_t codes = vld1_u8(byte);
    const int8x8_t number = vshr_n_s8(vreinterpret_s8_u8(first < 8 ? vshl_n_u8(codes, 4) : codes), 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(number))));
}
static inline void vf_store_bf16(uint16_t *p, vf v) { vst1_u16(p, vf_to_bf16(v)); }
static inline void vf_store_f16(uint16_t *p, vf v) { vst1_u16(p, vf_to_f16(v)); }
static inline void vf_store_bf16_n(uint16_t *p, vf v, int n) { vf_store_16_n(p, vf_to_bf16(v), n); }
static inline void vf_store_f16_n(uint16_t *p, vf v, int n) { vf_store_16_n(p, vf_to_f16(v), n); }

static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf vf_min(vf a, vf b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
} /* b where one is NaN, as in all sets */
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
static inline vm vf_gt(vf a, vf b) { return vcgtq_f32(a, b); }
static inline vm vf_ge(vf a, vf b) { return vcgeq_f32(a, b); }
static inline vm vm_and(vm a, vm b) { return vandq_u32(a, b); }
static inline uint32_t vm_bits(vm m) {
    static const uint32_t weight[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(weight)));
}
static inline vf vf_select(vm m, vf a, vf b) { return vbslq_f32(m, a, b); }
static inline vf vf_butterfly(vf v, int half) {
    const uint32x4_t one = {0, 0x80000000, 0, 0x80000000}, two = {0, 0, 0x80000000, 0x80000000};
    const uint32x4_t own = veorq_u32(vreinterpretq_u32_f32(v), half == 1 ? one : two);
    return vaddq_f32(half == 1 ? vrev64q_f32(v) : vextq_f32(v, v, 2), vreinterpretq_f32_u32(own));
}
static inline float vf_reduce_add(vf v) { return vaddvq_f32(v); }
static inline float vf_reduce_max(vf v) { return vmaxvq_f32(v); }
static inline void vf_reduce_add4(vf a, vf b, vf c, vf d, float *out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

static inline void vf_transpose(vf v[VF_WIDTH]) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(v[0], v[1])),
                      b = vreinterpretq_f64_f32(vtrn2q_f32(v[0], v[1]));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(v[2], v[3])),
                      d = vreinterpretq_f64_f32(vtrn2q_f32(v[2], v[3]));
    v[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    v[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    v[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    v[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
}

#include "simd/exp2.h"

static inline vf vf_exp2(vf x) {
    uint32x4_t dropped = vcltq_f32(x, vdupq_n_f32(EXP2_MIN));
    x = vminq_f32(x, vdupq_n_f32(128.0f)); /* keeps NaN */
    float32x4_t n = vrndnq_f32(x);
    float32x4_t f = vsubq_f32(x, n);
    float32x4_t p = exp2_of_fraction(f);
    /* 2^n as 2 * 2^(n-1): n reaches 128, and at 128 the product overflows to inf as it should */
    int32x4_t scale = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(126)), 23);
    p = vmulq_f32(vaddq_f32(p, p), vreinterpretq_f32_s32(scale));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(p), dropped));
}

/* Sums of four products of bytes a lane: vq holds signed query bytes, vk unsigned code bytes of one key, both widened
 * to 16 bits. */
typedef int32x4_t vi;
typedef struct {
    int16x8_t low, high;
} vq;
typedef struct {
    int16x4_t quad;
} vk;

static inline vi vi_load(const int32_t *p) { return vld1q_s32(p); }
static inline vf vf_from_vi(vi v) { return vcvtq_f32_s32(v); }
static inline vq vq_load(const int8_t *p) {
    int8x16_t bytes = vld1q_s8(p);
    return (vq){vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
}
static inline vk vk_set1(const uint8_t *p) {
    uint32_t quad;
    memcpy(&quad, p, sizeof quad);
    uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(quad));
    return (vk){vget_low_s16(vreinterpretq_s16_u16(vmovl_u8(bytes)))};
}
static inline vi vi_dot4(vi sum, vk x, vq q) {
    int32x4_t a = vmull_s16(vget_low_s16(q.low), x.quad), b = vmull_s16(vget_high_s16(q.low), x.quad);
    int32x4_t c = vmull_s16(vget_low_s16(q.high), x.quad), d = vmull_s16(vget_high_s16(q.high), x.quad);
    return vaddq_s32(sum, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)));
}

#endif
