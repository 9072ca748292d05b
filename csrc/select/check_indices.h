/* Lists of indices that the caller chose: where they lie, and whether they name keys. */
#ifndef ICE_CHECK_INDICES_H
#define ICE_CHECK_INDICES_H

#include "attend/request.h"

/* Where a row's list begins, in elements. */
static inline int64_t ice_list_offset(const icecore_indices *x, int64_t batch, int64_t key_head, int64_t member,
                                      int64_t query) {
    return batch * x->batch_stride + key_head * x->key_head_stride + member * x->member_stride + query * x->row_stride;
}

/* ICECORE_ERROR_INDEX and the place of the first index that is neither -1 nor a key. */
icecore_status ice_check_indices(const icecore_attention *problem, const icecore_indices *indices, int64_t *place);

#endif
