/* What vf_exp2 has in common: 2^x = 2^n 2^f with n = round(x), f in [-1/2, 1/2], and 2^f ~ 1 + f (C1 + f (C2 + ...)):
 * minimax in relative error (9.2e-8) among polynomials of degree 5 that are exact at 0; with rounding the error stays
 * below 1.7e-7.  Included by a header of this folder behind its vf_set1 and vf_fma. */
#ifndef ICE_EXP2_H
#define ICE_EXP2_H

#define EXP2_C1 0.6931469776f
#define EXP2_C2 0.24022242085f
#define EXP2_C3 0.0555073374165f
#define EXP2_C4 0.00967151265581f
#define EXP2_C5 0.00132647276714f
/* Below this the result is 0: no subnormal numbers, which some processors handle slowly. */
#define EXP2_MIN (-125.0f)

/* 2^f. */
static inline vf exp2_of_fraction(vf f) {
    vf p = vf_fma(f, vf_set1(EXP2_C5), vf_set1(EXP2_C4));
    p = vf_fma(f, p, vf_set1(EXP2_C3));
    p = vf_fma(f, p, vf_set1(EXP2_C2));
    p = vf_fma(f, p, vf_set1(EXP2_C1));
    return vf_fma(f, p, vf_set1(1.0f));
}

#endif
