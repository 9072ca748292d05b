/* The curve of one row, from the sums that its keys went to (curve.c). */
#ifndef ICE_ROW_CURVE_H
#define ICE_ROW_CURVE_H

#include "select/selection.h"

/* Thresholds 2 * 1.2^-g, g < ICE_GRID: down to 3e-9.  Risks of cells that hold two kinds of keys are that far off. */
#define ICE_GRID 112
#define ICE_LOG2_STEP 0.26303440583379378
#define ICE_LOG2_FIRST 1.0

/* Of one row, for each threshold. */
typedef struct {
    float norm;                            /* |o|; NaN where the row says nothing */
    float squared_query;                   /* the query's squared length */
    float rounding;                        /* |o - o by the keys as given|^2, or below 0: not found */
    float distance[ICE_GRID];              /* |o - o^|^2 */
    float means[ICE_GRID], far[ICE_GRID];  /* the mass of means, and of what they stand for, by the row's mass */
    float near[ICE_GRID], nodes[ICE_GRID]; /* keys of opened cells, nodes scored */
} ice_curve;

/* A tile of sampled rows, whose keys are attended to. */
typedef struct {
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
    void *scratch;          /* of the selection */
    float *outputs;         /* exact ones: ICE_PANEL x value_dim */
} ice_traced_tile;

/* Of a lane, once its keys are attended to: all but `squared_query` and `rounding`.  The exact output lies behind
 * `output`'s levels then. */
void ice_row_curve(ice_traced_tile *own, int lane, ice_curve *found);

#endif
