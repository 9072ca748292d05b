#include "attend/packed_heads.h"

#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"

#define PACKED_KEYS 2048 /* in a task; whole blocks of keys */

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

int ice_in_thirds(const icecore_attention *p, const ice_kernels *kernels) {
    const ice_thirds_kernels *thirds = kernels->thirds;
    return thirds && p->key_dtype != ICECORE_BFLOAT16 && p->dim % thirds->dim_multiple == 0 &&
           p->value_dim % thirds->value_dim_multiple == 0;
}

/* Whole cache lines, so that the next head begins with one. */
static int64_t block_flags(const icecore_attention *p) {
    const int64_t line = ICE_ALIGNMENT / (int64_t)sizeof(uint16_t),
                  blocks = (p->keys + ICE_KEY_BLOCK - 1) / ICE_KEY_BLOCK;
    return (blocks + line - 1) / line * line;
}

int64_t ice_packed_numbers(const icecore_attention *p) {
    if (p->key_dtype != ICECORE_BFLOAT16) return ICE_THIRDS * packed_rows(p) * (p->value_dim + p->dim) + block_flags(p);
    return packed_rows(p) * (p->value_dim + (copies_keys(p) ? p->dim : 0));
}

/* Where a head's keys and flags lie, behind its values. */
static int64_t keys_at(const icecore_attention *p) { return ICE_THIRDS * packed_rows(p) * p->value_dim; }
static int64_t flags_at(const icecore_attention *p) { return keys_at(p) + ICE_THIRDS * packed_rows(p) * p->dim; }

/* Rows of a head as float32: where they lie, or widened into `buffer`. */
static const float *float_rows(const packing *own, const icecore_tensor *tensor, int64_t width, int64_t head,
                               int64_t first, int64_t count, float *buffer, int64_t *stride) {
    const icecore_attention *p = own->problem;
    const int64_t batch = head / p->key_heads, key_head = head % p->key_heads;
    *stride = p->key_dtype == ICECORE_FLOAT32 ? tensor->row_stride : width;
    if (p->key_dtype == ICECORE_FLOAT32) return ice_address(tensor, p->key_dtype, batch, key_head, first);
    for (int64_t j = 0; j < count; j++)
        own->kernels->to_float32(p->key_dtype, ice_address(tensor, p->key_dtype, batch, key_head, first + j),
                                 buffer + j * width, width);
    return buffer;
}

/* Packs `count` keys from key `first` on, whole blocks but for the last. */
static void pack_thirds(const packing *own, uint16_t *packed, int64_t head, int64_t first, int64_t count) {
    const icecore_attention *p = own->problem;
    const ice_thirds_kernels *thirds = own->kernels->thirds;
    float buffer[ICE_PACKED * ICECORE_MAX_DIM];
    for (int64_t at = first, stride; at < first + count; at += ICE_PACKED) {
        const int64_t rows = ice_min(first + count - at, ICE_PACKED);
        uint16_t *keys = packed + keys_at(p) + ICE_THIRDS * at * p->dim,
                 *values = packed + ICE_THIRDS * at * p->value_dim, *beyond = packed + flags_at(p) + at / ICE_KEY_BLOCK;
        if (at % ICE_KEY_BLOCK == 0) *beyond = 0;
        const float *source = float_rows(own, &p->key, p->dim, head, at, rows, buffer, &stride);
        if (!thirds->pack_keys(source, stride, rows, p->dim, keys)) *beyond = 1;
        source = float_rows(own, &p->value, p->value_dim, head, at, rows, buffer, &stride);
        if (!thirds->pack_values(source, stride, rows, p->value_dim, values)) *beyond = 1;
    }
}

static void pack_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const packing *own = context;
    const icecore_attention *p = own->problem;
    const int64_t number = index % own->heads, head = own->first_head + number,
                  first = index / own->heads * PACKED_KEYS, count = ice_min(p->keys - first, PACKED_KEYS);
    uint16_t *packed = own->packed + number * ice_packed_numbers(p);
    if (p->key_dtype != ICECORE_BFLOAT16) {
        pack_thirds(own, packed, head, first, count);
        return;
    }
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
    if (!packed) return (ice_packed_head){NULL, NULL, NULL};
    const uint16_t *values = packed + number * ice_packed_numbers(p);
    if (p->key_dtype != ICECORE_BFLOAT16) return (ice_packed_head){values, values + keys_at(p), values + flags_at(p)};
    return (ice_packed_head){values, copies_keys(p) ? values + packed_rows(p) * p->value_dim : NULL, NULL};
}
