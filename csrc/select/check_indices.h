/* Lists of indices that the caller chose: where they lie, and whether they name keys. */
#ifndef ICE_CHECK_INDICES_H
#define ICE_CHECK_INDICES_H

#include "attend/request.h"

/* Where a row's list begins, in elements. */
static inline int64_t ice_list_offset(const icecore_indices *x, int64_t batch, int64_t key_head, int64_t member,
                                      int64_t query) {
    return batch * x->batch_stride + key_head * x->key_head_stride + member * x->member_stride + query * x->row_stride;
}

static inline int64_t ice_index_at(const icecore_indices *x, int64_t offset) {
    return x->is_int64 ? ((const int64_t *)x->data)[offset] : ((const int32_t *)x->data)[offset];
}

/* Indices are below this: the number of keys, or of blocks of them. */
static inline int64_t ice_index_limit(const icecore_attention *p, const icecore_indices *x) {
    return x->block ? p->keys / x->block + (p->keys % x->block > 0) : p->keys;
}

/* ICECORE_ERROR_INDEX and the place of the first index that is neither -1 nor names keys. */
icecore_status ice_check_indices(const icecore_attention *problem, const icecore_indices *indices, int64_t *place);

#endif
