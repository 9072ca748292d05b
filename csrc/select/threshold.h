/* Which cells a budget opens. */
#ifndef ICE_THRESHOLD_H
#define ICE_THRESHOLD_H

#include "kernels/kernels.h"

/* threshold[lane] = the largest number for which the cells with risk >= threshold hold at least `wanted` keys; -inf
 * when all cells together hold fewer.  Bisection on the bits of the risks: at most 32 passes over them, usually a
 * dozen, because it ends as soon as every lane has one cell left between its bounds. */
void ice_risk_threshold(const ice_kernels *kernels, const float *risk, int64_t cells, int lanes, const float *count,
                        int64_t wanted, float *threshold);

#endif
