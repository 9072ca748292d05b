/* Building a segment for search, in steps: cells, the levels above them, 8-bit codes or P-DCI lists. */
#ifndef ICE_NEAR_FAR_TILE_H
#define ICE_NEAR_FAR_TILE_H

#include "segment/rows.h"
#include "segment/segment.h"

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

typedef struct ice_tree_builder ice_tree_builder;

icecore_status ice_tree_begin(const ice_tree_plan *plan, ice_tree_builder **result);
/* Goes on by about *work visits of a row; *work becomes what is left of it.  After an error or an interruption: call
 * again, or end. */
icecore_status ice_tree_step(ice_tree_builder *builder, int64_t *work, int threads);
/* Visits of a row that a build takes in all, about. */
int64_t ice_tree_work(const ice_tree_plan *plan);
int ice_tree_done(const ice_tree_builder *builder);
/* Once the cells are known, rows may go by other names: the segment's order holds names from then on, and rows.read is
 * asked for names. 0, and nothing has changed, while they are not known.  At most once. */
int ice_tree_rename(ice_tree_builder *builder, const int32_t *name);
/* The segment once it is done; its order holds numbers of rows, or names.  Gives up ownership. */
icecore_segment *ice_tree_take(ice_tree_builder *builder);
/* Memory held, about. */
int64_t ice_tree_bytes(const ice_tree_builder *builder);
void ice_tree_end(ice_tree_builder *builder);

#endif
