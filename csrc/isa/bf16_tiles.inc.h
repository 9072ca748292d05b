/* bfloat16 kernels on matrix tiles (AMX): sixteen keys or value components by sixteen queries of a panel.
 *
 * Tiles and vectors take turns: while a tile operation is under way, one of the two units that multiply vectors stands
 * still.  Two tiles a meet all groups of 16 queries, so that keys and values are read once for a panel, and the sums of
 * 128 keys are loaded and stored once.
 *
 * Tiles take subnormal numbers as 0.  Sums are in float32, two products at a time.
 * Earned by bench/bench_exact.py: see the bfloat16 rows of bench/README.md against ICECORE_ISA=avx512_bf16. */

#include "isa/bf16_dot.inc.h" /* rows, and what tiles do not serve */
#include "isa/tile_products.inc.h"
#include "isa/tile_weights.inc.h"

#define SMALLEST_SCALE 0x1p-60f /* whose inverse a bias may have, and the largest score is found among products */

/* ---- Scores ---- */

/* The same of `count` < 32 keys, and of no keys behind them. */
static ALWAYS_INLINE void tile_products_of_last(const uint16_t *queries, int64_t dim, const uint16_t *keys,
                                                int64_t stride, int64_t count, float *out, tile_layout at,
                                                const int groups) {
    uint16_t padded[TILE_PAIRED * ICECORE_MAX_DIM];
    for (int64_t j = 0; j < TILE_PAIRED; j++)
        memcpy(padded + j * dim, keys + (j < count ? j : 0) * stride, (size_t)dim * sizeof *keys);
    tile_products(queries, dim, padded, dim, out, at, groups, 1);
}

static ALWAYS_INLINE void tile_scores_of(const uint16_t *queries, int64_t dim, float scale, const uint16_t *keys,
                                         int64_t stride, int64_t count, float *out, const int groups) {
    const vf factor = vf_set1(scale);
    for (int64_t j = 0; j < count; j += TILE_PAIRED, keys += TILE_PAIRED * stride, out += TILE_PAIRED * ICE_PANEL) {
        const int64_t present = count - j < TILE_PAIRED ? count - j : TILE_PAIRED;
        float last[TILE_PAIRED * ICE_PANEL], *products = present < TILE_PAIRED ? last : out;
        if (present < TILE_PAIRED)
            tile_products_of_last(queries, dim, keys, stride, present, products, in_panel, groups);
        else tile_products(queries, dim, keys, stride, products, in_panel, groups, 1);
        for (int64_t i = 0; i < present * ICE_PANEL; i += ICE_PANEL)
            for (int lane = 0; lane < groups * TILE; lane += TILE)
                vf_store(out + i + lane, vf_mul(vf_load(products + i + lane), factor));
    }
}

static void tile_scores(const uint16_t *queries, int64_t dim, int lanes, float scale, const uint16_t *keys,
                        int64_t stride, int64_t count, float *out) {
    tiles_begin();
    if (lanes > 2 * TILE) tile_scores_of(queries, dim, scale, keys, stride, count, out, 3);
    else if (lanes > TILE) tile_scores_of(queries, dim, scale, keys, stride, count, out, 2);
    else tile_scores_of(queries, dim, scale, keys, stride, count, out, 1);
    tiles_end();
}

/* For each 32 keys a tile per 16 components: 32 keys of a component side by side.  Zeros past `count`. */
static void tile_pack_values(const uint16_t *values, int64_t stride, int64_t count, int64_t value_dim,
                             uint16_t *packed) {
    for (int64_t j = 0; j < count; j += TILE_PAIRED)
        for (int64_t t = 0; t < value_dim; t += TILE) {
            /* 32 keys x 16 components: rows of key pairs, then a transpose of these */
            vf pairs[TILE];
            for (int r = 0; r < TILE; r++) {
                int64_t even = j + 2 * r;
                const uint16_t *source = values + even * stride + t;
                __m512i low = _mm512_setzero_si512(), high = low;
                if (even < count) low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)source));
                if (even + 1 < count)
                    high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(source + stride)));
                pairs[r] = _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
            vf_transpose(pairs);
            for (int c = 0; c < TILE; c++, packed += TILE_PAIRED) _mm512_storeu_ps(packed, pairs[c]);
        }
}

/* products * factor + bias * bias_factor in the place of products; -inf where the bias is, and behind `count`.  What is
 * finite stays so: no finite number of a mask hides a key. */
static ALWAYS_INLINE void tile_add_bias(float *products, float factor, const float *bias, float bias_factor,
                                        int64_t count) {
    const vf hidden = vf_set1(-INFINITY);
    for (int64_t j = 0; j < TILE_PAIRED; j++) {
        vf score = hidden;
        if (j < count) {
            const vf own = vf_mul(vf_load(products + j * TILE), vf_set1(factor));
            const vf added = bias ? vf_load(bias + j * ICE_PANEL) : vf_zero();
            const vf sum = vf_fma(added, vf_set1(bias_factor), own);
            score = vf_select(tile_finite(added) & tile_finite(own), tile_limited(sum), sum);
            score = vf_select(vf_ge(hidden, added), hidden, score);
        }
        vf_store(products + j * TILE, score);
    }
}

/* The products of 32 keys become scores, capped. */
static __attribute__((noinline)) void tile_cap(float *products, float scale, float cap) {
    const soft_cap c = soft_cap_of(scale, cap);
    for (int64_t i = 0; i < TILE_PAIRED * TILE; i += TILE) vf_store(products + i, capped(vf_load(products + i), &c));
}

/* The products of 32 keys from the call's key `first` on become scores, less ALiBi's. */
static __attribute__((noinline)) void tile_alibi(float *products, float scale, const ice_alibi *alibi, int lane,
                                                 int64_t first) {
    const vf factor = vf_set1(scale), slope = vf_sub(vf_zero(), vf_load(alibi->slope + lane));
    const vf offset = vf_load(alibi->offset + lane);
    for (int64_t j = 0; j < TILE_PAIRED; j++) {
        const vf lower = vf_mul(slope, distance(offset, vf_set1((float)(first + j)), 1));
        vf_store(products + j * TILE, vf_fma(vf_load(products + j * TILE), factor, lower));
    }
}

/* The scores of 32 keys from the call's key `first` on, of each group; returns by what they are still to be multiplied:
 * the same whether a bias hides keys from other lanes or not. */
static ALWAYS_INLINE float tile_step_scores(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride,
                                            int64_t count, const float *bias, int64_t first, float *out,
                                            const int groups, const int parts) {
    const int64_t present = count - first < TILE_PAIRED ? count - first : TILE_PAIRED;
    const int capped = keys && p->cap > 0.0f, lowered = keys && p->alibi;
    float now = p->scale > SMALLEST_SCALE ? 1.0f : p->scale, later = keys && now == 1.0f ? p->scale : 1.0f;
    const uint16_t *own = keys ? keys + first * parts * stride : NULL;
    if (!keys) memset(out, 0, (size_t)(groups * STEP_PRODUCTS) * sizeof *out);
    else if (present == TILE_PAIRED || parts == ICE_THIRDS) /* thirds are packed: zeros behind the last */
        tile_products(p->queries, p->dim, own, stride, out, by_group, groups, parts);
    else tile_products_of_last(p->queries, p->dim, own, stride, present, out, by_group, groups);
    for (int g = 0; g < groups && capped; g++) tile_cap(out + g * STEP_PRODUCTS, p->scale, p->cap);
    if (capped) now = later = 1.0f;
    for (int g = 0; g < groups && lowered; g++)
        tile_alibi(out + g * STEP_PRODUCTS, now * later, p->alibi, g * TILE, first);
    if (lowered) now = later = 1.0f;
    for (int g = 0; g < groups && (bias || present < TILE_PAIRED || now != 1.0f); g++)
        tile_add_bias(out + g * STEP_PRODUCTS, now, bias ? bias + first * ICE_PANEL + g * TILE : NULL, 1.0f / later,
                      present);
    return later;
}

/* Multiplies sixteen lanes of an accumulator, if that changes anything. */
static void tile_correct(float *accumulator, int64_t value_dim, const float *correction) {
    const vf change = vf_load(correction);
    if (!_mm512_cmp_ps_mask(change, vf_set1(1.0f), _CMP_NEQ_UQ)) return;
    for (int64_t t = 0; t < value_dim; t++)
        vf_store(accumulator + t * ICE_PANEL, vf_mul(vf_load(accumulator + t * ICE_PANEL), change));
}

/* ---- All of it ---- */

static ALWAYS_INLINE void tile_attend(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride,
                                      const uint16_t *values, int64_t count, const float *bias, const int groups,
                                      const int parts) {
    float products[GROUPS * STEP_PRODUCTS] __attribute__((aligned(64))),
        correction[ICE_PANEL] __attribute__((aligned(64)));
    uint16_t pairs[GROUPS * ICE_THIRDS * UNIT_NUMBERS] __attribute__((aligned(64)));
    const int is_packed = keys && stride == p->dim;
    for (int64_t first = 0; first < count; first += UNIT_KEYS) {
        const int64_t left = count - first;
        const int steps = left >= UNIT_KEYS ? UNIT_STEPS : (int)((left + TILE_PAIRED - 1) / TILE_PAIRED);
        for (int lane = 0; lane < groups * TILE; lane += TILE) vf_store(correction + lane, vf_set1(1.0f));
        for (int step = 0; step < steps; step++) {
            const int64_t key = first + step * TILE_PAIRED, next = key + TILE_PAIRED;
            const float scale = tile_step_scores(p, keys, stride, count, bias, key, products, groups, parts);
            const uint16_t *next_keys = is_packed && count - next >= TILE_PAIRED ? keys + next * parts * stride : NULL;
            for (int g = 0; g < groups; g++) {
                const tile_lanes lanes = {p->maximum + g * TILE, p->sum + g * TILE, correction + g * TILE};
                tile_weights(products + g * STEP_PRODUCTS, scale, &lanes, pairs + g * parts * UNIT_NUMBERS, step,
                             tile_share(next_keys, parts * p->dim, g, groups),
                             tile_share(values + key * parts * p->value_dim, parts * p->value_dim, g, groups), parts);
            }
        }
        for (int lane = 0; lane < groups * TILE; lane += TILE) {
            tile_correct(p->accumulator + lane, p->value_dim, correction + lane);
            vf_store(p->correction + lane, vf_mul(vf_load(p->correction + lane), vf_load(correction + lane)));
        }
        const uint16_t *own = values + first * parts * p->value_dim;
        int64_t t = 0;
        for (; t + 2 * TILE <= p->value_dim; t += 2 * TILE)
            tile_sum_values(own + t * TILE_PAIRED, p->value_dim, pairs, steps, p->accumulator + t * ICE_PANEL, groups,
                            1, parts);
        if (t < p->value_dim)
            tile_sum_values(own + t * TILE_PAIRED, p->value_dim, pairs, steps, p->accumulator + t * ICE_PANEL, groups,
                            0, parts);
    }
}

static ALWAYS_INLINE void tile_panel_attend(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride,
                                            const uint16_t *values, int64_t count, const float *bias, const int parts) {
    const unsigned control = _mm_getcsr();
    _mm_setcsr(control | _MM_FLUSH_ZERO_ON); /* weights that would be subnormal take 200 cycles each */
    for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH) vf_store(p->correction + lane, vf_set1(1.0f));
    tiles_begin();
    if (p->lanes > 2 * TILE) tile_attend(p, keys, stride, values, count, bias, 3, parts);
    else if (p->lanes > TILE) tile_attend(p, keys, stride, values, count, bias, 2, parts);
    else tile_attend(p, keys, stride, values, count, bias, 1, parts);
    tiles_end();
    _mm_setcsr(control);
}

static void bf16_panel_attend(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride, const uint16_t *values,
                              int64_t count, const float *bias) {
    tile_panel_attend(p, keys, stride, values, count, bias, 1);
}

static const ice_bf16_kernels bf16_tiles = {
    .dim_multiple = TILE_PAIRED,
    .value_dim_multiple = TILE,
    .panel_lanes = 16,
    .pack_queries = dot_pack_queries,
    .scores = tile_scores,
    .pack_values = tile_pack_values,
    .panel_attend = bf16_panel_attend,
    .row_scores = bf16_row_scores,
    .rows_attend = bf16_rows_attend,
};
