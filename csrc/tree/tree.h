/* A tree for search: vectors in cells, the levels above them, and 8-bit codes or P-DCI lists to score children by.
 * Immutable once built (tree/build.h). */
#ifndef ICE_TREE_H
#define ICE_TREE_H

#include "base/owned.h"
#include "cluster/rows.h"

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

typedef struct ice_tree ice_tree;
struct ice_tree {
    ice_owned owned; /* arrays not in it belong to somebody else: a mapped file, or `base` */
    int64_t count, cells, dim;
    int32_t *order;
    int64_t *offset; /* of the last layer, as the next ones */
    float *mean_key;
    int32_t *used; /* cells: keys that are not removed; counted by the index */
    int layers;
    ice_layer layer[ICE_MAX_LAYERS];
    ice_lists lists;
    float scale;    /* of the layers' biases and of the lists: a power of two (frame.h) */
    float lifting;  /* c of the lists (lifting.h), or 0 where keys are not lifted */
    ice_tree *base; /* of whose arrays it owns none; NULL: none */
};

/* A tree without arrays; NULL when out of memory. */
ice_tree *ice_tree_new(void);
/* One more owner of the same tree. */
ice_tree *ice_tree_share(ice_tree *tree);
/* Gives up one owner. */
void ice_tree_free(ice_tree *tree);

/* What a tree is made of, and how. */
typedef struct {
    const ice_kernels *kernels;
    ice_rows rows; /* 1 .. INT32_MAX of them; must stay as they are until the end */
    icecore_metric metric;
    int levels;
    double promotion; /* 0: count^(-1 / levels) */
    int composites, simples;
    const float *directions; /* composites x simples x (dim + 1 for inner products, else dim): unit vectors; must
                                outlive the build */
    uint64_t seed;
} ice_tree_plan;

#endif
