/* Keys and values rounded to bfloat16, less what softmax does not notice. */
#ifndef ICE_ROUNDING_H
#define ICE_ROUNDING_H

#include "attend/request.h"

/* Of each head (batch x key_heads x dim) the mean of some keys in the components in which it is many times as large as
 * what differs, and does not drift, else 0: taken off all keys it changes no weight, and what is left is rounded with
 * less error.  Causal: of keys of the first block, whose rows are then not to be computed by rounded keys.  Returns
 * whether any is not 0. */
int ice_find_centres(const icecore_attention *problem, const ice_kernels *kernels, int64_t block, float *centre);

/* The same problem on copies of its keys, less `centre` (or NULL), and values, in bfloat16.  *copies: to be freed, also
 * after a failure. */
icecore_status ice_round_problem(const icecore_attention *problem, const ice_kernels *kernels, const float *centre,
                                 icecore_attention *copied, uint16_t **copies);

#endif
