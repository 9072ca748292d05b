/* A segment for attention: keys and values in cells, cells under parents.  Its meaning is in icecore.h. */
#ifndef ICE_SEGMENT_H
#define ICE_SEGMENT_H

#include "base/owned.h"
#include "icecore.h"
#include "kernels/kernels.h"

/* Sets of keys that one mean key and one mean value can stand for: the cells of a segment, or their parents. */
typedef struct {
    int64_t count;
    int64_t *offset;             /* count + 1: the stored rows of a cell, the cells of a parent */
    void *mean_key, *mean_value; /* of the segment's mean_dtype, keys less the segment's centre; 0 where one of them is
                                    not finite */
    float *variance, *radius;    /* distances from the mean key in the metric: mean square per dimension, largest */
    float *log2_count;
    float *log2_weight; /* log2(keys w); NaN where it is always opened: a mean is not finite, or it is apart (groups.h),
                           a parent or a cell of one key */
    float *half_log2_variance;
} ice_nodes;

/* The facts of node `first` and of those behind it. */
static inline ice_node_facts ice_facts_of(const ice_nodes *nodes, int64_t first) {
    return (ice_node_facts){nodes->variance + first, nodes->radius + first, nodes->log2_count + first,
                            nodes->log2_weight + first, nodes->half_log2_variance + first};
}

/* How float32 keys and values lie in a segment. */
typedef enum {
    ICE_WHOLE,          /* as numbers */
    ICE_HALVES,         /* as all numbers' first halves, then all numbers' second ones (split in kernels.h): the first
                           ones alone are the rows rounded to bfloat16, for half of the reading */
    ICE_WHOLE_IN_HALVES /* the same, but that some first half is infinite where the number is not */
} ice_halves;

struct icecore_segment {
    ice_owned owned; /* first; arrays not in it belong to somebody else: a mapped file, or `base` */
    int64_t count, cells, dim, value_dim;
    int32_t *order;
    icecore_dtype dtype, mean_dtype; /* of keys and values, of means */
    void *keys, *values;             /* count rows of ice_row_bytes(dtype, dim), (dtype, value_dim) */
    ice_halves halves;               /* of keys and values */
    int relative; /* keys are less the mean key of their cell; means are float32, and the centre is 0 */
    ice_nodes cell, parent;
    float *metric, *component_variance, *centre; /* dim: as in icecore_segment_view */
    int64_t query_numbers; /* of the sum of q q^T over the queries at its keys (cache/queries.h); 0: it keeps none */
    float *query_sum;
    icecore_segment *base; /* of whose arrays it owns a part, and which has none itself; NULL: none */
};

/* What the keys of a cell lack: its mean key, or NULL where they lack nothing. */
static inline const float *ice_base_of(const icecore_segment *s, int64_t cell) {
    return s->relative ? (const float *)s->cell.mean_key + cell * s->dim : NULL;
}

/* The halves of row `row` of a segment in halves; rows: its keys or its values. */
static inline uint16_t *ice_first_half(void *rows, int64_t row, int64_t width) {
    return (uint16_t *)rows + row * width;
}
static inline uint16_t *ice_second_half(const icecore_segment *s, void *rows, int64_t row, int64_t width) {
    return (uint16_t *)rows + (s->count + row) * width;
}

/* Rows first .. first + count - 1 of a segment's keys or values as float32, without what keys lack. */
static inline void ice_read_stored(const icecore_segment *s, const ice_kernels *kernels, void *rows, int64_t first,
                                   int64_t count, int64_t width, float *target) {
    const size_t bytes = ice_row_bytes(s->dtype, width);
    if (s->halves) {
        kernels->join(ice_first_half(rows, first, width), ice_second_half(s, rows, first, width), target,
                      count * width);
        return;
    }
    for (int64_t j = 0; j < count; j++)
        kernels->to_float32(s->dtype, (const char *)rows + (size_t)(first + j) * bytes, target + j * width, width);
}

/* A segment without arrays; NULL when out of memory. */
icecore_segment *ice_segment_new(void);
/* Another segment of the same arrays, which owns the old one and none of them; NULL when out of memory. */
icecore_segment *ice_segment_over(icecore_segment *segment);

/* Memory that it holds, that of the segment it goes back to included. */
int64_t ice_segment_bytes(const icecore_segment *segment);

/* One more owner of the same segment. */
icecore_segment *ice_segment_share(icecore_segment *segment);

/* The segment with its means in another dtype, rounded where that has fewer digits; all else is that of the segment as
 * it was built, which lives as long, and is what this returns where its means are wanted again.  NULL when out of
 * memory. */
icecore_segment *ice_segment_with_means(icecore_segment *segment, icecore_dtype means, const ice_kernels *kernels);

#endif
