/* NaN and inf in values.
 *
 * A hidden key has weight 0, and 0 * NaN would let its value in.  So where a block hides keys and holds such values,
 * the ordinary kernel runs on a copy with zeros in their place (0 * 0 = 0 * v: the same bits for everybody else), and
 * the products of the values that are not finite with the weights that are not zero are added afterwards. */
#ifndef ICE_FINITE_H
#define ICE_FINITE_H

#include <stdint.h>

#include "icecore.h"

/* count x dim numbers; a row begins `stride` numbers after the one before. */
typedef struct {
    icecore_dtype dtype;
    const void *data;
    int64_t stride, count, dim;
} ice_numbers;

/* 1 if all are finite. */
int ice_all_finite(const ice_numbers *rows);

/* target: count x dim numbers of the same type, contiguous; NaN and inf become 0.  May be the rows themselves when
 * stride == dim. */
void ice_copy_finite(const ice_numbers *rows, void *target);

/* accumulator[t * lane_step + lane] += weights[j * lane_step + lane] * rows[j][t] wherever the value is not finite and
 * the weight not 0; lane < lanes.  One query: lanes = lane_step = 1. */
void ice_add_nonfinite(const ice_numbers *rows, const float *weights, int lanes, int64_t lane_step, float *accumulator);

#endif
