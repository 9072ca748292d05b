/* Products of the bfloat16 row kernels by the dot product instruction of AVX512_BF16: for processors that do one in a
 * cycle (AMD), as many as two float32 multiply-adds. */
#define ROWS_AT_ONCE 2

/* Products of up to four keys (those missing are read as the last one) with `rows` queries, a compile-time constant. */
static ALWAYS_INLINE void bf16_products_of_four(const uint16_t *const *query, const int rows, const int64_t dim,
                                                const uint16_t *keys, int64_t stride, int64_t count, float *const *out,
                                                int64_t at) {
    __m512 sum[ROWS_AT_ONCE][4];
    const __mmask32 rest = (__mmask32)(((uint64_t)1 << dim % 32) - 1);
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int k = 0; k < 4; k++) sum[r][k] = _mm512_setzero_ps();
    int64_t t = 0;
    for (; t + 32 <= dim; t += 32) UNROLL
        for (int k = 0; k < 4; k++) {
            const __m512bh key = (__m512bh)_mm512_loadu_si512(keys + (k < count ? k : count - 1) * stride + t);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][k] = _mm512_dpbf16_ps(sum[r][k], key, (__m512bh)_mm512_loadu_si512(query[r] + t));
        }
    if (t < dim) UNROLL
        for (int k = 0; k < 4; k++) {
            const __m512bh key =
                (__m512bh)_mm512_maskz_loadu_epi16(rest, keys + (k < count ? k : count - 1) * stride + t);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][k] = _mm512_dpbf16_ps(sum[r][k], key, (__m512bh)_mm512_maskz_loadu_epi16(rest, query[r] + t));
        }
    UNROLL for (int r = 0; r < rows; r++)
        vf_reduce_add4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], out[r] + at);
}

/* accumulator + t = that times correction + weights * values for 64 components of `rows` rows, a compile-time constant;
 * two keys at a time. */
static ALWAYS_INLINE void bf16_add_64(const bf16_row *row, ice_state *const *state, const int rows, int64_t count,
                                      const uint16_t *values, int64_t stride, int64_t t) {
    /* the numbers of two keys side by side, 32 of each in two vectors */
    const __m512i low_pairs = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38,
                                               6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high_pairs = _mm512_add_epi16(low_pairs, _mm512_set1_epi16(16));
    vf sum[ROWS_AT_ONCE][4];
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int u = 0; u < 4; u++)
            sum[r][u] = vf_mul(vf_load(state[r]->accumulator + t + 16 * u), vf_set1(row[r].correction));
    uint16_t rounded[ROWS_AT_ONCE][KEYS_AT_ONCE];
    for (int r = 0; r < rows; r++)
        for (int64_t j = 0; j < count; j += 16)
            _mm256_storeu_si256((__m256i *)(rounded[r] + j), (__m256i)_mm512_cvtneps_pbh(vf_load(row[r].weights + j)));
    for (int64_t j = 0; j < count; j += 2) {
        const uint16_t *value = values + j * stride + t;
        const int both = j + 1 < count;
        __m512bh w[ROWS_AT_ONCE];
        UNROLL for (int r = 0; r < rows; r++) {
            int pair;
            memcpy(&pair, rounded[r] + j, sizeof pair);
            w[r] = (__m512bh)_mm512_set1_epi32(pair);
        }
        UNROLL for (int u = 0; u < 2; u++) {
            const __m512i one = _mm512_loadu_si512(value + 32 * u);
            const __m512i two = both ? _mm512_loadu_si512(value + stride + 32 * u) : _mm512_setzero_si512();
            const __m512bh low = (__m512bh)_mm512_permutex2var_epi16(one, low_pairs, two);
            const __m512bh high = (__m512bh)_mm512_permutex2var_epi16(one, high_pairs, two);
            UNROLL for (int r = 0; r < rows; r++) {
                sum[r][2 * u] = _mm512_dpbf16_ps(sum[r][2 * u], low, w[r]);
                sum[r][2 * u + 1] = _mm512_dpbf16_ps(sum[r][2 * u + 1], high, w[r]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int u = 0; u < 4; u++) vf_store(state[r]->accumulator + t + 16 * u, sum[r][u]);
}
