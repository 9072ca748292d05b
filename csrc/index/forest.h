/* All segments that hold a vector as one forest, whose nodes are numbered through. */
#ifndef ICE_FOREST_H
#define ICE_FOREST_H

#include "index/index.h"

typedef struct {
    const ice_tree *segment[ICE_MAX_SEGMENTS];
    int segments, layers;
    int64_t first[ICE_MAX_LAYERS + 1]
                 [ICE_MAX_SEGMENTS + 1]; /* number of each segment's first parent in a layer; [segments]: how many */
    int64_t largest_cell;
    /* Below each parent of a layer: vectors that are not removed, and those of them that may be returned.  NULL where
     * that is all. */
    int32_t *used[ICE_MAX_LAYERS], *wanted[ICE_MAX_LAYERS];
} ice_forest;

/* The segments side by side; `used` and `wanted` stay NULL. */
void ice_forest_find(const icecore_index *index, ice_forest *forest);

/* The segment of a node, a parent in `layer` numbered through all segments. */
static inline int ice_forest_segment(const ice_forest *f, int layer, int64_t node) {
    int n = 0;
    while (node >= f->first[layer][n + 1]) n++;
    return n;
}

/* Keys below a segment's own parent: descendants of a node lie together. */
static inline int64_t ice_keys_below(const ice_tree *segment, int layer, int64_t parent) {
    int64_t low = parent, high = parent + 1;
    for (; layer < segment->layers; layer++) {
        low = segment->layer[layer].offset[low];
        high = segment->layer[layer].offset[high];
    }
    return high - low;
}

/* Vectors below a parent that may be returned. */
static inline int64_t ice_wanted_below(const ice_forest *f, int layer, int64_t node) {
    if (f->wanted[layer]) return f->wanted[layer][node];
    int n = ice_forest_segment(f, layer, node);
    return ice_keys_below(f->segment[n], layer, node - f->first[layer][n]);
}

#endif
