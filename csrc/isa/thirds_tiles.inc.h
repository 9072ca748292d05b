/* Panels of float32 on matrix tiles: every number in three bfloat16 ones, thirds, whose sum it is.
 *
 * x = h + m + l with h = x to 8 bits, m = x - h to 8 bits, and l what is left, which has no more than 8.  Of nine
 * products of thirds six count; the others are below 2^-24 of the whole.  Products of bfloat16 are exact in float32, so
 * that sums are about as near as float32's own.  Keys, queries and values are rounded to nearest, so that what is left
 * out has either sign; weights, which are split as they are made, are cut off.  Tiles take thirds below 2^-126 as 0,
 * which is nothing beside the largest number that was packed with them.
 *
 * Packed, 32 rows at a time: their first thirds, their second, their third; zeros behind the last row.
 * Earned by bench/bench_exact.py: see the float32 rows of AMX in bench/README.md against ICECORE_ISA=avx512. */

#include "isa/bf16_tiles.inc.h"

/* Of the largest number: its thirds are far above 2^-126, and products far below 2^128. */
#define MIN_OF_THIRDS 0x1p-60f
#define MAX_OF_THIRDS 0x1p60f

/* Splits into thirds, each in the high half of a lane. */
static ALWAYS_INLINE void split_thirds(vf x, __m512i third[ICE_THIRDS]) {
    const __m512i half = _mm512_set1_epi32(0x8000), high = _mm512_set1_epi32((int)0xFFFF0000);
    for (int i = 0; i < ICE_THIRDS; i++) {
        third[i] = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), high);
        x = vf_sub(x, _mm512_castsi512_ps(third[i]));
    }
}

/* Whether thirds hold numbers of these magnitudes.  A NaN stays in the vector. */
static int are_in_thirds(vf largest) {
    const __mmask16 wide = _mm512_cmp_ps_mask(largest, vf_set1(MAX_OF_THIRDS), _CMP_NLE_UQ);
    const float maximum = vf_reduce_max(largest);
    return !wide && (maximum == 0.0f || maximum >= MIN_OF_THIRDS);
}

/* In this order a NaN stays. */
static ALWAYS_INLINE vf larger(vf x, vf largest) {
    return _mm512_mask_mov_ps(vf_max(_mm512_abs_ps(x), largest), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

static int thirds_pack_queries(const float *panel, int64_t dim, uint16_t *pairs) {
    vf largest = vf_zero();
    for (int64_t t = 0; t < dim; t += 2)
        for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH, pairs += 2 * VF_WIDTH) {
            const vf even = vf_load(panel + t * ICE_PANEL + lane), odd = vf_load(panel + (t + 1) * ICE_PANEL + lane);
            __m512i low[ICE_THIRDS], high[ICE_THIRDS];
            split_thirds(even, low);
            split_thirds(odd, high);
            for (int i = 0; i < ICE_THIRDS; i++)
                _mm512_storeu_si512(pairs + i * dim * ICE_PANEL,
                                    _mm512_or_si512(_mm512_srli_epi32(low[i], 16), high[i]));
            largest = larger(even, larger(odd, largest));
        }
    return are_in_thirds(largest);
}

static int thirds_pack_keys(const float *keys, int64_t stride, int64_t count, int64_t dim, uint16_t *packed) {
    vf largest = vf_zero();
    for (int64_t first = 0; first < count; first += ICE_PACKED, packed += ICE_THIRDS * ICE_PACKED * dim)
        for (int64_t j = 0; j < ICE_PACKED; j++)
            for (int64_t t = 0; t < dim; t += VF_WIDTH) {
                const vf x = first + j < count ? vf_load(keys + (first + j) * stride + t) : vf_zero();
                __m512i third[ICE_THIRDS];
                split_thirds(x, third);
                for (int i = 0; i < ICE_THIRDS; i++)
                    _mm256_storeu_si256((__m256i *)(packed + (i * ICE_PACKED + j) * dim + t),
                                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(third[i], 16)));
                largest = larger(x, largest);
            }
    return are_in_thirds(largest);
}

/* In each third as bf16's values: a tile per 16 components, 32 keys of a component side by side. */
static int thirds_pack_values(const float *values, int64_t stride, int64_t count, int64_t value_dim, uint16_t *packed) {
    vf largest = vf_zero();
    for (int64_t first = 0; first < count; first += ICE_PACKED, packed += ICE_THIRDS * ICE_PACKED * value_dim)
        for (int64_t t = 0; t < value_dim; t += TILE) {
            vf pairs[ICE_THIRDS][TILE];
            for (int r = 0; r < TILE; r++) {
                const int64_t even = first + 2 * r;
                const float *source = values + even * stride + t;
                const vf low = even < count ? vf_load(source) : vf_zero(),
                         high = even + 1 < count ? vf_load(source + stride) : vf_zero();
                __m512i first_third[ICE_THIRDS], second_third[ICE_THIRDS];
                split_thirds(low, first_third);
                split_thirds(high, second_third);
                for (int i = 0; i < ICE_THIRDS; i++)
                    pairs[i][r] =
                        _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(first_third[i], 16), second_third[i]));
                largest = larger(low, larger(high, largest));
            }
            for (int i = 0; i < ICE_THIRDS; i++) {
                uint16_t *target = packed + (i * value_dim + t) * ICE_PACKED;
                vf_transpose(pairs[i]);
                for (int c = 0; c < TILE; c++) _mm512_storeu_ps(target + c * TILE_PAIRED, pairs[i][c]);
            }
        }
    return are_in_thirds(largest);
}

static void thirds_panel_attend(const ice_bf16_panel *p, const uint16_t *keys, const uint16_t *values, int64_t count,
                                const float *bias) {
    tile_panel_attend(p, keys, p->dim, values, count, bias, ICE_THIRDS);
}

static const ice_thirds_kernels thirds_tiles = {
    .dim_multiple = TILE_PAIRED,
    .value_dim_multiple = TILE,
    .pack_queries = thirds_pack_queries,
    .pack_keys = thirds_pack_keys,
    .pack_values = thirds_pack_values,
    .panel_attend = thirds_panel_attend,
};
