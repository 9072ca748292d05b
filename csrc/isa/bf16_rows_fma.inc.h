/* Products of the bfloat16 row kernels in float32: for processors whose dot product instruction takes two cycles, in
 * which four float32 multiply-adds are done (Intel).
 *
 * A bfloat16 number is the upper half of a float32: of a vector of 32, a shift makes those at even places float32 and a
 * mask those at odd places.  Queries and keys part alike; accumulators are parted before and joined after. */
#define ROWS_AT_ONCE 4

static ALWAYS_INLINE vf bf16_half(__m512i numbers, const int odd) {
    const __m512i upper = _mm512_set1_epi32((int)0xFFFF0000u);
    return _mm512_castsi512_ps(odd ? _mm512_and_si512(numbers, upper) : _mm512_slli_epi32(numbers, 16));
}

/* Adds the products of 32 components, or of those in `present`, of four keys. */
static ALWAYS_INLINE void bf16_add_products(vf sum[ROWS_AT_ONCE][4], const uint16_t *const *query, const int rows,
                                            const uint16_t *const key[4], int64_t t, __mmask32 present) {
    UNROLL for (int odd = 0; odd < 2; odd++) {
        vf own[ROWS_AT_ONCE];
        UNROLL for (int r = 0; r < rows; r++)
            own[r] = bf16_half(_mm512_maskz_loadu_epi16(present, query[r] + t), odd);
        UNROLL for (int k = 0; k < 4; k++) {
            const vf one = bf16_half(_mm512_maskz_loadu_epi16(present, key[k] + t), odd);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][k] = vf_fma(own[r], one, sum[r][k]);
        }
    }
}

/* Products of up to four keys (those missing are read as the last one) with `rows` queries, a compile-time constant. */
static ALWAYS_INLINE void bf16_products_of_four(const uint16_t *const *query, const int rows, const int64_t dim,
                                                const uint16_t *keys, int64_t stride, int64_t count, float *const *out,
                                                int64_t at) {
    vf sum[ROWS_AT_ONCE][4];
    const uint16_t *key[4];
    UNROLL for (int k = 0; k < 4; k++)
        key[k] = keys + (k < count ? k : count - 1) * stride;
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int k = 0; k < 4; k++) sum[r][k] = vf_zero();
    int64_t t = 0;
    for (; t + 32 <= dim; t += 32) bf16_add_products(sum, query, rows, key, t, 0xFFFFFFFFu);
    if (t < dim) bf16_add_products(sum, query, rows, key, t, (__mmask32)(((uint64_t)1 << dim % 32) - 1));
    UNROLL for (int r = 0; r < rows; r++)
        vf_reduce_add4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], out[r] + at);
}

/* accumulator + t = that times correction + weights * values for 64 components of `rows` rows, a compile-time constant.
 */
static ALWAYS_INLINE void bf16_add_64(const bf16_row *row, ice_state *const *state, const int rows, int64_t count,
                                      const uint16_t *values, int64_t stride, int64_t t) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1)),
                  high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    vf sum[ROWS_AT_ONCE][4];
    UNROLL for (int r = 0; r < rows; r++) {
        const float *accumulator = state[r]->accumulator + t;
        const vf correction = vf_set1(row[r].correction);
        UNROLL for (int u = 0; u < 4; u += 2) {
            const vf first = vf_load(accumulator + 16 * u), second = vf_load(accumulator + 16 * u + 16);
            sum[r][u] = vf_mul(_mm512_permutex2var_ps(first, even, second), correction);
            sum[r][u + 1] = vf_mul(_mm512_permutex2var_ps(first, odd, second), correction);
        }
    }
    for (int64_t j = 0; j < count; j++) UNROLL
        for (int u = 0; u < 4; u++) {
            const vf value = bf16_half(_mm512_loadu_si512(values + j * stride + t + u / 2 * 32), u % 2);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][u] = vf_fma(vf_set1(row[r].weights[j]), value, sum[r][u]);
        }
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int u = 0; u < 4; u += 2) {
            float *accumulator = state[r]->accumulator + t + 16 * u;
            vf_store(accumulator, _mm512_permutex2var_ps(sum[r][u], low, sum[r][u + 1]));
            vf_store(accumulator + 16, _mm512_permutex2var_ps(sum[r][u], high, sum[r][u + 1]));
        }
}
