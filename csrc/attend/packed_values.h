/* Values of whole key heads in the order of the bfloat16 kernels, packed once for all tiles that read them. */
#ifndef ICE_PACKED_VALUES_H
#define ICE_PACKED_VALUES_H

#include "attend/request.h"

/* Numbers of one head. */
static inline int64_t ice_packed_numbers(const icecore_attention *p) {
    return (p->keys + ICE_PACKED - 1) / ICE_PACKED * ICE_PACKED * p->value_dim;
}

/* Packs batch x key heads first_head .. first_head + heads - 1 one after the other, on the problem's threads.  The
 * problem must be one that the bfloat16 kernels serve (ice_panel_is_bf16). */
icecore_status ice_pack_heads(const icecore_attention *problem, const ice_kernels *kernels, int64_t first_head,
                              int64_t heads, uint16_t *packed);

#endif
