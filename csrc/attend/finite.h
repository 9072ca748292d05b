/* NaN and inf in values.
 *
 * A hidden key has weight 0, and 0 * NaN would let its value in.  So where a block hides keys and holds such values,
 * the ordinary kernel runs on a copy with zeros in their place (0 * 0 = 0 * v: the same bits for everybody else), and
 * the products of the values that are not finite with the weights that are not zero are added afterwards. */
#ifndef ICE_FINITE_H
#define ICE_FINITE_H

#include <stdint.h>

#include "icecore.h"

/* 1 if all of count x dim numbers are finite. */
int ice_all_finite(icecore_dtype dtype, const void *rows, int64_t stride, int64_t count, int64_t dim);

/* target: count x dim numbers of the same type, contiguous; NaN and inf become 0.  May be `rows` itself when stride ==
 * dim. */
void ice_copy_finite(icecore_dtype dtype, const void *rows, int64_t stride, int64_t count, int64_t dim, void *target);

/* accumulator[t * lane_step + lane] += weights[j * lane_step + lane] * rows[j * stride + t] wherever the value is not
 * finite and the weight not 0; lane < lanes.  One query: lanes = lane_step = 1. */
void ice_add_nonfinite(icecore_dtype dtype, const void *rows, int64_t stride, int64_t count, int64_t dim,
                       const float *weights, int lanes, int64_t lane_step, float *accumulator);

#endif
