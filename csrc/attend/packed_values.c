#include "attend/packed_values.h"

#include "base/parallel.h"

#define PACKED_KEYS 2048 /* in a task; whole packs */

typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    int64_t first_head, heads;
    uint16_t *packed;
} packing;

static void pack_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const packing *own = context;
    const icecore_attention *p = own->problem;
    const int64_t number = index % own->heads, head = own->first_head + number,
                  first = index / own->heads * PACKED_KEYS;
    const int64_t rest = p->keys - first;
    own->kernels->bf16->pack_values(ice_value_at(p, head, first), p->value.row_stride,
                                    rest < PACKED_KEYS ? rest : PACKED_KEYS, p->value_dim,
                                    own->packed + number * ice_packed_numbers(p) + first * p->value_dim);
}

icecore_status ice_pack_heads(const icecore_attention *problem, const ice_kernels *kernels, int64_t first_head,
                              int64_t heads, uint16_t *packed) {
    packing own = {problem, kernels, first_head, heads, packed};
    return ice_parallel_for((problem->keys + PACKED_KEYS - 1) / PACKED_KEYS * heads, problem->threads, 1, pack_task,
                            &own);
}
