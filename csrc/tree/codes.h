/* 8-bit codes of a layer's children (kernels/codes.inc.h scores them). */
#ifndef ICE_CODES_H
#define ICE_CODES_H

#include "tree/tree.h"

/* The parent of a child. */
int64_t ice_parent_of(const ice_layer *layer, int64_t child);

/* Writes code and scale of `child`, and its bias where the layer has one; returns |x - m|^2 in the tree's scale.
 * With mean m of the parent and r = x - m
 *   q.x = q.m + q.r   and   -|q - x|^2 / 2 = -|q - m|^2 / 2 + (q - m).r - |r|^2 / 2;
 * the last term, in the tree's scale, is the bias.  Inner products thus take the query's own code, squared distances
 * that of its difference from m.  work: dim floats. */
float ice_encode(const ice_kernels *kernels, const ice_tree *tree, ice_layer *layer, int64_t parent, int64_t child,
                 const float *x, float *work);

/* Inner products: bytes (stride of them, the last ones 0) of a query, their scale and -128 times their sum. */
void ice_encode_query(const ice_kernels *kernels, const float *query, int64_t dim, int64_t stride, int8_t *code,
                      float *scale, int32_t *offset);

#endif
