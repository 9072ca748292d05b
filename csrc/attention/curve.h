/* The error of a row for every threshold: what measure.h chooses by.
 *
 * All keys are attended exactly, and cells once more, whose sums go to the threshold at which they are opened.  Running
 * sums over the thresholds, from the loosest on, then give the output that each would have given.  Few cells are opened
 * by the looser thresholds: the curve may end with one of them, and is level behind it.  What is replayed is what is
 * shipped: parents that are not expanded count as their means, keys are rounded as they are stored. */
#ifndef ICE_CURVE_H
#define ICE_CURVE_H

#include "attention/row_curve.h"

/* Queries of one key head at some positions, equally far apart where there are a mask or ranges. */
typedef struct {
    const icecore_attention *problem; /* as it is attended: its keys and values may be rounded */
    const icecore_attention *given;   /* as the caller gave it */
    icecore_tensor query;             /* of the sampled queries, in the problem's dtype */
    const int64_t *position;          /* count */
    int64_t count;
    const icecore_near_far *options;
    const ice_kernels *kernels;
    const ice_stack *stack;
    ice_exact_keys exact;
    int64_t batch, key_head;
    double stands_for; /* rows that each of them stands for */
    double fading;     /* what rows that were measured before weigh beside these */
    int renew;         /* whether heads that score all cells try parents again, and rounding is measured too */
} ice_sample;

/* The problem, as attended or as given, of the sampled queries alone; where they stand is not in it. */
icecore_attention ice_sampled_problem(const icecore_attention *problem, const ice_sample *sample);

/* Scratch of tracing over at most so many levels, and cells and parents. */
size_t ice_trace_bytes(const icecore_attention *problem, int64_t levels, int64_t nodes);
/* The curves of a sample's rows over the first `levels` thresholds, query by query and within a query head by head;
 * with_rounding: also how far rounding moves the first of them. */
void ice_trace(const ice_sample *sample, const ice_rule *rules, int levels, ice_curve *found, int with_rounding,
               void *scratch);

#endif
