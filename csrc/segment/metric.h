/* In which metric the keys of a segment are near one another, and in which components they differ from their cells'
 * means.
 *
 * A cell's mean is wrong for a query by q . (key - mean), on average over queries by (key - mean)^T M (key - mean) with
 * M = E[q q^T], the queries' second moments. */
#ifndef ICE_METRIC_H
#define ICE_METRIC_H

#include "cluster/cells.h"
#include "segment/segment.h"

/* Factors of key components (dim): the root of the diagonal of M, dim x dim, relative to its geometric mean.  All 1
 * where M says nothing. */
void ice_find_metric(const float *moments, int64_t dim, float *metric);
/* The same from the root mean square of the keys, where no queries are known. */
void ice_find_key_metric(const ice_rows *keys, float *metric);

/* Rows P (count x dim, room for ICE_MAX_PROJECTED x dim) such that |P (key - mean)|^2 is (key - mean)^T M (key -
 * mean), but for 2 % of its mean over the keys: the Cholesky factor of M, pivoted by what a component of the keys
 * contributes.  Returns the count, 0 where M or the keys say nothing. */
int64_t ice_find_projection(const float *moments, const ice_rows *keys, float *projection);

/* The component_variance of a segment whose cells and metric are there. */
void ice_find_component_variance(icecore_segment *segment, const ice_kernels *kernels);

/* The standard deviations of the components of sampled rows, as of ice_find_centre. */
void ice_find_spread(const ice_rows *rows, double *spread);
/* The mean of sampled rows, but for those that are not finite or whose squared norm is above 100 times the median; 0
 * where none is left. */
void ice_find_centre(const ice_rows *rows, float *centre);

#endif
