/* Attention as its formula says it, one query at a time in double precision. */
#ifndef NAIVE_H
#define NAIVE_H

#include "tensors.h"

/* Which keys a row keeps besides those that are always exact; all of them where `keep` is at least their number. */
typedef struct {
    int64_t keep;  /* of the others, those with the largest scores */
    int64_t block; /* the query's own block and the one before are exact, besides the sinks; 0: only the sinks */
} naive_top_k;

/* Checks out and lse of every row against the formula, and that nothing else was written; a NaN must be where the
 * formula has one. `options` NULL: exact attention. */
void expect_attention(const problem *problem, const naive_top_k *options);

/* log of the sum of exponentials of all visible keys of one row. */
double naive_lse(const icecore_attention *p, int64_t batch, int64_t head, int64_t query);

#endif
