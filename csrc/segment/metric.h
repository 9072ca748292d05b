/* In which metric the keys of a segment are near one another, and in which components they differ from their cells' means. */
#ifndef ICE_METRIC_H
#define ICE_METRIC_H

#include "segment/rows.h"
#include "segment/segment.h"

/* The keys' own metric (icecore_near_far in icecore.h), into `metric` (dim).  Depends on the rows alone. */
void ice_find_key_metric(const ice_rows *keys, float *metric);

/* The component_variance of a segment whose cells and metric are there. */
void ice_find_component_variance(icecore_segment *segment, const ice_kernels *kernels);

#endif
