/* The driver of selectors: digests of all heads, then tiles of all heads. */
#include "select/selector.h"

#include <stdatomic.h>
#include <string.h>

#include "base/parallel.h"

typedef struct {
    ice_selector_call call;
    const ice_selector *selector;
    char *digests; /* of each head */
    size_t digest_bytes, space_bytes;
    int64_t heads;
    atomic_int status; /* of digests: the last failure */
    int32_t *near_count;
} selected_call;

/* A struct at the beginning of `memory`, and behind it its arrays: measures and lays out by the same code.  own: the
 * struct, or room for one.  Returns the bytes. */
static size_t lay_out(const ice_selector_call *call, const ice_selector_memory *kind, char *memory, void *own) {
    ice_arena arena = {memory, 0};
    ice_arena_take(&arena, 1, kind->size);
    if (kind->size) kind->lay_out(call, own, &arena);
    return arena.used;
}

static void *digests_of(const selected_call *own, int64_t head) {
    return own->digests + (size_t)head * own->digest_bytes;
}

static void digest_task(void *context, int64_t head, void *scratch) {
    if (!scratch) return;
    selected_call *own = context;
    const icecore_status status = own->selector->digest(&own->call, head, digests_of(own, head));
    if (status != ICECORE_OK) atomic_store(&own->status, (int)status);
}

static void attend_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const selected_call *own = context;
    const icecore_attention *p = own->call.problem;
    const int64_t head = index % own->heads, first = index / own->heads * ICE_PANEL;
    int64_t near_count[ICE_PANEL] = {0};
    lay_out(&own->call, &own->selector->space, scratch, scratch);
    ice_tile tile;
    ice_tile_begin(&tile, p, own->call.kernels, head / p->key_heads, head % p->key_heads, first,
                   ice_query_rows(p) - first, (char *)scratch + own->space_bytes);
    own->selector->select(&own->call, &tile, digests_of(own, head), scratch, near_count);
    ice_tile_write(&tile);
    for (int lane = 0; own->near_count && lane < tile.lanes; lane++)
        own->near_count[ice_place_of(p, ice_tile_row(&tile, lane))] = (int32_t)near_count[lane];
}

static icecore_status digest_and_attend(selected_call *own) {
    const icecore_attention *p = own->call.problem;
    const int64_t tiles = (ice_query_rows(p) + ICE_PANEL - 1) / ICE_PANEL;
    icecore_status status =
        own->selector->digest ? ice_parallel_for(own->heads, p->threads, 1, digest_task, own) : ICECORE_OK;
    if (status == ICECORE_OK) status = (icecore_status)atomic_load(&own->status);
    if (status != ICECORE_OK) return status;
    return ice_parallel_for(own->heads * tiles, p->threads, own->space_bytes + ice_tile_bytes(p), attend_task, own);
}

/* Finds out how much memory is needed, and lays out the digests, whose arrays are zero. */
static icecore_status begin(selected_call *own) {
    const ice_selector *s = own->selector;
    void *none = ice_alloc(1, s->digests.size + s->space.size + 1);
    if (!none) return ICECORE_ERROR_MEMORY;
    own->digest_bytes = lay_out(&own->call, &s->digests, NULL, none);
    own->space_bytes = lay_out(&own->call, &s->space, NULL, none);
    ice_free(none);
    own->digests = ice_alloc(own->heads, own->digest_bytes ? own->digest_bytes : 1);
    if (!own->digests) return ICECORE_ERROR_MEMORY;
    memset(own->digests, 0, (size_t)own->heads * own->digest_bytes);
    for (int64_t head = 0; head < own->heads; head++)
        lay_out(&own->call, &s->digests, digests_of(own, head), digests_of(own, head));
    return ICECORE_OK;
}

icecore_status ice_attend_selected(const ice_selector_call *call, const ice_selector *selector, int32_t *near_count) {
    const icecore_attention *p = call->problem;
    icecore_status status = ice_check_problem(p);
    if (status != ICECORE_OK) return status;
    if (ice_hides_keys(p) || p->alibi_slopes || call->near_keys < 1 || p->keys > INT32_MAX) return ICECORE_ERROR_VALUE;
    if (ice_is_empty(p)) return ICECORE_OK;
    selected_call own = {
        .call = *call, .selector = selector, .heads = p->batch * p->key_heads, .near_count = near_count};
    own.call.kernels = ice_active_kernels();
    status = begin(&own);
    if (status != ICECORE_OK) return status;
    status = digest_and_attend(&own);
    for (int64_t head = 0; selector->release && head < own.heads; head++)
        selector->release(&own.call, digests_of(&own, head));
    ice_free(own.digests);
    return status;
}

icecore_status ice_attend_selected_by_heads(const ice_selector_call *call, const ice_selector *selector,
                                            int32_t *near_count) {
    const icecore_attention *p = call->problem;
    icecore_status status = ice_check_problem(p);
    for (int64_t i = 0; status == ICECORE_OK && !ice_is_empty(p) && i < p->batch * p->key_heads; i++) {
        const ice_row first = ice_row_at(p, i / p->key_heads, i % p->key_heads, 0);
        const icecore_attention heads = ice_heads_of(p, first.batch, first.head, ice_group(p));
        ice_selector_call own = *call;
        own.problem = &heads;
        status = ice_attend_selected(&own, selector, near_count ? near_count + ice_place_of(p, first) : NULL);
    }
    return status;
}
