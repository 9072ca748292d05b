/* What a mask, and ranges, do to the cells and parents of a stack, for the rows of a panel. */
#ifndef ICE_NODE_MASK_H
#define ICE_NODE_MASK_H

#include "attend/tile.h"
#include "segment/stack.h"

/* Lanes under the same row of the mask and with the same range. */
typedef struct {
    uint64_t lanes;
    int64_t offset;     /* of the row's first element */
    int64_t first, end; /* all other keys are hidden */
    int64_t seen;       /* sealed keys that are left */
} ice_mask_row;

typedef struct {
    uint64_t *hidden, *cut; /* stack->nodes each, every segment's parents and then its cells: lanes to which the mask
                               hides all keys; hides or biases some */
    uint64_t dense;         /* lanes for which the mask cuts so many cells that they open all */
    ice_mask_row row[ICE_PANEL];
    int rows;
} ice_node_mask;

/* Whether some row of the tile may not see all sealed keys as they are. */
int ice_node_mask_is_needed(const ice_tile *tile, const ice_stack *stack);
/* Looks at every sealed key for each different row of a mask, and at every cell for each different range.  `hidden` and
 * `cut` have memory. */
void ice_node_mask_read(ice_node_mask *mask, const ice_tile *tile, const ice_stack *stack);

/* What a row adds to the score of a key, in units of log 2; -inf hides it. */
float ice_mask_at(const icecore_attention *problem, const ice_mask_row *row, int64_t key);

#endif
