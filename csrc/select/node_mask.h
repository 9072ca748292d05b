/* What a mask does to the cells and parents of a stack, for the rows of a panel. */
#ifndef ICE_NODE_MASK_H
#define ICE_NODE_MASK_H

#include "attend/tile.h"
#include "segment/stack.h"

/* Lanes under the same row of the mask. */
typedef struct {
    uint64_t lanes;
    int64_t offset; /* of the row's first element */
    int64_t seen;   /* sealed keys that it leaves */
} ice_mask_row;

typedef struct {
    uint64_t *hidden, *cut; /* stack->nodes each, every segment's parents and then its cells: lanes to which the mask
                               hides all keys; hides or biases some */
    uint64_t dense;         /* lanes for which the mask cuts so many cells that they open all */
    ice_mask_row row[ICE_PANEL];
    int rows;
} ice_node_mask;

/* Looks at every sealed key for each different row.  `hidden` and `cut` have memory. */
void ice_node_mask_read(ice_node_mask *mask, const ice_tile *tile, const ice_stack *stack);

/* What a row of the problem's mask adds to the score of a key, in units of log 2; -inf hides it. */
float ice_mask_at(const icecore_attention *problem, const ice_mask_row *row, int64_t key);

#endif
