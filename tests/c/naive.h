/* Attention as its formula says it, one query at a time in double precision. */
#ifndef NAIVE_H
#define NAIVE_H

#include "tensors.h"

/* Checks out and lse of every row against the formula, and that nothing else was written; a NaN must be where the
 * formula has one. keep: of the visible keys, those with the largest scores; 0: all. */
void expect_attention(const problem *problem, int64_t keep);

/* log of the sum of exponentials of all visible keys of one row. */
double naive_lse(const icecore_attention *p, int64_t batch, int64_t head, int64_t query);

#endif
