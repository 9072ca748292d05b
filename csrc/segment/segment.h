/* The sealed segment's memory; its meaning is in icecore.h. */
#ifndef ICE_SEGMENT_H
#define ICE_SEGMENT_H

#include <stdatomic.h>

#include "icecore.h"
#include "kernels/kernels.h"

struct icecore_segment {
    atomic_int owners;         /* icecore_segment_free gives up one; the last one's memory goes */
    int64_t count, cells, dim, value_dim;
    int64_t *offset;
    int32_t *order;
    float *keys, *values;
    float *mean_key, *mean_value;
    float *variance, *radius, *log2_count;
};

/* One more owner of the same segment. */
icecore_segment *ice_segment_share(icecore_segment *segment);

/* The seed of the segment over keys first .. first + count - 1: it depends on where the segment lies and not on how it came to be,
 * so that prefill, chunks and single steps build the same cells. */
uint64_t ice_segment_seed(uint64_t seed, int64_t first, int64_t count);

#endif
