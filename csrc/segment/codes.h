/* 8-bit codes of a layer's children (kernels/codes.inc.h scores them). */
#ifndef ICE_CODES_H
#define ICE_CODES_H

#include "segment/segment.h"

/* The parent of a child. */
int64_t ice_parent_of(const ice_layer *layer, int64_t child);

/* Writes code and scale of `child`, and its bias where the layer has one: with mean m of the parent, r = x - m and centre c,
 *   -|q - x|^2 / 2 = -|q - m|^2 / 2 + (q - c).r - ((m - c).r + |r|^2 / 2):
 * the query is taken from the segment's centre, so that data far from the origin lose nothing; the last term is the bias. */
void ice_encode(ice_layer *layer, int64_t dim, const float *center, int64_t parent, int64_t child, const float *x);

/* A query's bytes (stride of them, the last ones 0), their scale and -128 times their sum.  center: NULL for inner products. */
void ice_encode_query(const float *query, const float *center, int64_t dim, int64_t stride, int8_t *code, float *scale,
                      int32_t *offset);

#endif
