/* bfloat16 kernels on matrix tiles (AMX): sixteen keys or value components by sixteen queries of a panel.
 *
 * Scores: a = 16 keys x 32 components as they lie in memory, b = 16 component pairs x 16 queries (the packed panel), c
 * = keys x queries. Weighted sum: a = 16 value components x 32 keys (packed: transposed), b = 16 key pairs x 16 queries
 * (the weights as softmax writes them), c = components x queries, a part of the panel's accumulator.
 *
 * Tiles multiply while vectors take exponentials: the scores of the next 32 keys are asked for before the weights of
 * these are made, and the values of a unit (128 keys, 16 queries) are summed up while the next unit is scored.  The
 * reference of a softmax moves only when a score is far above it, so that an accumulator is rarely rescaled and its
 * tiles are loaded and stored once per unit.
 *
 * Tiles take subnormal numbers as 0.  Sums are in float32, two products at a time.
 * Earned by bench/bench_exact.py: see the bfloat16 rows of bench/README.md against ICECORE_ISA=avx512_bf16. */

#include "isa/bf16_dot.inc.h" /* rows, and what tiles do not serve */

#define TILE 16        /* rows of a tile, and floats or pairs in a row */
#define TILE_PAIRED 32 /* bfloat16 numbers in a row; keys in a step */
#define TILE_NUMBERS (TILE * TILE_PAIRED)
#define UNIT_STEPS 4 /* of 32 keys; so many keys and values stay in a level-1 cache for all queries of a panel */
#define UNIT_KEYS (UNIT_STEPS * TILE_PAIRED)
#define SUM_TILES 4                     /* of value components whose sums are in tiles at a time */
#define SMALLEST_SCALE 0x1p-100f        /* whose inverse is a number, and the largest score is found among products */
#define PANEL_ROW_BYTES (ICE_PANEL * 4) /* of scores, of accumulators, and of pairs */
#define TILE_LAZY 8.0f /* how far above the maximum (log2 units) scores may rise before the sums are rescaled */

#if ICE_PANEL != 3 * TILE || TILE_PAIRED != ICE_PACKED
#error "three tiles cover a panel, and values are packed by steps"
#endif

/* c tiles 4 and 5 = the products of 32 keys and 16 queries.  Tiles 0 to 3 belong to the sums. */
static ALWAYS_INLINE void tile_products(const uint16_t *queries, int64_t dim, const uint16_t *keys, int64_t stride,
                                        float *out) {
    const int64_t row_bytes = stride * (int64_t)sizeof *keys;
    tile_zero(4);
    tile_zero(5);
    for (int64_t t = 0; t < dim; t += TILE_PAIRED) {
        tile_load(7, queries + t * ICE_PANEL, PANEL_ROW_BYTES);
        tile_load(6, keys + t, row_bytes);
        tile_float_product(4, 6, 7);
        tile_load(6, keys + TILE * stride + t, row_bytes);
        tile_float_product(5, 6, 7);
    }
    tile_store(4, out, TILE * sizeof *out);
    tile_store(5, out + TILE * TILE, TILE * sizeof *out);
}

/* The same of `count` < 32 keys, and of no keys behind them. */
static void tile_products_of_last(const uint16_t *queries, int64_t dim, const uint16_t *keys, int64_t stride,
                                  int64_t count, float *out) {
    uint16_t padded[TILE_PAIRED * ICECORE_MAX_DIM];
    for (int64_t j = 0; j < TILE_PAIRED; j++)
        memcpy(padded + j * dim, keys + (j < count ? j : 0) * stride, (size_t)dim * sizeof *keys);
    tile_products(queries, dim, padded, dim, out);
}

static void tile_scores(const uint16_t *queries, int64_t dim, int lanes, float scale, const uint16_t *keys,
                        int64_t stride, int64_t count, float *out) {
    const vf factor = vf_set1(scale);
    float products[TILE_PAIRED * TILE];
    tiles_begin();
    for (int64_t j = 0; j < count; j += TILE_PAIRED)
        for (int lane = 0; lane < lanes; lane += TILE) {
            const int64_t present = count - j < TILE_PAIRED ? count - j : TILE_PAIRED;
            if (present < TILE_PAIRED)
                tile_products_of_last(queries + 2 * lane, dim, keys + j * stride, stride, present, products);
            else tile_products(queries + 2 * lane, dim, keys + j * stride, stride, products);
            for (int64_t i = 0; i < present; i++)
                vf_store(out + (j + i) * ICE_PANEL + lane, vf_mul(vf_load(products + i * TILE), factor));
        }
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

/* ---- Softmax ---- */

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

/* The sums, and the `count` pairs of the unit's earlier keys, become relative to larger maxima in the lanes where `top`
 * is far above the present one, or is NaN. */
static void tile_raise(const tile_lanes *lanes, vf top, __mmask16 far_above, uint16_t *pairs, int count) {
    const vf before = vf_load(lanes->maximum), after = vf_select(far_above, top, before), nothing = vf_set1(-INFINITY);
    const vf change = vf_select(vf_gt(before, nothing), vf_exp2(vf_sub(before, after)), vf_set1(1.0f));
    const vf own = vf_select(far_above, change, vf_set1(1.0f));
    vf_store(lanes->maximum, after);
    vf_store(lanes->sum, vf_mul(vf_load(lanes->sum), own));
    vf_store(lanes->correction, vf_mul(vf_load(lanes->correction), own));
    for (int i = 0; i < count; i++) {
        const __m512i pair = _mm512_loadu_si512(pairs + i * TILE_PAIRED);
        const vf low = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        const vf high = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xFFFF0000)));
        _mm512_storeu_si512(pairs + i * TILE_PAIRED, tile_pair(vf_mul(low, own), vf_mul(high, own)));
    }
}

/* Weights of a unit's 32 keys number `step`: 16 pairs of keys for 16 lanes, behind those of the earlier ones. */
static ALWAYS_INLINE void tile_weights(const float *products, float scale, const tile_lanes *lanes,
                                       uint16_t *unit_pairs, int step) {
    uint16_t *pairs = unit_pairs + step * TILE_NUMBERS;
    const vf factor = vf_set1(scale);
    vf top[4];
    UNROLL for (int u = 0; u < 4; u++)
        top[u] = vf_load(products + u * TILE);
    for (int j = 4; j < TILE_PAIRED; j += 4) UNROLL
        for (int u = 0; u < 4; u++) top[u] = vf_max(top[u], vf_load(products + (j + u) * TILE));
    const vf highest = vf_mul(vf_max(vf_max(top[0], top[1]), vf_max(top[2], top[3])), factor);
    const __mmask16 far_above =
        _mm512_cmp_ps_mask(highest, vf_add(vf_load(lanes->maximum), vf_set1(TILE_LAZY)), _CMP_NLE_UQ);
    if (__builtin_expect(far_above != 0, 0)) tile_raise(lanes, highest, far_above, unit_pairs, step * TILE);
    /* subtracting -inf from -inf would be NaN: with nothing visible subtract 0 */
    const vf maximum = vf_load(lanes->maximum), nothing = vf_set1(-INFINITY);
    const vf less = vf_sub(vf_zero(), vf_select(vf_ge(nothing, maximum), vf_zero(), maximum));
    vf sum[2] = {vf_load(lanes->sum), vf_zero()};
    for (int j = 0; j < TILE_PAIRED; j += 4) UNROLL
        for (int u = 0; u < 2; u++) {
            const float *even = products + (j + 2 * u) * TILE;
            const vf low = vf_exp2(vf_fma(vf_load(even), factor, less)),
                     high = vf_exp2(vf_fma(vf_load(even + TILE), factor, less));
            sum[u] = vf_add(sum[u], vf_add(low, high));
            _mm512_storeu_si512(pairs + (j + 2 * u) * TILE, tile_pair(low, high));
        }
    vf_store(lanes->sum, vf_add(sum[0], sum[1]));
}

/* products * factor + bias * bias_factor in the place of products; -inf where the bias is, and behind `count`. */
static ALWAYS_INLINE void tile_add_bias(float *products, float factor, const float *bias, float bias_factor,
                                        int64_t count) {
    const vf hidden = vf_set1(-INFINITY);
    for (int64_t j = 0; j < TILE_PAIRED; j++) {
        vf score = hidden;
        if (j < count) {
            const vf own = vf_mul(vf_load(products + j * TILE), vf_set1(factor));
            const vf added = bias ? vf_load(bias + j * ICE_PANEL) : vf_zero();
            score = vf_select(vf_ge(hidden, added), hidden, vf_fma(added, vf_set1(bias_factor), own));
        }
        vf_store(products + j * TILE, score);
    }
}

/* ---- Weighted sums ---- */

/* What is left to do for the values of a unit: for each of `groups` of SUM_TILES tiles of components, `steps` times 32
 * keys. */
typedef struct {
    const uint16_t *values, *pairs;
    float *accumulator;
    int64_t value_dim;
    int steps, step;
    int64_t done; /* components of finished groups */
} tile_sum;

#define SUM_TILE(c)                                    \
    if (tiles > (c)) {                                 \
        tile_load(6, values + (c) * TILE_NUMBERS, 64); \
        tile_float_product(c, 6, 7);                   \
    }
#define LOAD_TILE(c) \
    if (tiles > (c)) tile_load(c, accumulator + (c) * TILE * ICE_PANEL, PANEL_ROW_BYTES);
#define STORE_TILE(c) \
    if (tiles > (c)) tile_store(c, accumulator + (c) * TILE * ICE_PANEL, PANEL_ROW_BYTES);

/* The next 32 keys of the group in hand. */
static ALWAYS_INLINE void tile_sum_step(tile_sum *sum) {
    const int64_t tiles = (sum->value_dim - sum->done) / TILE; /* SUM_TILES or more: all */
    float *accumulator = sum->accumulator + sum->done * ICE_PANEL;
    const uint16_t *values = sum->values + sum->step * TILE_PAIRED * sum->value_dim + sum->done * TILE_PAIRED;
    if (sum->step == 0) { LOAD_TILE(0) LOAD_TILE(1) LOAD_TILE(2) LOAD_TILE(3) }
    tile_load(7, sum->pairs + sum->step * TILE_NUMBERS, 64);
    SUM_TILE(0) SUM_TILE(1) SUM_TILE(2) SUM_TILE(3) if (++sum->step < sum->steps) return;
    STORE_TILE(0) STORE_TILE(1) STORE_TILE(2) STORE_TILE(3) sum->step = 0;
    sum->done += SUM_TILES * TILE;
}

#undef SUM_TILE
#undef LOAD_TILE
#undef STORE_TILE

/* Multiplies sixteen lanes of an accumulator, if that changes anything. */
static void tile_correct(float *accumulator, int64_t value_dim, const float *correction) {
    const vf change = vf_load(correction);
    if (!_mm512_cmp_ps_mask(change, vf_set1(1.0f), _CMP_NEQ_UQ)) return;
    for (int64_t t = 0; t < value_dim; t++)
        vf_store(accumulator + t * ICE_PANEL, vf_mul(vf_load(accumulator + t * ICE_PANEL), change));
}

/* ---- All of it ---- */

/* Up to 128 keys and 16 queries. */
typedef struct {
    int64_t first; /* key */
    int lane;
} tile_unit;

static ALWAYS_INLINE tile_unit tile_unit_after(tile_unit unit, int lanes) {
    unit.lane += TILE;
    return unit.lane < lanes ? unit : (tile_unit){unit.first + UNIT_KEYS, 0};
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

/* The scores of 32 keys of a unit; returns by what they are still to be multiplied: the same whether a bias hides keys
 * from other lanes or not. */
static ALWAYS_INLINE float tile_step_scores(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride,
                                            int64_t count, const float *bias, tile_unit unit, int64_t step,
                                            float *out) {
    const int64_t first = unit.first + step * TILE_PAIRED,
                  present = count - first < TILE_PAIRED ? count - first : TILE_PAIRED;
    const uint16_t *queries = p->queries + 2 * unit.lane;
    float now = p->scale > SMALLEST_SCALE ? 1.0f : p->scale, later = keys && now == 1.0f ? p->scale : 1.0f;
    if (keys && present == TILE_PAIRED) tile_products(queries, p->dim, keys + first * stride, stride, out);
    else if (keys) tile_products_of_last(queries, p->dim, keys + first * stride, stride, present, out);
    else memset(out, 0, TILE_PAIRED * TILE * sizeof *out);
    if (keys && p->cap > 0.0f) {
        tile_cap(out, p->scale, p->cap);
        now = later = 1.0f;
    }
    if (keys && p->alibi) {
        tile_alibi(out, now * later, p->alibi, unit.lane, first);
        now = later = 1.0f;
    }
    if (bias || present < TILE_PAIRED || now != 1.0f)
        tile_add_bias(out, now, bias ? bias + first * ICE_PANEL + unit.lane : NULL, 1.0f / later, present);
    return later;
}

static void tile_panel_attend(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride, const uint16_t *values,
                              int64_t count, const float *bias) {
    float products[2][TILE_PAIRED * TILE] __attribute__((aligned(64))),
        correction[2][TILE] __attribute__((aligned(64)));
    uint16_t pairs[2][UNIT_STEPS * TILE_NUMBERS] __attribute__((aligned(64)));
    tile_unit unit = {0, 0};
    tile_sum sum = {.value_dim = 0}; /* of the unit before: none */
    const int64_t groups = (p->value_dim + SUM_TILES * TILE - 1) / (SUM_TILES * TILE);
    int parity = 0, own = 0; /* of products, and of the unit's weights */
    for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH) vf_store(p->correction + lane, vf_set1(1.0f));
    tiles_begin();
    float scale = tile_step_scores(p, keys, stride, count, bias, unit, 0, products[0]);
    while (unit.first < count) {
        const tile_unit next = tile_unit_after(unit, p->lanes);
        const int64_t left = count - unit.first;
        const int steps = left >= UNIT_KEYS ? UNIT_STEPS : (int)((left + TILE_PAIRED - 1) / TILE_PAIRED);
        const tile_lanes lanes = {p->maximum + unit.lane, p->sum + unit.lane, correction[own]};
        vf_store(correction[own], vf_set1(1.0f));
        for (int step = 0; step < steps; step++, parity ^= 1) {
            const float factor = scale;
            if (step + 1 < steps)
                scale = tile_step_scores(p, keys, stride, count, bias, unit, step + 1, products[parity ^ 1]);
            else if (next.first < count)
                scale = tile_step_scores(p, keys, stride, count, bias, next, 0, products[parity ^ 1]);
            tile_weights(products[parity], factor, &lanes, pairs[own], step);
            for (int64_t g = 0; g < groups && sum.done < sum.value_dim; g++) tile_sum_step(&sum);
        }
        while (sum.done < sum.value_dim) tile_sum_step(&sum);
        sum = (tile_sum){
            values + unit.first * p->value_dim, pairs[own], p->accumulator + unit.lane, p->value_dim, steps, 0, 0};
        tile_correct(sum.accumulator, p->value_dim, correction[own]);
        vf_store(p->correction + unit.lane, vf_mul(vf_load(p->correction + unit.lane), vf_load(correction[own])));
        own ^= 1;
        unit = next;
    }
    while (sum.done < sum.value_dim) tile_sum_step(&sum);
    tiles_end();
}

static const ice_bf16_kernels bf16_tiles = {
    .dim_multiple = TILE_PAIRED,
    .value_dim_multiple = TILE,
    .panel_lanes = 16,
    .pack_queries = dot_pack_queries,
    .scores = tile_scores,
    .pack_values = tile_pack_values,
    .panel_attend = tile_panel_attend,
    .row_scores = bf16_row_scores,
    .rows_attend = bf16_rows_attend,
};
