/* bfloat16 kernels on matrix tiles (AMX): sixteen keys or value components by a panel's queries.
 *
 * Scores: a = 16 keys x 32 components as they lie in memory, b = 16 component pairs x 16 queries (the packed panel), c = keys x queries,
 * which is the layout of a panel's scores.  Weighted sum: a = 16 value components x 32 keys (packed: transposed once per block), b = 16
 * key pairs x 16 queries (packed weights), c = components x queries, the panel's accumulator.  Three c tiles cover a panel.  A step
 * loads 4 tiles (8 cycles each) under 3 products (16 cycles each), so the products are the limit, and the softmax costs more than both.
 *
 * Tiles take subnormal numbers as 0.  Sums are in float32, two products at a time. */

#define TILE 16                 /* rows of a tile, and floats or pairs in a row */
#define TILE_PAIRED 32          /* bfloat16 numbers in a row */
#define PANEL_ROW_BYTES (ICE_PANEL * 4)   /* of scores, of accumulators, and of pairs */

#if ICE_PANEL != 3 * TILE
#error "three tiles cover a panel"
#endif

/* c tiles 0, 1, 2 += 16 rows of a times b, over `steps` steps of 32 components or keys.  a_stride in bytes. */
static ALWAYS_INLINE void tile_row(const uint16_t *a, int64_t a_stride, const uint16_t *b, int64_t steps) {
    const char *left = (const char *)a, *right = (const char *)b;
    for (int64_t i = 0; i < steps; i++) {
        tile_load(6, left, a_stride);
        tile_load(3, right, PANEL_ROW_BYTES);
        tile_load(4, right + 64, PANEL_ROW_BYTES);
        tile_load(5, right + 128, PANEL_ROW_BYTES);
        tile_float_product(0, 6, 3);
        tile_float_product(1, 6, 4);
        tile_float_product(2, 6, 5);
        left += TILE_PAIRED * sizeof *a;
        right += TILE * PANEL_ROW_BYTES;
    }
}

static ALWAYS_INLINE void tile_row_store(float *out) {
    tile_store(0, out, PANEL_ROW_BYTES);
    tile_store(1, out + TILE, PANEL_ROW_BYTES);
    tile_store(2, out + 2 * TILE, PANEL_ROW_BYTES);
}

static void tile_scores(const uint16_t *queries, int64_t dim, int lanes, float scale, const uint16_t *keys, int64_t stride,
                        int64_t count, float *out) {
    (void)lanes;   /* tiles are whole panels */
    uint16_t last_keys[TILE * ICECORE_MAX_DIM];
    float last_scores[TILE * ICE_PANEL];
    const int64_t steps = dim / TILE_PAIRED, whole = count - count % TILE;
    tiles_begin();
    for (int64_t j = 0; j < count; j += TILE) {
        const uint16_t *rows = keys + j * stride;
        int64_t row_stride = stride;
        float *target = out + j * ICE_PANEL;
        if (j == whole) {   /* fewer than 16 keys left: a padded copy */
            for (int64_t r = 0; r < TILE; r++)
                memcpy(last_keys + r * dim, rows + (j + r < count ? r : 0) * stride, (size_t)dim * sizeof *keys);
            rows = last_keys;
            row_stride = dim;
            target = last_scores;
        }
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_row(rows, row_stride * (int64_t)sizeof *keys, queries, steps);
        tile_row_store(target);
    }
    tiles_end();
    if (whole < count) memcpy(out + whole * ICE_PANEL, last_scores, (size_t)((count - whole) * ICE_PANEL) * sizeof *out);
    const vf factor = vf_set1(scale);
    for (int64_t i = 0; i < count * ICE_PANEL; i += VF_WIDTH) vf_store(out + i, vf_mul(vf_load(out + i), factor));
}

/* packed[t * padded + j] = values[j * stride + t], padded = count rounded up to 32, zeros past `count`. */
static void tile_pack_values(const uint16_t *values, int64_t stride, int64_t count, int64_t value_dim, uint16_t *packed) {
    const int64_t padded = (count + TILE_PAIRED - 1) / TILE_PAIRED * TILE_PAIRED;
    for (int64_t j = 0; j < padded; j += TILE_PAIRED)
        for (int64_t t = 0; t < value_dim; t += TILE) {
            /* 32 keys x 16 components: rows of key pairs, then a transpose of these */
            vf pairs[TILE];
            for (int r = 0; r < TILE; r++) {
                int64_t even = j + 2 * r;
                const uint16_t *source = values + even * stride + t;
                __m512i low = _mm512_setzero_si512(), high = low;
                if (even < count) low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)source));
                if (even + 1 < count) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(source + stride)));
                pairs[r] = _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
            vf_transpose(pairs);
            for (int c = 0; c < TILE; c++) _mm512_storeu_ps(packed + (t + c) * padded + j, pairs[c]);
        }
}

static void tile_pack_weights(const float *weights, int64_t count, uint16_t *pairs) {
    const int64_t padded = (count + TILE_PAIRED - 1) / TILE_PAIRED * TILE_PAIRED;
    dot_pack_queries(weights, count, pairs);
    const int64_t packed = (count + 1) / 2 * 2;
    memset(pairs + packed * ICE_PANEL, 0, (size_t)((padded - packed) * ICE_PANEL) * sizeof *pairs);
}

static void tile_weighted_sum(const uint16_t *weights, int64_t count, int lanes, const uint16_t *values, int64_t value_dim,
                              const float *correction, float *accumulator) {
    (void)lanes;
    const int64_t steps = (count + TILE_PAIRED - 1) / TILE_PAIRED, padded = steps * TILE_PAIRED;
    for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH) {
        vf change = vf_load(correction + lane);
        for (int64_t t = 0; t < value_dim; t++) {
            float *target = accumulator + t * ICE_PANEL + lane;
            vf_store(target, vf_mul(vf_load(target), change));
        }
    }
    tiles_begin();
    for (int64_t t = 0; t < value_dim; t += TILE) {
        float *target = accumulator + t * ICE_PANEL;
        tile_load(0, target, PANEL_ROW_BYTES);
        tile_load(1, target + TILE, PANEL_ROW_BYTES);
        tile_load(2, target + 2 * TILE, PANEL_ROW_BYTES);
        tile_row(values + t * padded, padded * (int64_t)sizeof *values, weights, steps);
        tile_row_store(target);
    }
    tiles_end();
}

static const ice_bf16_kernels bf16_tiles = {
    .dim_multiple = TILE_PAIRED,
    .value_dim_multiple = TILE,
    .panel_lanes = 16,
    .pack_queries = dot_pack_queries,
    .scores = tile_scores,
    .pack_weights = tile_pack_weights,
    .pack_values = tile_pack_values,
    .weighted_sum = tile_weighted_sum,
    .row_scores = dot_row_scores,
    .rows_attend = dot_rows_attend,
};
