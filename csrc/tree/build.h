/* Building a tree, in steps: cells, the levels above them, 8-bit codes or P-DCI lists. */
#ifndef ICE_TREE_BUILD_H
#define ICE_TREE_BUILD_H

#include "tree/tree.h"

typedef struct ice_tree_builder ice_tree_builder;

icecore_status ice_tree_begin(const ice_tree_plan *plan, ice_tree_builder **result);
/* Goes on by about *work visits of a row; *work becomes what is left of it.  After an error or an interruption: call
 * again, or end. */
icecore_status ice_tree_step(ice_tree_builder *builder, int64_t *work, int threads);
/* Visits of a row that a build takes in all, about. */
int64_t ice_tree_work(const ice_tree_plan *plan);
int ice_tree_done(const ice_tree_builder *builder);
/* Once the cells are known, rows may go by other names: the tree's order holds names from then on, and rows.read is
 * asked for names. 0, and nothing has changed, while they are not known.  At most once. */
int ice_tree_rename(ice_tree_builder *builder, const int32_t *name);
/* The tree once it is done; its order holds numbers of rows, or names.  Gives up ownership. */
ice_tree *ice_tree_take(ice_tree_builder *builder);
/* Memory held, about. */
int64_t ice_tree_bytes(const ice_tree_builder *builder);
void ice_tree_end(ice_tree_builder *builder);

#endif
