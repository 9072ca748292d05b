/* bfloat16 kernels on matrix tiles (AMX): sixteen keys or value components by sixteen queries of a panel.
 *
 * Scores: a = 16 keys x 32 components as they lie in memory, b = 16 component pairs x 16 queries (the packed panel), c
 * = keys x queries. Weighted sum: a = 16 value components x 32 keys (packed: transposed), b = 16 key pairs x 16 queries
 * (the weights as softmax writes them), c = components x queries, a part of the panel's accumulator.
 *
 * Tiles and vectors take turns: while a tile operation is under way, one of the two units that multiply vectors stands
 * still.  Two tiles a meet all groups of 16 queries, so that keys and values are read once for a panel, and the sums of
 * 128 keys are loaded and stored once.  The reference of a softmax moves only when a score is far above it, which the
 * sum of the weights shows: there is no pass that looks for maxima.
 *
 * Tiles take subnormal numbers as 0.  Sums are in float32, two products at a time.
 * Earned by bench/bench_exact.py: see the bfloat16 rows of bench/README.md against ICECORE_ISA=avx512_bf16. */

#include "isa/bf16_dot.inc.h" /* rows, and what tiles do not serve */

#define TILE 16        /* rows of a tile, and floats or pairs in a row */
#define TILE_PAIRED 32 /* bfloat16 numbers in a row; keys in a step */
#define TILE_NUMBERS (TILE * TILE_PAIRED)
#define GROUPS (ICE_PANEL / TILE)
#define STEP_PRODUCTS (TILE_PAIRED * TILE) /* of one group */
#define UNIT_STEPS 4                       /* whose weights are made before their values are summed up */
#define UNIT_KEYS (UNIT_STEPS * TILE_PAIRED)
#define SMALLEST_SCALE 0x1p-100f        /* whose inverse is a number, and the largest score is found among products */
#define PANEL_ROW_BYTES (ICE_PANEL * 4) /* of scores, of accumulators, and of pairs */
#define LINE_BYTES 64                   /* of a cache */
#define LARGEST_SUM 256.0f /* of the weights of 32 keys; above it the reference is moved to the largest score */

#if ICE_PANEL != 3 * TILE || TILE_PAIRED != ICE_PACKED
#error "three tiles cover a panel, and values are packed by steps"
#endif

/* ---- Two tiles a by up to three tiles b ----
 *
 * Tiles 0 to 2 are the sums of the first a, 3 to 5 those of the second; 6 holds an a, 7 a b.  `groups`, how many tiles
 * b there are, and `both`, whether there is a second a, are constants wherever these are inlined. */

static ALWAYS_INLINE void tiles_zero(const int groups) {
    tile_zero(0);
    tile_zero(3);
    if (groups > 1) tile_zero(1);
    if (groups > 1) tile_zero(4);
    if (groups > 2) tile_zero(2);
    if (groups > 2) tile_zero(5);
}

/* Where sums lie: rows so many bytes apart, those of the next b and of the second a so many numbers further on. */
typedef struct {
    int64_t row_bytes, group, second;
} tile_layout;

static const tile_layout in_panel = {PANEL_ROW_BYTES, TILE, TILE * ICE_PANEL}, /* of scores, and of accumulators */
    by_group = {TILE * sizeof(float), STEP_PRODUCTS, TILE * TILE};

#define EACH_SUM(operation)                                                                  \
    do {                                                                                     \
        operation(0, sums, at.row_bytes);                                                    \
        if (groups > 1) operation(1, sums + at.group, at.row_bytes);                         \
        if (groups > 2) operation(2, sums + 2 * at.group, at.row_bytes);                     \
        if (both) operation(3, sums + at.second, at.row_bytes);                              \
        if (both && groups > 1) operation(4, sums + at.second + at.group, at.row_bytes);     \
        if (both && groups > 2) operation(5, sums + at.second + 2 * at.group, at.row_bytes); \
    } while (0)

static ALWAYS_INLINE void tiles_load(const float *sums, tile_layout at, const int groups, const int both) {
    EACH_SUM(tile_load);
}

static ALWAYS_INLINE void tiles_store(float *sums, tile_layout at, const int groups, const int both) {
    EACH_SUM(tile_store);
}

#undef EACH_SUM

/* The sums += a b.  The second a meets the tiles b from the last on, which is still there. */
static ALWAYS_INLINE void tiles_multiply(const uint16_t *a, const uint16_t *second_a, int64_t a_bytes,
                                         const uint16_t *b, int64_t group, int64_t b_bytes, const int groups,
                                         const int both) {
    tile_load(6, a, a_bytes);
    tile_load(7, b, b_bytes);
    tile_float_product(0, 6, 7);
    if (groups > 1) {
        tile_load(7, b + group, b_bytes);
        tile_float_product(1, 6, 7);
    }
    if (groups > 2) {
        tile_load(7, b + 2 * group, b_bytes);
        tile_float_product(2, 6, 7);
    }
    if (!both) return;
    tile_load(6, second_a, a_bytes);
    if (groups > 2) {
        tile_float_product(5, 6, 7);
        tile_load(7, b + group, b_bytes);
    }
    if (groups > 1) {
        tile_float_product(4, 6, 7);
        tile_load(7, b, b_bytes);
    }
    tile_float_product(3, 6, 7);
}

/* ---- Scores ---- */

/* The products of 32 keys and all groups of queries. */
static ALWAYS_INLINE void tile_products(const uint16_t *queries, int64_t dim, const uint16_t *keys, int64_t stride,
                                        float *out, tile_layout at, const int groups) {
    tiles_zero(groups);
    for (int64_t t = 0; t < dim; t += TILE_PAIRED)
        tiles_multiply(keys + t, keys + TILE * stride + t, stride * (int64_t)sizeof *keys, queries + t * ICE_PANEL,
                       TILE_PAIRED, PANEL_ROW_BYTES, groups, 1);
    tiles_store(out, at, groups, 1);
}

/* The same of `count` < 32 keys, and of no keys behind them. */
static ALWAYS_INLINE void tile_products_of_last(const uint16_t *queries, int64_t dim, const uint16_t *keys,
                                                int64_t stride, int64_t count, float *out, tile_layout at,
                                                const int groups) {
    uint16_t padded[TILE_PAIRED * ICECORE_MAX_DIM];
    for (int64_t j = 0; j < TILE_PAIRED; j++)
        memcpy(padded + j * dim, keys + (j < count ? j : 0) * stride, (size_t)dim * sizeof *keys);
    tile_products(queries, dim, padded, dim, out, at, groups);
}

static ALWAYS_INLINE void tile_scores_of(const uint16_t *queries, int64_t dim, float scale, const uint16_t *keys,
                                         int64_t stride, int64_t count, float *out, const int groups) {
    const vf factor = vf_set1(scale);
    for (int64_t j = 0; j < count; j += TILE_PAIRED, keys += TILE_PAIRED * stride, out += TILE_PAIRED * ICE_PANEL) {
        const int64_t present = count - j < TILE_PAIRED ? count - j : TILE_PAIRED;
        float last[TILE_PAIRED * ICE_PANEL], *products = present < TILE_PAIRED ? last : out;
        if (present < TILE_PAIRED)
            tile_products_of_last(queries, dim, keys, stride, present, products, in_panel, groups);
        else tile_products(queries, dim, keys, stride, products, in_panel, groups);
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

/* The sums, and the `count` pairs of the unit's earlier keys, become relative to `top` in the `raised` lanes. */
static void tile_raise(const tile_lanes *lanes, vf top, __mmask16 raised, uint16_t *pairs, int count) {
    const vf before = vf_load(lanes->maximum), after = vf_select(raised, top, before), nothing = vf_set1(-INFINITY);
    const vf change = vf_select(vf_gt(before, nothing), vf_exp2(vf_sub(before, after)), vf_set1(1.0f));
    const vf own = vf_select(raised, change, vf_set1(1.0f));
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

/* 2^x to 2.9e-6, as weight_of: minimax among polynomials of degree 4 for x - floor(x) that are 1 at 0.  NaN remains
 * NaN, and -inf gives 0. */
static ALWAYS_INLINE vf tile_weight(vf x) {
    const vf f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vf p = vf_fma(f, vf_set1(0.013426684674f), vf_set1(0.052242472702f));
    p = vf_fma(f, p, vf_set1(0.24128020608f));
    p = vf_fma(f, p, vf_set1(0.69304484467f));
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
                                   tile_ahead values) {
    vf sum[2] = {vf_zero(), vf_zero()};
    for (int j = 0; j < TILE_PAIRED; j += 4) {
        tile_fetch(&keys);
        tile_fetch(&values);
        UNROLL for (int u = 0; u < 2; u++) {
            const float *even = products + (j + 2 * u) * TILE;
            const vf low = tile_weight(vf_fma(vf_load(even), factor, less)),
                     high = tile_weight(vf_fma(vf_load(even + TILE), factor, less));
            sum[u] = vf_add(sum[u], vf_add(low, high));
            _mm512_storeu_si512(pairs + (j + 2 * u) * TILE, tile_pair(low, high));
        }
    }
    return vf_add(sum[0], sum[1]);
}

/* The same as tile_weights, after the references of the lanes in `large` have moved to their largest scores. */
static __attribute__((noinline)) void tile_weights_raised(const float *products, float scale, const tile_lanes *lanes,
                                                          uint16_t *unit_pairs, int step, __mmask16 large) {
    const vf factor = vf_set1(scale), nothing = vf_set1(-INFINITY);
    vf top = vf_load(products);
    for (int j = 1; j < TILE_PAIRED; j++) top = vf_max(top, vf_load(products + j * TILE));
    top = vf_mul(top, factor);
    large &= _mm512_cmp_ps_mask(top, vf_load(lanes->maximum), _CMP_NLE_UQ);
    if (large) tile_raise(lanes, top, large, unit_pairs, step * TILE);
    /* subtracting -inf from -inf would be NaN: with nothing visible subtract 0 */
    const vf maximum = vf_load(lanes->maximum);
    const vf less = vf_sub(vf_zero(), vf_select(vf_ge(nothing, maximum), vf_zero(), maximum));
    const tile_ahead none = {NULL, 0};
    const vf sum = tile_weigh(products, factor, less, unit_pairs + step * TILE_NUMBERS, none, none);
    vf_store(lanes->sum, vf_add(vf_load(lanes->sum), sum));
}

/* Weights of a unit's 32 keys number `step`: 16 pairs of keys for 16 lanes, behind those of the earlier ones. A sum
 * that is not small is that of scores far above the reference, or of a reference of -inf, or NaN. */
static ALWAYS_INLINE void tile_weights(const float *products, float scale, const tile_lanes *lanes,
                                       uint16_t *unit_pairs, int step, tile_ahead keys, tile_ahead values) {
    const vf less = vf_sub(vf_zero(), vf_load(lanes->maximum));
    const vf sum = tile_weigh(products, vf_set1(scale), less, unit_pairs + step * TILE_NUMBERS, keys, values);
    const __mmask16 large = _mm512_cmp_ps_mask(sum, vf_set1(LARGEST_SUM), _CMP_NLE_UQ);
    if (__builtin_expect(large != 0, 0)) tile_weights_raised(products, scale, lanes, unit_pairs, step, large);
    else vf_store(lanes->sum, vf_add(vf_load(lanes->sum), sum));
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
                                            const int groups) {
    const int64_t present = count - first < TILE_PAIRED ? count - first : TILE_PAIRED;
    const int capped = keys && p->cap > 0.0f, lowered = keys && p->alibi;
    float now = p->scale > SMALLEST_SCALE ? 1.0f : p->scale, later = keys && now == 1.0f ? p->scale : 1.0f;
    const uint16_t *own = keys ? keys + first * stride : NULL;
    if (!keys) memset(out, 0, (size_t)(groups * STEP_PRODUCTS) * sizeof *out);
    else if (present == TILE_PAIRED) tile_products(p->queries, p->dim, own, stride, out, by_group, groups);
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

/* ---- Weighted sums ---- */

/* accumulator += the values of a unit's steps times its weights. */
static ALWAYS_INLINE void tile_sum_values(const uint16_t *values, int64_t value_dim, const uint16_t *pairs, int steps,
                                          float *accumulator, const int groups, const int both) {
    tiles_load(accumulator, in_panel, groups, both);
    for (int step = 0; step < steps; step++) {
        const uint16_t *a = values + step * TILE_PAIRED * value_dim;
        tiles_multiply(a, a + TILE_NUMBERS, TILE_PAIRED * sizeof *a, pairs + step * TILE_NUMBERS,
                       UNIT_STEPS * TILE_NUMBERS, TILE_PAIRED * sizeof *pairs, groups, both);
    }
    tiles_store(accumulator, in_panel, groups, both);
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
                                      const uint16_t *values, int64_t count, const float *bias, const int groups) {
    float products[GROUPS * STEP_PRODUCTS] __attribute__((aligned(64))),
        correction[ICE_PANEL] __attribute__((aligned(64)));
    uint16_t pairs[GROUPS][UNIT_STEPS * TILE_NUMBERS] __attribute__((aligned(64)));
    const int is_packed = keys && stride == p->dim;
    for (int64_t first = 0; first < count; first += UNIT_KEYS) {
        const int64_t left = count - first;
        const int steps = left >= UNIT_KEYS ? UNIT_STEPS : (int)((left + TILE_PAIRED - 1) / TILE_PAIRED);
        for (int lane = 0; lane < groups * TILE; lane += TILE) vf_store(correction + lane, vf_set1(1.0f));
        for (int step = 0; step < steps; step++) {
            const int64_t key = first + step * TILE_PAIRED, next = key + TILE_PAIRED;
            const float scale = tile_step_scores(p, keys, stride, count, bias, key, products, groups);
            const uint16_t *next_keys = is_packed && count - next >= TILE_PAIRED ? keys + next * stride : NULL;
            for (int g = 0; g < groups; g++) {
                const tile_lanes lanes = {p->maximum + g * TILE, p->sum + g * TILE, correction + g * TILE};
                tile_weights(products + g * STEP_PRODUCTS, scale, &lanes, pairs[g], step,
                             tile_share(next_keys, p->dim, g, groups),
                             tile_share(values + key * p->value_dim, p->value_dim, g, groups));
            }
        }
        for (int lane = 0; lane < groups * TILE; lane += TILE) {
            tile_correct(p->accumulator + lane, p->value_dim, correction + lane);
            vf_store(p->correction + lane, vf_mul(vf_load(p->correction + lane), vf_load(correction + lane)));
        }
        const uint16_t *own = values + first * p->value_dim;
        int64_t t = 0;
        for (; t + 2 * TILE <= p->value_dim; t += 2 * TILE)
            tile_sum_values(own + t * TILE_PAIRED, p->value_dim, pairs[0], steps, p->accumulator + t * ICE_PANEL,
                            groups, 1);
        if (t < p->value_dim)
            tile_sum_values(own + t * TILE_PAIRED, p->value_dim, pairs[0], steps, p->accumulator + t * ICE_PANEL,
                            groups, 0);
    }
}

static void tile_panel_attend(const ice_bf16_panel *p, const uint16_t *keys, int64_t stride, const uint16_t *values,
                              int64_t count, const float *bias) {
    const unsigned control = _mm_getcsr();
    _mm_setcsr(control | _MM_FLUSH_ZERO_ON); /* weights that would be subnormal take 200 cycles each */
    for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH) vf_store(p->correction + lane, vf_set1(1.0f));
    tiles_begin();
    if (p->lanes > 2 * TILE) tile_attend(p, keys, stride, values, count, bias, 3);
    else if (p->lanes > TILE) tile_attend(p, keys, stride, values, count, bias, 2);
    else tile_attend(p, keys, stride, values, count, bias, 1);
    tiles_end();
    _mm_setcsr(control);
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
