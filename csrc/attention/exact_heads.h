/* Query heads that a near/far call attends exactly. */
#ifndef ICE_EXACT_HEADS_H
#define ICE_EXACT_HEADS_H

#include "attention/schedule.h"

/* The exact query heads of a step, or with no rules all, shared out over its tiles: each takes panels of queries of one
 * head.  Where nothing is known yet, keys are rounded as they will be, if they have been; the first block's are not,
 * since what is taken off keys before is made of them.  given: the problem as the caller gave it, of his types; the
 * view's is as near/far attention multiplies it. */
void ice_attend_exact_heads(const ice_head_view *view, const icecore_attention *given, const ice_step *step,
                            int64_t tile, void *scratch);

#endif
