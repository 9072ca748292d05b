/* Whole key heads as panel kernels of matrix tiles and bfloat16 read them, packed once for all tiles of queries.
 *
 * bfloat16: values in the kernels' order, and keys on cache lines of their own where they do not lie so.  Other types:
 * both in thirds (kernels.h), and for each block of keys whether thirds hold it. */
#ifndef ICE_PACKED_HEADS_H
#define ICE_PACKED_HEADS_H

#include "attend/request.h"

typedef struct {
    const uint16_t *values; /* NULL: nothing is packed */
    const uint16_t *keys;   /* keys x dim; NULL: where the problem has them */
    const uint16_t *beyond; /* thirds: of each ICE_KEY_BLOCK keys, whether they do not hold some; NULL: bfloat16 */
} ice_packed_head;

/* Whether panels multiply the problem's numbers in thirds, once they are packed. */
int ice_in_thirds(const icecore_attention *problem, const ice_kernels *kernels);

/* Numbers of 16 bits that a head takes. */
int64_t ice_packed_numbers(const icecore_attention *problem);

/* Packs batch x key heads first_head .. first_head + heads - 1 one after the other, on the problem's threads.  The
 * problem must be one whose ice_panel_dtype is bfloat16, or that is in thirds. */
icecore_status ice_pack_heads(const icecore_attention *problem, const ice_kernels *kernels, int64_t first_head,
                              int64_t heads, uint16_t *packed);

/* The head that was packed as number `number`; of NULL, one that is not. */
ice_packed_head ice_packed_head_of(const icecore_attention *problem, const uint16_t *packed, int64_t number);

#endif
