/* Keys and values rounded to bfloat16, less what softmax does not notice. */
#ifndef ICE_ROUNDING_H
#define ICE_ROUNDING_H

#include "attend/request.h"

/* Of each head (batch x key_heads x dim) the mean of some keys in the components in which it is many times as large as
 * what differs, and does not drift, else 0: taken off all keys it changes no weight, and what is left is rounded with
 * less error.  Causal: of keys of the first block, whose rows are then not to be computed by rounded keys.  Returns
 * whether any is not 0. */
int ice_find_centres(const icecore_attention *problem, const ice_kernels *kernels, int64_t block, float *centre);

/* A problem as panels of bfloat16 multiply it. */
typedef struct {
    icecore_attention problem;
    float *centre;    /* of each head, which its keys lack; NULL: nothing */
    uint16_t *copies; /* keys and values; NULL: as they were given, or, of a rounded problem, none: its data are NULL */
} ice_rounded;

/* Whether panels multiply bfloat16, once the problem's keys are rounded to it. */
int ice_can_be_rounded(const icecore_attention *problem, const ice_kernels *kernels);

/* Rounds a problem that can be; its copies only where they are asked for.  *rounded: to be freed, also after a failure.
 */
icecore_status ice_round(const icecore_attention *given, const ice_kernels *kernels, int64_t block, int copied,
                         ice_rounded *rounded);
void ice_free_rounded(ice_rounded *rounded);

#endif
