/* The weights of a step's 32 keys for sixteen lanes, as pairs for the next product; for bf16_tiles.inc.h.
 *
 * The reference of a softmax moves only when a score is far above it, which the sum of the weights shows: there is no
 * pass that looks for maxima. */

#include <float.h>

#define LINE_BYTES 64      /* of a cache */
#define LARGEST_SUM 256.0f /* of the weights of 32 keys; above it the reference is moved to the largest score */
/* Scores from here on are rounded before the reference is subtracted, as it was: one operation for both would leave
 * what rounding took, and weights of 2 to that power. */
#define LARGEST_REFERENCE 0x1p24f

static ALWAYS_INLINE vf tile_magnitude(vf x) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
}

static ALWAYS_INLINE __mmask16 tile_finite(vf x) { return vf_ge(vf_set1(FLT_MAX), tile_magnitude(x)); }

/* Within what is finite. */
static ALWAYS_INLINE vf tile_limited(vf x) { return vf_max(vf_set1(-FLT_MAX), vf_min(vf_set1(FLT_MAX), x)); }

/* products * factor, finite where they are. */
static ALWAYS_INLINE vf tile_scaled(vf products, vf factor) {
    const vf scaled = vf_mul(products, factor);
    return vf_select(tile_finite(products), tile_limited(scaled), scaled);
}

static ALWAYS_INLINE __mmask16 tile_is_large(vf reference) {
    return _mm512_cmp_ps_mask(tile_magnitude(reference), vf_set1(LARGEST_REFERENCE), _CMP_GT_OQ);
}

/* Sixteen lanes of a panel. */
typedef struct {
    float *maximum, *sum, *correction;
} tile_lanes;

/* Two vectors of positive numbers as bfloat16, the first in the low halves; halves are rounded up. */
static ALWAYS_INLINE __m512i tile_pair(vf low, vf high) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i first = _mm512_add_epi32(_mm512_castps_si512(low), half),
                  second = _mm512_add_epi32(_mm512_castps_si512(high), half);
    return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(first, 16), second);
}

/* The same as `parts`, side by side in the steps of a unit. */
static ALWAYS_INLINE void tile_store_pairs(uint16_t *pairs, vf low, vf high, const int parts) {
    const __m512i first = _mm512_set1_epi32((int)0xFFFF0000);
    if (parts != ICE_THIRDS) {
        _mm512_storeu_si512(pairs, tile_pair(low, high));
        return;
    }
    for (int i = 0; i < parts; i++, pairs += UNIT_NUMBERS) {
        const __m512i even = _mm512_castps_si512(low), odd = _mm512_castps_si512(high);
        _mm512_storeu_si512(pairs, _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(even, 16), odd));
        low = vf_sub(low, _mm512_castsi512_ps(_mm512_and_si512(even, first)));
        high = vf_sub(high, _mm512_castsi512_ps(_mm512_and_si512(odd, first)));
    }
}

/* The sums, and the `count` pairs of the unit's earlier keys, become relative to `top` in the `raised` lanes. */
static ALWAYS_INLINE void tile_raise(const tile_lanes *lanes, vf top, __mmask16 raised, uint16_t *pairs, int count,
                                     const int parts) {
    const vf before = vf_load(lanes->maximum), after = vf_select(raised, top, before), nothing = vf_set1(-INFINITY);
    const vf change = vf_select(vf_gt(before, nothing), vf_exp2(vf_sub(before, after)), vf_set1(1.0f));
    const vf own = vf_select(raised, change, vf_set1(1.0f));
    vf_store(lanes->maximum, after);
    vf_store(lanes->sum, vf_mul(vf_load(lanes->sum), own));
    vf_store(lanes->correction, vf_mul(vf_load(lanes->correction), own));
    for (int i = 0; i < count; i++) {
        uint16_t *pair = pairs + i * TILE_PAIRED;
        vf low = vf_zero(), high = vf_zero();
        for (int part = 0; part < parts; part++) {
            const __m512i both = _mm512_loadu_si512(pair + part * UNIT_NUMBERS);
            low = vf_add(low, _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)));
            high = vf_add(high, _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xFFFF0000))));
        }
        tile_store_pairs(pair, vf_mul(low, own), vf_mul(high, own), parts);
    }
}

/* 2^x to 2.9e-6, as weight_of, or in thirds to 1.5e-7: minimax among polynomials of degree 4, or 5, for x - floor(x)
 * that are 1 at 0.  NaN remains NaN, and -inf gives 0. */
static ALWAYS_INLINE vf tile_weight(vf x, const int parts) {
    const vf f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vf p;
    if (parts != ICE_THIRDS) {
        p = vf_fma(f, vf_set1(0.013426684674f), vf_set1(0.052242472702f));
        p = vf_fma(f, p, vf_set1(0.24128020608f));
        p = vf_fma(f, p, vf_set1(0.69304484467f));
    } else {
        p = vf_fma(f, vf_set1(0.00186714075971f), vf_set1(0.00901700556278f));
        p = vf_fma(f, p, vf_set1(0.0557999312878f));
        p = vf_fma(f, p, vf_set1(0.240164443851f));
        p = vf_fma(f, p, vf_set1(0.693151295185f));
    }
    return _mm512_scalef_ps(vf_fma(f, p, vf_set1(1.0f)), x);
}

/* Rows that tiles will read next come nearer while vectors are at work: so many lines for each four keys weighed. */
typedef struct {
    const char *next;
    int lines;
} tile_ahead;

static ALWAYS_INLINE void tile_fetch(tile_ahead *ahead) {
    for (int i = 0; i < ahead->lines; i++, ahead->next += LINE_BYTES) _mm_prefetch(ahead->next, _MM_HINT_T0);
}

/* What one of `groups` fetches of 32 rows that lie side by side; NULL: nothing.  Together they fetch the first third to
 * half, by their number: more was slower (level-1 caches are full), and the rest follows by itself. */
static ALWAYS_INLINE tile_ahead tile_share(const uint16_t *rows, int64_t width, int group, int groups) {
    const int lines = rows ? (int)(width / (TILE * groups)) : 0;
    return (tile_ahead){(const char *)rows + (rows ? group * lines * (TILE_PAIRED / 4) * LINE_BYTES : 0), lines};
}

/* Weights of 32 keys for 16 lanes, 2^(products * factor + less), as pairs; returns their sum. */
static ALWAYS_INLINE vf tile_weigh(const float *products, vf factor, vf less, uint16_t *pairs, tile_ahead keys,
                                   tile_ahead values, const int parts) {
    vf sum[2] = {vf_zero(), vf_zero()};
    for (int j = 0; j < TILE_PAIRED; j += 4) {
        tile_fetch(&keys);
        tile_fetch(&values);
        UNROLL for (int u = 0; u < 2; u++) {
            const float *even = products + (j + 2 * u) * TILE;
            const vf low = tile_weight(vf_fma(vf_load(even), factor, less), parts),
                     high = tile_weight(vf_fma(vf_load(even + TILE), factor, less), parts);
            sum[u] = vf_add(sum[u], vf_add(low, high));
            tile_store_pairs(pairs + (j + 2 * u) * TILE, low, high, parts);
        }
    }
    return vf_add(sum[0], sum[1]);
}

/* The same as tile_weights, after the references of the lanes in `large` have moved to their largest scores. */
static ALWAYS_INLINE void tile_weights_raised(const float *products, float scale, const tile_lanes *lanes,
                                              uint16_t *unit_pairs, int step, __mmask16 large, const int parts) {
    const vf nothing = vf_set1(-INFINITY);
    vf factor = vf_set1(scale), top = vf_load(products);
    float scaled[STEP_PRODUCTS] __attribute__((aligned(64)));
    for (int j = 1; j < TILE_PAIRED; j++) top = vf_max(top, vf_load(products + j * TILE));
    top = tile_scaled(top, factor);
    large &= _mm512_cmp_ps_mask(top, vf_load(lanes->maximum), _CMP_NLE_UQ);
    if (large) tile_raise(lanes, top, large, unit_pairs, step * TILE, parts);
    /* subtracting -inf from -inf would be NaN: with nothing visible subtract 0 */
    const vf maximum = vf_load(lanes->maximum);
    const vf less = vf_sub(vf_zero(), vf_select(vf_ge(nothing, maximum), vf_zero(), maximum));
    const tile_ahead none = {NULL, 0};
    const __mmask16 first = tile_is_large(maximum); /* in these lanes */
    for (int i = 0; i < STEP_PRODUCTS && first; i += TILE)
        vf_store(scaled + i, vf_select(first, tile_scaled(vf_load(products + i), factor), vf_load(products + i)));
    if (first) products = scaled;
    factor = vf_select(first, vf_set1(1.0f), factor);
    const vf sum = tile_weigh(products, factor, less, unit_pairs + step * TILE_NUMBERS, none, none, parts);
    vf_store(lanes->sum, vf_add(vf_load(lanes->sum), sum));
}

static __attribute__((noinline)) void tile_raised_of_one(const float *products, float scale, const tile_lanes *lanes,
                                                         uint16_t *unit_pairs, int step, __mmask16 large) {
    tile_weights_raised(products, scale, lanes, unit_pairs, step, large, 1);
}

static __attribute__((noinline)) void tile_raised_of_thirds(const float *products, float scale, const tile_lanes *lanes,
                                                            uint16_t *unit_pairs, int step, __mmask16 large) {
    tile_weights_raised(products, scale, lanes, unit_pairs, step, large, ICE_THIRDS);
}

/* Weights of a unit's 32 keys number `step`: 16 pairs of keys for 16 lanes, behind those of the earlier ones. A sum
 * that is not small is that of scores far above the reference, or of a reference of -inf, or NaN. */
static ALWAYS_INLINE void tile_weights(const float *products, float scale, const tile_lanes *lanes,
                                       uint16_t *unit_pairs, int step, tile_ahead keys, tile_ahead values,
                                       const int parts) {
    const vf maximum = vf_load(lanes->maximum), less = vf_sub(vf_zero(), maximum);
    const vf sum = tile_weigh(products, vf_set1(scale), less, unit_pairs + step * TILE_NUMBERS, keys, values, parts);
    const __mmask16 large = _mm512_cmp_ps_mask(sum, vf_set1(LARGEST_SUM), _CMP_NLE_UQ) | tile_is_large(maximum);
    if (__builtin_expect(large != 0, 0))
        (parts != ICE_THIRDS ? tile_raised_of_one : tile_raised_of_thirds)(products, scale, lanes, unit_pairs, step,
                                                                           large);
    else vf_store(lanes->sum, vf_add(vf_load(lanes->sum), sum));
}
