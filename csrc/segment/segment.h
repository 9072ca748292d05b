/* The sealed segment's memory; its meaning is in icecore.h. */
#ifndef ICE_SEGMENT_H
#define ICE_SEGMENT_H

#include <stdatomic.h>
#include <stddef.h>

#include "icecore.h"
#include "kernels/kernels.h"

/* Levels of a tree, the keys included. */
#define ICE_MAX_LAYERS ICECORE_MAX_LEVELS

/* One step of a search down the tree: from parents to their children, which lie together.  The first layer has one
 * parent, the root; the children of the last are the keys. */
typedef struct {
    int64_t parents, children;
    int64_t stride;  /* bytes of a code: dim rounded up to a multiple of 4 */
    int64_t *offset; /* parents + 1: the children of parent p are offset[p] .. offset[p + 1] - 1 */
    float *mean;     /* parents x dim: what codes and scores are relative to; of the root, the frame's centre */
    uint8_t *code;   /* children x stride: 128 + (child - mean) / scale, rounded; NULL where lists serve instead */
    float *scale;    /* children */
    float *bias;     /* children, for squared distances; NULL for inner products */
    float *radius;   /* parents: the largest distance of a child from the mean; NULL but in the last layer with codes */
    float *spread;   /* parents: the root mean square of these distances; as radius */
} ice_layer;

/* The sorted lists of P-DCI over the children of the last layer's parents: for each composite, the keys of each cell in
 * the order of their first projection. */
typedef struct {
    int composites, simples; /* 0, 0: none */
    int32_t *row;            /* composites x count: the stored row at each place */
    float *projection;       /* composites x simples x count, in the order of `row` */
    float *sorted; /* composites x (simples - 1) x count: all projections but the first, sorted in each cell */
} ice_lists;

/* Sets of keys that one mean key and one mean value can stand for: the cells of a segment, or their parents. */
typedef struct {
    int64_t count;
    int64_t *offset;             /* count + 1: the stored rows of a cell, the cells of a parent */
    void *mean_key, *mean_value; /* of the segment's mean_dtype, keys less the segment's centre; 0 where one of them is
                                    not finite */
    float *variance, *radius;    /* distances from the mean key in the metric: mean square per dimension, largest */
    float *log2_count;
    float *log2_weight; /* log2(keys w); NaN where a mean is not finite, so that it is always opened */
    float *half_log2_variance;
} ice_nodes;

/* The facts of node `first` and of those behind it. */
static inline ice_node_facts ice_facts_of(const ice_nodes *nodes, int64_t first) {
    return (ice_node_facts){nodes->variance + first, nodes->radius + first, nodes->log2_count + first,
                            nodes->log2_weight + first, nodes->half_log2_variance + first};
}

struct icecore_segment {
    atomic_int owners; /* icecore_segment_free gives up one; the last one's memory goes */
    int64_t count, cells, dim, value_dim;
    int32_t *order;
    icecore_dtype dtype, mean_dtype; /* for attention: of keys and values, of means */
    void *keys, *values;             /* count rows of ice_row_bytes(dtype, dim), (dtype, value_dim) */
    int relative; /* keys are less the mean key of their cell; means are float32, and the centre is 0 */
    ice_nodes cell, parent;
    float *metric, *component_variance, *centre; /* for attention, dim: as in icecore_segment_view */
    int64_t query_numbers; /* of the sum of q q^T over the queries at its keys (cache/queries.h); 0: it keeps none */
    float *query_sum;
    int64_t *offset; /* for search */
    int32_t *used;   /* cells: keys that are not removed; counted by the index */
    float *mean_key;
    int layers;
    ice_layer layer[ICE_MAX_LAYERS];
    ice_lists lists;
    float scale;   /* of the layers' biases and of the lists: a power of two (frame.h) */
    float lifting; /* c of the lists (lifting.h), or 0 where keys are not lifted */
    int64_t bytes; /* in `owned` */
    int owned_count;
    void *owned[17 + 5 * ICE_MAX_LAYERS]; /* memory to free; arrays not in it belong to somebody else (a mapped file) */
    icecore_segment *base;                /* or to this segment, which has none, of which it owns a part; NULL: none */
};

/* What the keys of a cell lack: its mean key, or NULL where they lack nothing. */
static inline const float *ice_base_of(const icecore_segment *s, int64_t cell) {
    return s->relative ? (const float *)s->cell.mean_key + cell * s->dim : NULL;
}

/* A segment without arrays; NULL when out of memory. */
icecore_segment *ice_segment_new(void);
/* count * size bytes that are freed with the segment; NULL on failure. */
void *ice_segment_alloc(icecore_segment *segment, int64_t count, size_t size);

/* Memory that it holds, that of the segment it goes back to included. */
int64_t ice_segment_bytes(const icecore_segment *segment);

/* One more owner of the same segment. */
icecore_segment *ice_segment_share(icecore_segment *segment);

/* The segment with its means in another dtype, rounded where that has fewer digits; all else is that of the segment as
 * it was built, which lives as long, and is what this returns where its means are wanted again.  NULL when out of
 * memory. */
icecore_segment *ice_segment_with_means(icecore_segment *segment, icecore_dtype means, const ice_kernels *kernels);

/* The seed of the segment over keys first .. first + count - 1: it depends on where the segment lies and not on how it
 * came to be, so that prefill, chunks and single steps build the same cells. */
uint64_t ice_segment_seed(uint64_t seed, int64_t first, int64_t count);

#endif
