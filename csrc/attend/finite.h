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
    icecore_dtype dtype; /* not a quantized one */
    const void *data;
    int64_t stride, count, dim;
} ice_numbers;

/* 1 if all are finite. */
int ice_all_finite(const ice_numbers *rows);

/* Where some keys are `hidden` and not all values are finite: replaces the rows by a copy in `target` (contiguous, of
 * the same type) in which NaN and inf are 0, and returns 1. */
int ice_clean(ice_numbers *rows, int hidden, void *target);

/* accumulator[t * lane_step + lane] += weights[j * lane_step + lane] * rows[j][t] wherever the value is not finite and
 * the weight not 0; lane < lanes.  One query: lanes = lane_step = 1. */
void ice_add_nonfinite(const ice_numbers *rows, const float *weights, int lanes, int64_t lane_step, float *accumulator);

#endif
