/* Panel kernels: queries in lanes, keys and values broadcast from where they lie.
 *
 * Both products are the same register tile: KEY_TILE rows (keys, or value components) by QUERY_VECTORS vectors of
 * queries, held in registers over the whole reduction.  A step loads QUERY_VECTORS vectors, broadcasts KEY_TILE numbers
 * and does KEY_TILE * QUERY_VECTORS fused multiply-adds: with 8 x 3 that is 11 loads for 24, so arithmetic and not the
 * load ports is the limit.
 *
 * Error: scores are sums of `dim` products in order.  Weighted sums add at most ICE_KEY_BLOCK terms from zero and then
 * one term to the accumulator, so the error grows with ICE_KEY_BLOCK + keys / ICE_KEY_BLOCK terms, not with keys.
 */

static void to_panel(const float *const *rows, int64_t dim, float *panel) {
    for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH)
        for (int64_t t = 0; t < dim; t += VF_WIDTH) {
            const int n = dim - t < VF_WIDTH ? (int)(dim - t) : VF_WIDTH;
            vf square[VF_WIDTH];
            UNROLL for (int i = 0; i < VF_WIDTH; i++)
                square[i] = n == VF_WIDTH ? vf_load(rows[lane + i] + t) : vf_load_n(rows[lane + i] + t, n);
            vf_transpose(square);
            for (int i = 0; i < n; i++) vf_store(panel + (t + i) * ICE_PANEL + lane, square[i]);
        }
}

static void from_panel(const float *panel, int64_t dim, float *rows) {
    for (int lane = 0; lane < ICE_PANEL; lane += VF_WIDTH)
        for (int64_t t = 0; t < dim; t += VF_WIDTH) {
            const int n = dim - t < VF_WIDTH ? (int)(dim - t) : VF_WIDTH;
            vf square[VF_WIDTH];
            UNROLL for (int i = 0; i < VF_WIDTH; i++)
                square[i] = vf_load(panel + (t + (i < n ? i : 0)) * ICE_PANEL + lane);
            vf_transpose(square);
            for (int i = 0; i < VF_WIDTH; i++) vf_store_n(rows + (lane + i) * dim + t, square[i], n);
        }
}

/* What is summed: products, added to out * correction or replacing it, or squares of b - scale * a, times -1/2. */
typedef enum { PRODUCT, ADDED_PRODUCT, SQUARED_DISTANCE } tile_kind;

/* out[r * ICE_PANEL + q] = sum_i a[r * row_stride + i * step] b[i * ICE_PANEL + q], a tile of rows x vectors, or as
 * `kind` says.  kind, rows and vectors are compile-time constants at every call. */
static ALWAYS_INLINE void product_tile(const tile_kind kind, const float *a, int64_t row_stride, int64_t step,
                                       const float *b, int64_t length, float *out, float scale, const float *correction,
                                       const int rows, const int vectors) {
    const vf minus_scale = vf_set1(-scale);
    vf sum[KEY_TILE][QUERY_VECTORS];
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int q = 0; q < vectors; q++) sum[r][q] = vf_zero();
    for (int64_t i = 0; i < length; i++) {
        vf column[QUERY_VECTORS];
        UNROLL for (int q = 0; q < vectors; q++)
            column[q] = vf_load(b + i * ICE_PANEL + q * VF_WIDTH);
        UNROLL for (int r = 0; r < rows; r++) {
            vf x = vf_set1(a[r * row_stride + i * step]);
            UNROLL for (int q = 0; q < vectors; q++) {
                if (kind == SQUARED_DISTANCE) {
                    vf difference = vf_fma(x, minus_scale, column[q]);
                    sum[r][q] = vf_fma(difference, difference, sum[r][q]);
                } else {
                    sum[r][q] = vf_fma(x, column[q], sum[r][q]);
                }
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int q = 0; q < vectors; q++) {
            float *target = out + r * ICE_PANEL + q * VF_WIDTH;
            vf result = sum[r][q];
            if (kind == ADDED_PRODUCT) result = vf_fma(vf_load(target), vf_load(correction + q * VF_WIDTH), result);
            if (kind == SQUARED_DISTANCE) result = vf_mul(result, vf_set1(-0.5f));
            vf_store(target, result);
        }
}

/* All rows of one column of tiles. */
static ALWAYS_INLINE void product_column(const tile_kind kind, const float *a, int64_t rows, int64_t row_stride,
                                         int64_t step, const float *b, int64_t length, float *out, float scale,
                                         const float *correction, const int vectors) {
    int64_t r = 0;
    for (; r + KEY_TILE <= rows; r += KEY_TILE)
        product_tile(kind, a + r * row_stride, row_stride, step, b, length, out + r * ICE_PANEL, scale, correction,
                     KEY_TILE, vectors);
    for (; r < rows; r++)
        product_tile(kind, a + r * row_stride, row_stride, step, b, length, out + r * ICE_PANEL, scale, correction, 1,
                     vectors);
}

/* correction: of ADDED_PRODUCT; scale: of SQUARED_DISTANCE. */
static ALWAYS_INLINE void product(const tile_kind kind, const float *a, int64_t rows, int64_t row_stride, int64_t step,
                                  const float *b, int64_t length, int lanes, float *out, float scale,
                                  const float *correction) {
    int lane = 0;
    for (; lanes - lane > (QUERY_VECTORS - 1) * VF_WIDTH; lane += QUERY_VECTORS * VF_WIDTH)
        product_column(kind, a, rows, row_stride, step, b + lane, length, out + lane, scale, correction + lane,
                       QUERY_VECTORS);
    for (; lane < lanes; lane += VF_WIDTH)
        product_column(kind, a, rows, row_stride, step, b + lane, length, out + lane, scale, correction + lane, 1);
}

static void scores(const float *panel, int64_t dim, int lanes, const float *keys, int64_t stride, int64_t count,
                   float *out) {
    product(PRODUCT, keys, count, stride, 1, panel, dim, lanes, out, 0.0f, panel);
}

static void squared_distances(const float *panel, int64_t dim, int lanes, float scale, const float *keys,
                              int64_t stride, int64_t count, float *out) {
    product(SQUARED_DISTANCE, keys, count, stride, 1, panel, dim, lanes, out, scale, panel);
}

static void weighted_sum(const float *weights, int64_t count, int lanes, const float *values, int64_t stride,
                         int64_t value_dim, const float *correction, float *accumulator) {
    product(ADDED_PRODUCT, values, value_dim, 1, stride, weights, count, lanes, accumulator, 0.0f, correction);
}

static void mask_range(float *block, int64_t count, int lanes, const float *lower, const float *upper) {
    const vf hidden = vf_set1(-INFINITY);
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        vf low = vf_load(lower + lane), high = vf_load(upper + lane);
        for (int64_t j = 0; j < count; j++) {
            vf key = vf_set1((float)j);
            vm visible = vm_and(vf_gt(high, key), vf_ge(key, low));
            float *score = block + j * ICE_PANEL + lane;
            vf_store(score, vf_select(visible, vf_load(score), hidden));
        }
    }
}

/* Several sums and maxima side by side hide the latency of one. */
static void softmax(float *block, int64_t count, int lanes, float *maximum, float *sum, float *correction) {
    const vf nothing = vf_set1(-INFINITY);
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        float *column = block + lane;
        vf before = vf_load(maximum + lane), top[4] = {before, before, before, before};
        int64_t j = 0;
        for (; j + 4 <= count; j += 4) UNROLL
            for (int u = 0; u < 4; u++) top[u] = vf_max(top[u], vf_load(column + (j + u) * ICE_PANEL));
        for (; j < count; j++) top[0] = vf_max(top[0], vf_load(column + j * ICE_PANEL));
        vf after = vf_max(vf_max(top[0], top[1]), vf_max(top[2], top[3]));
        /* subtracting -inf from -inf would be NaN: with nothing visible subtract 0 */
        vf reference = vf_select(vf_ge(nothing, after), vf_zero(), after);
        vf total[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        for (j = 0; j + 4 <= count; j += 4) UNROLL
            for (int u = 0; u < 4; u++) {
                float *score = column + (j + u) * ICE_PANEL;
                vf weight = vf_exp2(vf_sub(vf_load(score), reference));
                vf_store(score, weight);
                total[u] = vf_add(total[u], weight);
            }
        for (; j < count; j++) {
            vf weight = vf_exp2(vf_sub(vf_load(column + j * ICE_PANEL), reference));
            vf_store(column + j * ICE_PANEL, weight);
            total[0] = vf_add(total[0], weight);
        }
        vf change = vf_select(vf_gt(before, nothing), vf_exp2(vf_sub(before, reference)), vf_set1(1.0f));
        vf added = vf_add(vf_add(total[0], total[1]), vf_add(total[2], total[3]));
        vf_store(maximum + lane, after);
        vf_store(sum + lane, vf_fma(vf_load(sum + lane), change, added));
        vf_store(correction + lane, change);
    }
}

/* Four keys at once, whose lanes are added up together. */
static void relu_sum(const float *block, int64_t count, int lanes, const float *weights, float *sums) {
    for (int64_t j = 0; j < count; j += 4) {
        const int rows = count - j < 4 ? (int)(count - j) : 4;
        vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
            const int n = lanes - lane < VF_WIDTH ? lanes - lane : VF_WIDTH;
            const vf weight = vf_load_n(weights + lane, n);
            for (int u = 0; u < rows; u++) {
                const vf score = vf_load_n(block + (j + u) * ICE_PANEL + lane, n);
                sum[u] = vf_fma(weight, vf_select(vf_gt(vf_zero(), score), vf_zero(), score), sum[u]);
            }
        }
        float added[4];
        vf_reduce_add4(sum[0], sum[1], sum[2], sum[3], added);
        for (int u = 0; u < rows; u++) sums[j + u] += added[u];
    }
}
