#include "select/check_indices.h"

#include <stdatomic.h>

#include "base/parallel.h"

/* Indices checked in a task, about. */
#define CHECK_INDICES 16384

typedef struct {
    const icecore_indices *indices;
    int64_t limit;
    int64_t batch, key_heads, members, queries; /* lists along each axis; 1 where they are all the same one */
    int64_t chunk;                              /* lists in a task */
    atomic_llong first;                         /* list * count + place of the first bad index so far */
} check_call;

/* Whether any index of a list is neither -1 nor below the limit: one branch at the end, so that the compiler can use
 * vectors. */
static int any_outside(const icecore_indices *x, int64_t list, int64_t limit) {
    int outside = 0;
    if (x->is_int64) {
        for (int64_t i = 0; i < x->count; i++)
            outside |= (uint64_t)ice_index_at(x, list + i * x->index_stride) + 1 > (uint64_t)limit;
        return outside;
    }
    /* index + 1 in 32 bits: from 0 to the limit */
    const uint32_t maximum = limit <= INT32_MAX ? (uint32_t)limit : (uint32_t)INT32_MAX + 1;
    const int32_t *own = (const int32_t *)x->data + list;
    if (x->index_stride == 1)
        for (int64_t i = 0; i < x->count; i++) outside |= (uint32_t)own[i] + 1 > maximum;
    else
        for (int64_t i = 0; i < x->count; i++) outside |= (uint32_t)own[i * x->index_stride] + 1 > maximum;
    return outside;
}

static void check_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    check_call *call = context;
    const icecore_indices *x = call->indices;
    const int64_t lists = call->batch * call->key_heads * call->members * call->queries, first = index * call->chunk;
    for (int64_t n = first; n < lists && n < first + call->chunk; n++) {
        const int64_t head = n / call->queries, key_head = head / call->members;
        const int64_t list = ice_list_offset(x, key_head / call->key_heads, key_head % call->key_heads,
                                             head % call->members, n % call->queries);
        if (!any_outside(x, list, call->limit)) continue;
        int64_t i = 0;
        while (i < x->count - 1 && (uint64_t)ice_index_at(x, list + i * x->index_stride) + 1 <= (uint64_t)call->limit)
            i++;
        long long found = n * x->count + i, minimum = atomic_load(&call->first);
        while (found < minimum && !atomic_compare_exchange_weak(&call->first, &minimum, found)) {}
        return;
    }
}

icecore_status ice_check_indices(const icecore_attention *p, const icecore_indices *x, int64_t *place) {
    check_call call = {.indices = x,
                       .limit = ice_index_limit(p, x),
                       .batch = x->batch_stride ? p->batch : 1,
                       .key_heads = x->key_head_stride ? p->key_heads : 1,
                       .members = x->member_stride ? ice_group(p) : 1,
                       .queries = x->row_stride ? p->queries : 1,
                       .chunk = CHECK_INDICES / (x->count + 1) + 1,
                       .first = INT64_MAX};
    const int64_t lists = call.batch * call.key_heads * call.members * call.queries;
    icecore_status status = ice_parallel_for((lists + call.chunk - 1) / call.chunk, p->threads, 0, check_task, &call);
    const int64_t found = atomic_load(&call.first);
    if (status != ICECORE_OK || found == INT64_MAX) return status;
    /* from the lists that differ to all of them */
    const int64_t n = found / x->count, head = n / call.queries, key_head = head / call.members;
    const int64_t all_heads = key_head / call.key_heads * p->key_heads + key_head % call.key_heads;
    *place = ((all_heads * ice_group(p) + head % call.members) * p->queries + n % call.queries) * x->count +
             found % x->count;
    return ICECORE_ERROR_INDEX;
}
