/* Soft caps: a score s becomes cap tanh(s / cap).
 *
 * With x = s / cap and u = x^2, where |x| <= 3/4
 *   tanh(x) = x (1 + u (C1 + u (C2 + ...))):  minimax in relative error (3.3e-8) among polynomials of degree 5 in u
 * that are 1 at 0 and beyond tanh(x) = 1 - 2 / (exp(2 |x|) + 1), with the sign of x.  Models are trained with caps
 * above most of their scores, so a vector without a lane beyond skips the exponential. */
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

static ALWAYS_INLINE vf capped(vf score, vf cap, vf inverse) {
    const vf x = vf_mul(score, inverse), u = vf_mul(x, x);
    vf p = vf_fma(u, vf_set1(TANH_C5), vf_set1(TANH_C4));
    p = vf_fma(u, p, vf_set1(TANH_C3));
    p = vf_fma(u, p, vf_set1(TANH_C2));
    p = vf_fma(u, p, vf_set1(TANH_C1));
    const vf small = vf_mul(score, vf_fma(u, p, vf_set1(1.0f)));
    const vm large = vf_gt(u, vf_set1(TANH_SQUARE));
    if (__builtin_expect(vm_bits(large) == 0, 1)) return small;
    return vf_select(large, vf_mul(cap, large_tanh(x)), small);
}

static void softcap(float *scores, int64_t count, int64_t lanes, float cap) {
    const vf limit = vf_set1(cap), inverse = vf_set1(1.0f / cap);
    const int64_t whole = lanes - lanes % VF_WIDTH;
    const int rest = (int)(lanes - whole);
    for (int64_t j = 0; j < count; j++, scores += ICE_PANEL) {
        for (int64_t i = 0; i < whole; i += VF_WIDTH) vf_store(scores + i, capped(vf_load(scores + i), limit, inverse));
        if (rest) vf_store_n(scores + whole, capped(vf_load_n(scores + whole, rest), limit, inverse), rest);
    }
}
