#include "attend/packed_heads.h"

#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"

#define PACKED_KEYS 2048 /* in a task; whole packs */

typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    int64_t first_head, heads;
    uint16_t *packed;
} packing;

/* Whether keys are copied: kernels read whole lines, and a row that begins inside of one takes two. */
static int copies_keys(const icecore_attention *p) {
    const icecore_tensor *t = &p->key;
    const int64_t bytes = (t->row_stride | t->head_stride | t->batch_stride) * (int64_t)sizeof(uint16_t);
    return t->row_stride != p->dim || ((intptr_t)t->data | bytes) % ICE_ALIGNMENT != 0;
}

static int64_t packed_rows(const icecore_attention *p) { return (p->keys + ICE_PACKED - 1) / ICE_PACKED * ICE_PACKED; }

int64_t ice_packed_numbers(const icecore_attention *p) {
    return packed_rows(p) * (p->value_dim + (copies_keys(p) ? p->dim : 0));
}

static void pack_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const packing *own = context;
    const icecore_attention *p = own->problem;
    const int64_t number = index % own->heads, head = own->first_head + number,
                  first = index / own->heads * PACKED_KEYS, count = ice_min(p->keys - first, PACKED_KEYS);
    uint16_t *packed = own->packed + number * ice_packed_numbers(p);
    own->kernels->bf16->pack_values(ice_value_at(p, head, first), p->value.row_stride, count, p->value_dim,
                                    packed + first * p->value_dim);
    if (!copies_keys(p)) return;
    uint16_t *keys = packed + packed_rows(p) * p->value_dim + first * p->dim;
    for (int64_t j = 0; j < count; j++)
        memcpy(keys + j * p->dim, ice_key_at(p, head, first + j), (size_t)p->dim * sizeof *keys);
}

icecore_status ice_pack_heads(const icecore_attention *problem, const ice_kernels *kernels, int64_t first_head,
                              int64_t heads, uint16_t *packed) {
    packing own = {problem, kernels, first_head, heads, packed};
    return ice_parallel_for((problem->keys + PACKED_KEYS - 1) / PACKED_KEYS * heads, problem->threads, 1, pack_task,
                            &own);
}

ice_packed_head ice_packed_head_of(const icecore_attention *p, const uint16_t *packed, int64_t number) {
    if (!packed) return (ice_packed_head){NULL, NULL};
    const uint16_t *values = packed + number * ice_packed_numbers(p);
    return (ice_packed_head){values, copies_keys(p) ? values + packed_rows(p) * p->value_dim : NULL};
}
