/* AVX2 with FMA and F16C: 8 lanes, 16 registers. */
#ifndef ICE_SIMD_AVX2_H
#define ICE_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VF_WIDTH 8
#define KEY_TILE 4
#define QUERY_VECTORS 3

typedef __m256 vf;
typedef __m256 vm;

static inline __m256i vf_first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_set1(float x) { return _mm256_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
static inline vf vf_load_n(const float *p, int n) { return _mm256_maskload_ps(p, vf_first_lanes(n)); }
static inline void vf_store_n(float *p, vf v, int n) { _mm256_maskstore_ps(p, vf_first_lanes(n), v); }

static inline vf vf_from_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline __m128i vf_to_bf16(vf v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    __m256i wide = _mm256_blendv_epi8(rounded, quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}
static inline __m128i vf_load_16_n(const uint16_t *p, int n) {
    uint16_t lanes[VF_WIDTH] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *p);
    return _mm_loadu_si128((const __m128i *)lanes);
}
static inline void vf_store_16_n(uint16_t *p, __m128i v, int n) {
    uint16_t lanes[VF_WIDTH];
    _mm_storeu_si128((__m128i *)lanes, v);
    memcpy(p, lanes, (size_t)n * sizeof *p);
}
static inline vf vf_load_bf16(const uint16_t *p) { return vf_from_bf16(_mm_loadu_si128((const __m128i *)p)); }
static inline vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline vf vf_load_bf16_n(const uint16_t *p, int n) { return vf_from_bf16(vf_load_16_n(p, n)); }
static inline vf vf_load_f16_n(const uint16_t *p, int n) { return _mm256_cvtph_ps(vf_load_16_n(p, n)); }
static inline vf vf_set1_bf16(const void *p) {
    int16_t h;
    memcpy(&h, p, sizeof h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16(h), 16));
}
static inline vf vf_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline vf vf_load_i8_n(const int8_t *p, int n) {
    int8_t lanes[VF_WIDTH] = {0};
    memcpy(lanes, p, (size_t)n);
    return vf_load_i8(lanes);
}
/* The wanted half of each byte goes to the top, which brings its sign. */
static inline vf vf_load_i4(const uint8_t *p, int first) {
    __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(bytes, first ? 24 : 28), 28));
}
static inline void vf_store_bf16(uint16_t *p, vf v) { _mm_storeu_si128((__m128i *)p, vf_to_bf16(v)); }
static inline void vf_store_f16(uint16_t *p, vf v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline void vf_store_bf16_n(uint16_t *p, vf v, int n) { vf_store_16_n(p, vf_to_bf16(v), n); }
static inline void vf_store_f16_n(uint16_t *p, vf v, int n) {
    vf_store_16_n(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT), n);
}

static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
static inline vm vf_gt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static inline vm vf_ge(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
static inline vm vm_and(vm a, vm b) { return _mm256_and_ps(a, b); }
static inline uint32_t vm_bits(vm m) { return (uint32_t)_mm256_movemask_ps(m); }
static inline vf vf_select(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }

static inline vf vf_butterfly(vf v, int half) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), bit = _mm256_set1_epi32(half);
    const __m256i second = _mm256_cmpeq_epi32(_mm256_and_si256(lane, bit), bit);
    const vf own = _mm256_xor_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(second, 31)));
    return _mm256_add_ps(_mm256_permutevar8x32_ps(v, _mm256_xor_si256(lane, bit)), own);
}
static inline float vf_reduce_add(vf v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float vf_reduce_max(vf v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static inline void vf_reduce_add4(vf a, vf b, vf c, vf d, float *out) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

static inline void vf_transpose(vf v[VF_WIDTH]) {
    vf next[8];
    for (int r = 0; r < 8; r += 2) {
        next[r] = _mm256_unpacklo_ps(v[r], v[r + 1]);
        next[r + 1] = _mm256_unpackhi_ps(v[r], v[r + 1]);
    }
    for (int r = 0; r < 8; r += 4)
        for (int u = 0; u < 2; u++) {
            v[r + 2 * u] = _mm256_shuffle_ps(next[r + u], next[r + u + 2], 0x44);
            v[r + 2 * u + 1] = _mm256_shuffle_ps(next[r + u], next[r + u + 2], 0xEE);
        }
    for (int c = 0; c < 4; c++) {
        next[c] = _mm256_permute2f128_ps(v[c], v[4 + c], 0x20);
        next[4 + c] = _mm256_permute2f128_ps(v[c], v[4 + c], 0x31);
    }
    for (int c = 0; c < 8; c++) v[c] = next[c];
}

#include "simd/exp2.h"

static inline vf vf_exp2(vf x) {
    __m256 kept = _mm256_cmp_ps(x, _mm256_set1_ps(EXP2_MIN), _CMP_NLT_UQ);
    x = _mm256_min_ps(_mm256_set1_ps(128.0f), x); /* in this order a NaN in x survives */
    __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_sub_ps(x, n);
    __m256 p = exp2_of_fraction(f);
    /* 2^n as 2 * 2^(n-1): n reaches 128, and at 128 the product overflows to inf as it should */
    __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(126)), 23);
    p = _mm256_mul_ps(_mm256_add_ps(p, p), _mm256_castsi256_ps(scale));
    return _mm256_and_ps(p, kept);
}

/* Sums of four products of bytes a lane: vq holds signed query bytes, vk unsigned code bytes of one key.  Even and odd
 * bytes are widened to 16 bits, where products of pairs are exact. */
typedef __m256i vi;
typedef struct {
    __m256i even, odd;
} vq;
typedef struct {
    __m256i even, odd;
} vk;

static inline vi vi_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vf vf_from_vi(vi v) { return _mm256_cvtepi32_ps(v); }
static inline vq vq_load(const int8_t *p) {
    __m256i bytes = _mm256_loadu_si256((const __m256i *)p);
    return (vq){_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}
static inline vk vk_set1(const uint8_t *p) {
    int quad;
    memcpy(&quad, p, sizeof quad);
    __m256i bytes = _mm256_set1_epi32(quad);
    return (vk){_mm256_and_si256(bytes, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16(bytes, 8)};
}
static inline vi vi_dot4(vi sum, vk x, vq q) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x.even, q.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x.odd, q.odd));
}

#endif
