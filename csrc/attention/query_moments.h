/* Second moments of queries: the metric in which keys are near one another (segment/metric.h). */
#ifndef ICE_QUERY_MOMENTS_H
#define ICE_QUERY_MOMENTS_H

#include "attend/request.h"

/* Every eighth position is enough: the error at 256 near keys is within 5 to 20 % of what all positions give (four
 * models' heads). */
#define ICE_MOMENT_STEP 8
/* Fewer rows say too little. */
#define ICE_MIN_MOMENT_ROWS 64

/* Queries first .. end - 1 of a key head. */
typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    int64_t batch, key_head, first, end;
} ice_query_range;

/* sum (dim x dim) += q q^T over those that stand at positions step - 1, 2 step - 1, ...; *rows grows by their number.
 * Queries that are not finite are left out. */
icecore_status ice_add_query_moments(const ice_query_range *range, int64_t step, float *sum, int64_t *rows);

/* moments (dim x dim) = the mean of q q^T, of every ICE_MOMENT_STEP-th position or, where these are too few rows, of
 * all.  1, or 0 where there are not enough; below 0 on failure. */
int ice_find_query_moments(const ice_query_range *range, float *moments);

#endif
