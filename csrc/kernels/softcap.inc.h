/* Soft caps: a score s becomes cap tanh(s / cap).
 *
 * With x = s / cap and u = x^2
 *   |x| <= 3/8:  tanh(x) = x (1 + u (N1 + u (N2 + u N3))), minimax in relative error (7.0e-8)
 *   |x| <= 3/4:  the same of degree 5 in u (3.3e-8)
 *   beyond:      tanh(x) = 1 - 2 / (exp(2 |x|) + 1), with the sign of x.
 * Models are trained with caps above most of their scores: vectors that lie in the first range take neither of the
 * others, and there powers of the cap divide the coefficients instead of each score.  Which range a score takes depends
 * on nothing but the score, so that a row has the same bits whatever its neighbours. */
#define NEAR_C1 (-0.33332333f)
#define NEAR_C2 0.13289726f
#define NEAR_C3 (-0.04848729f)
#define NEAR_SQUARE 0.140625f /* (3/8)^2 */
#define TANH_C1 (-0.33333069f)
#define TANH_C2 0.133265212f
#define TANH_C3 (-0.0533902571f)
#define TANH_C4 0.0196649134f
#define TANH_C5 (-0.00476949057f)
#define TANH_SQUARE 0.5625f /* (3/4)^2 */

/* tanh(x) where |x| is not small. */
static ALWAYS_INLINE vf large_tanh(vf x) {
    const vf opposite = vf_sub(vf_zero(), x), one = vf_set1(1.0f);
    const vf power = vf_exp2(vf_mul(vf_max(x, opposite), vf_set1(2.88539008f))); /* exp(2 |x|) */
    const vf size = vf_sub(one, vf_div(vf_set1(2.0f), vf_add(power, one)));
    return vf_select(vf_gt(x, vf_zero()), size, vf_sub(vf_zero(), size));
}

/* Of a cap, for numbers that times `scale` are scores.  near: the largest square of a number in the first range; -1
 * where coefficients might be subnormal. */
typedef struct {
    float scale, cap, inverse, near, c1, c2, c3;
} soft_cap;

static soft_cap soft_cap_of(float scale, float cap) {
    const float size = fabsf(scale), inverse = 1.0f / cap, ratio = size * inverse, square = ratio * ratio;
    const int usual = ratio > 1e-5f && ratio < 1e5f && size > 1e-6f && size < 1e6f;
    return (soft_cap){.scale = scale,
                      .cap = cap,
                      .inverse = inverse,
                      .near = usual ? NEAR_SQUARE / square : -1.0f,
                      .c1 = NEAR_C1 * square * scale,
                      .c2 = NEAR_C2 * square * square * scale,
                      .c3 = NEAR_C3 * square * square * square * scale};
}

/* Whether all numbers of these squares lie in the first range; not where one is NaN. */
static ALWAYS_INLINE int all_near(vf square, const soft_cap *c) {
    return __builtin_expect(vm_bits(vf_ge(vf_set1(c->near), square)) == (1u << VF_WIDTH) - 1, 1);
}

static ALWAYS_INLINE vf capped_near(vf number, vf square, const soft_cap *c) {
    const vf p = vf_fma(square, vf_fma(square, vf_set1(c->c3), vf_set1(c->c2)), vf_set1(c->c1));
    return vf_mul(number, vf_fma(square, p, vf_set1(c->scale)));
}

static ALWAYS_INLINE vf capped_anywhere(vf number, const soft_cap *c) {
    const vf score = vf_mul(number, vf_set1(c->scale)), x = vf_mul(score, vf_set1(c->inverse)), u = vf_mul(x, x);
    vf p = vf_fma(u, vf_set1(TANH_C5), vf_set1(TANH_C4));
    p = vf_fma(u, p, vf_set1(TANH_C3));
    p = vf_fma(u, p, vf_set1(TANH_C2));
    p = vf_fma(u, p, vf_set1(TANH_C1));
    vf result = vf_mul(score, vf_fma(u, p, vf_set1(1.0f)));
    const vm large = vf_gt(u, vf_set1(TANH_SQUARE));
    if (vm_bits(large)) result = vf_select(large, vf_mul(vf_set1(c->cap), large_tanh(x)), result);
    const vf square = vf_mul(number, number);
    return vf_select(vf_ge(vf_set1(c->near), square), capped_near(number, square, c), result);
}

static ALWAYS_INLINE vf capped(vf number, const soft_cap *c) {
    const vf square = vf_mul(number, number);
    return all_near(square, c) ? capped_near(number, square, c) : capped_anywhere(number, c);
}

/* Some vectors, which are asked together. */
static ALWAYS_INLINE void cap_vectors(float *numbers, const soft_cap *c, const int vectors) {
    vf number[QUERY_VECTORS], square[QUERY_VECTORS], largest = vf_zero();
    UNROLL for (int v = 0; v < vectors; v++) {
        number[v] = vf_load(numbers + v * VF_WIDTH);
        square[v] = vf_mul(number[v], number[v]);
        largest = vf_max(square[v], largest);
    }
    if (all_near(largest, c)) UNROLL
        for (int v = 0; v < vectors; v++) vf_store(numbers + v * VF_WIDTH, capped_near(number[v], square[v], c));
    else UNROLL
        for (int v = 0; v < vectors; v++) vf_store(numbers + v * VF_WIDTH, capped_anywhere(number[v], c));
}

/* Rows of a panel. */
static void cap_rows(float *numbers, int64_t count, int64_t lanes, const soft_cap *c) {
    const int64_t whole = lanes - lanes % VF_WIDTH, together = QUERY_VECTORS * VF_WIDTH;
    const int rest = (int)(lanes - whole);
    for (int64_t j = 0; j < count; j++, numbers += ICE_PANEL) {
        int64_t i = 0;
        for (; i + together <= whole; i += together) cap_vectors(numbers + i, c, QUERY_VECTORS);
        for (; i < whole; i += VF_WIDTH) cap_vectors(numbers + i, c, 1);
        if (rest) vf_store_n(numbers + whole, capped(vf_load_n(numbers + whole, rest), c), rest);
    }
}

static void softcap(float *scores, int64_t count, int64_t lanes, float cap) {
    const soft_cap c = soft_cap_of(1.0f, cap);
    cap_rows(scores, count, lanes, &c);
}
