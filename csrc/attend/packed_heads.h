/* Whole key heads as the bfloat16 kernels read them, packed once for all tiles: values in the kernels' order, and keys
 * on cache lines of their own where they do not lie so. */
#ifndef ICE_PACKED_HEADS_H
#define ICE_PACKED_HEADS_H

#include "attend/request.h"

typedef struct {
    const uint16_t *values; /* NULL: nothing is packed */
    const uint16_t *keys;   /* keys x dim; NULL: where the problem has them */
} ice_packed_head;

/* Numbers that a head takes. */
int64_t ice_packed_numbers(const icecore_attention *problem);

/* Packs batch x key heads first_head .. first_head + heads - 1 one after the other, on the problem's threads.  The
 * problem must be one whose ice_panel_dtype is bfloat16. */
icecore_status ice_pack_heads(const icecore_attention *problem, const ice_kernels *kernels, int64_t first_head,
                              int64_t heads, uint16_t *packed);

/* The head that was packed as number `number`; of NULL, one that is not. */
ice_packed_head ice_packed_head_of(const icecore_attention *problem, const uint16_t *packed, int64_t number);

#endif
