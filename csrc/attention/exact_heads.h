/* Query heads that a near/far call attends exactly. */
#ifndef ICE_EXACT_HEADS_H
#define ICE_EXACT_HEADS_H

#include "attention/schedule.h"

/* A call as they see it. */
typedef struct {
    const icecore_attention *problem; /* as near/far attention multiplies it */
    const icecore_attention *given;   /* by the caller, of his types */
    const float *centre;              /* of each head, which `problem`'s keys lack; NULL: nothing */
    const uint16_t *packed;           /* all heads of `problem`, packed; NULL: not */
    const icecore_report *report;
    const ice_kernels *kernels;
} ice_exact_call;

/* The exact query heads of a step, or with no rules all, shared out over its tiles: each takes panels of queries of one
 * head.  Where nothing is known yet, keys are rounded as they will be, if they have been; the first block's are not,
 * since what is taken off keys before is made of them. */
void ice_attend_exact_heads(const ice_exact_call *call, const ice_step *step, const ice_rule *rules, int64_t head,
                            int64_t tile, void *scratch);

#endif
