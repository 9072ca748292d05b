/* AVX-512 (F, BW, DQ, VL) with FMA and F16C: 16 lanes, 32 registers. */
#ifndef ICE_SIMD_AVX512_H
#define ICE_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VF_WIDTH 16
#define KEY_TILE 8
#define QUERY_VECTORS 3

typedef __m512 vf;
typedef __mmask16 vm;

static inline __mmask16 vf_first_lanes(int n) { return (__mmask16)((1u << n) - 1u); }

static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
static inline vf vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
static inline vf vf_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(vf_first_lanes(n), p); }
static inline void vf_store_n(float *p, vf v, int n) { _mm512_mask_storeu_ps(p, vf_first_lanes(n), v); }

static inline vf vf_from_bf16(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
static inline __m256i vf_to_bf16(vf v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(rounded);
}
static inline vf vf_load_bf16(const uint16_t *p) { return vf_from_bf16(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf vf_load_bf16_n(const uint16_t *p, int n) {
    return vf_from_bf16(_mm256_maskz_loadu_epi16(vf_first_lanes(n), p));
}
static inline vf vf_load_f16_n(const uint16_t *p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vf_first_lanes(n), p));
}
static inline vf vf_set1_bf16(const void *p) {
    int16_t h;
    memcpy(&h, p, sizeof h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_set1_epi16(h), 16));
}
static inline vf vf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline vf vf_load_i8_n(const int8_t *p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(vf_first_lanes(n), p)));
}
/* The numbers of codes 0 .. 15; a permutation looks at the low four bits of a lane alone. */
static inline vf vf_load_i4(const uint8_t *p, int first) {
    (void)first; /* 0: a vector is all codes */
    const __m512 number = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
    int64_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_cvtepu8_epi32(_mm_set1_epi64x(bytes)), shift), number);
}
static inline void vf_store_bf16(uint16_t *p, vf v) { _mm256_storeu_si256((__m256i *)p, vf_to_bf16(v)); }
static inline void vf_store_f16(uint16_t *p, vf v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline void vf_store_bf16_n(uint16_t *p, vf v, int n) {
    _mm256_mask_storeu_epi16(p, vf_first_lanes(n), vf_to_bf16(v));
}
static inline void vf_store_f16_n(uint16_t *p, vf v, int n) {
    _mm256_mask_storeu_epi16(p, vf_first_lanes(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline vm vf_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline vm vf_ge(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline vm vm_and(vm a, vm b) { return (vm)(a & b); }
static inline uint32_t vm_bits(vm m) { return m; }
static inline vf vf_select(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
static inline vf vf_butterfly(vf v, int half) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                  bit = _mm512_set1_epi32(half);
    const vf other = _mm512_permutexvar_ps(_mm512_xor_si512(lane, bit), v);
    return _mm512_mask_sub_ps(_mm512_add_ps(other, v), _mm512_test_epi32_mask(lane, bit), other, v);
}
static inline float vf_reduce_add(vf v) { return _mm512_reduce_add_ps(v); }
static inline float vf_reduce_max(vf v) { return _mm512_reduce_max_ps(v); }

static inline void vf_reduce_add4(vf a, vf b, vf c, vf d, float *out) {
    /* pairs of lanes, then pairs of pairs: each 128-bit part ends as (a, b, c, d) */
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xEE);
    __m512 abcd = _mm512_add_ps(low, high);
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

static inline void vf_transpose(vf v[VF_WIDTH]) {
    vf next[16];
    for (int r = 0; r < 16; r += 2) {
        next[r] = _mm512_unpacklo_ps(v[r], v[r + 1]);
        next[r + 1] = _mm512_unpackhi_ps(v[r], v[r + 1]);
    }
    for (int r = 0; r < 16; r += 4)
        for (int u = 0; u < 2; u++) {
            const __m512d upper = _mm512_castps_pd(next[r + u]), lower = _mm512_castps_pd(next[r + u + 2]);
            v[r + 2 * u] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
            v[r + 2 * u + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
        }
    /* v[4 g + c] now holds, in its 128-bit part p, rows 4 g .. 4 g + 3 of column 4 p + c: transpose the parts */
    for (int c = 0; c < 4; c++) {
        const vf first = _mm512_shuffle_f32x4(v[c], v[4 + c], 0x44),
                 second = _mm512_shuffle_f32x4(v[c], v[4 + c], 0xEE);
        const vf third = _mm512_shuffle_f32x4(v[8 + c], v[12 + c], 0x44),
                 fourth = _mm512_shuffle_f32x4(v[8 + c], v[12 + c], 0xEE);
        next[c] = _mm512_shuffle_f32x4(first, third, 0x88);
        next[4 + c] = _mm512_shuffle_f32x4(first, third, 0xDD);
        next[8 + c] = _mm512_shuffle_f32x4(second, fourth, 0x88);
        next[12 + c] = _mm512_shuffle_f32x4(second, fourth, 0xDD);
    }
    for (int c = 0; c < 16; c++) v[c] = next[c];
}

#include "simd/exp2.h"

static inline vf vf_exp2(vf x) {
    __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP2_MIN), _CMP_NLT_UQ);
    x = _mm512_min_ps(_mm512_set1_ps(128.0f), x); /* in this order a NaN in x survives; 128 gives inf below */
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n);
    return _mm512_maskz_scalef_ps(kept, exp2_of_fraction(f), n);
}

/* Sums of four products of bytes a lane: vq holds signed query bytes, vk unsigned code bytes of one key. */
typedef __m512i vi;

static inline vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline vf vf_from_vi(vi v) { return _mm512_cvtepi32_ps(v); }

static inline __m512i vk_bytes(const uint8_t *p) {
    int quad;
    memcpy(&quad, p, sizeof quad);
    return _mm512_set1_epi32(quad);
}

#ifdef __AVX512VNNI__
typedef __m512i vq;
typedef __m512i vk;
static inline vq vq_load(const int8_t *p) { return _mm512_loadu_si512(p); }
static inline vk vk_set1(const uint8_t *p) { return vk_bytes(p); }
/* As assembler, because GCC 12 moves the intrinsic's sums between registers and to the stack, at three times the time.
 */
static inline vi vi_dot4(vi sum, vk x, vq q) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(q));
    return sum;
}
#else
/* Even and odd bytes widened to 16 bits, where products of pairs are exact. */
typedef struct {
    __m512i even, odd;
} vq;
typedef struct {
    __m512i even, odd;
} vk;
static inline vq vq_load(const int8_t *p) {
    __m512i bytes = _mm512_loadu_si512(p);
    return (vq){_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
}
static inline vk vk_set1(const uint8_t *p) {
    __m512i bytes = vk_bytes(p);
    return (vk){_mm512_and_si512(bytes, _mm512_set1_epi16(0xFF)), _mm512_srli_epi16(bytes, 8)};
}
static inline vi vi_dot4(vi sum, vk x, vq q) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(x.even, q.even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(x.odd, q.odd));
}
#endif

#endif
