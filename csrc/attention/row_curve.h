/* The curve of one row, from the sums that its keys went to (curve.c). */
#ifndef ICE_ROW_CURVE_H
#define ICE_ROW_CURVE_H

#include "attention/curve.h"

/* A tile of sampled rows, whose keys are attended to. */
typedef struct {
    const ice_sample *sample;
    icecore_attention problem; /* of the sampled queries alone */
    ice_selection *t;
    int levels;           /* traced; cells that would be opened only beyond count as never opened */
    uint8_t *begin, *end; /* nodes x ICE_PANEL: the levels from which on, and up to which, a node counts by its mean */
    const void **mean_value; /* of each row of t->scores */
    float *log2_count;
    ice_state *base, *all;  /* ICE_PANEL: the exact keys; all keys */
    ice_state *opened;      /* ICE_PANEL x ICE_GRID: the keys of the cells that are opened at a level */
    float *sums;            /* accumulators of `base`, and of `opened` */
    float *weight, *output; /* 2 x nodes; ICE_GRID + 1 x value_dim */
    const void **rows;      /* 2 x nodes */
    int32_t *event;         /* 2 x nodes */
} ice_traced_tile;

/* Of a lane, once its keys are attended to: all but `squared_query` and `rounding`.  The exact output lies behind
 * `output`'s levels then. */
void ice_row_curve(ice_traced_tile *own, int lane, ice_curve *found);

#endif
