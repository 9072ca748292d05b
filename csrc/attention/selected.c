/* Attention by a selector (select/selector.h): digests of all heads, then tiles of all heads. */
#include "base/parallel.h"
#include "select/selector.h"

typedef struct {
    ice_selector_call call;
    const ice_selector *selector;
    char *digests; /* of each head */
    size_t digest_bytes, scratch_bytes;
    int64_t heads;
    int32_t *near_count;
} selected_call;

static void digest_task(void *context, int64_t head, void *scratch) {
    if (!scratch) return;
    const selected_call *own = context;
    own->selector->digest(&own->call, head, own->digests + (size_t)head * own->digest_bytes);
}

static void attend_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const selected_call *own = context;
    const icecore_attention *p = own->call.problem;
    const int64_t head = index % own->heads, first = index / own->heads * ICE_PANEL, rest = ice_query_rows(p) - first;
    int64_t near_count[ICE_PANEL] = {0};
    ice_tile tile;
    ice_tile_begin(&tile, p, own->call.kernels, head / p->key_heads, head % p->key_heads, first,
                   rest < ICE_PANEL ? (int)rest : ICE_PANEL, (char *)scratch + own->scratch_bytes);
    own->selector->select(&own->call, &tile, own->digests + (size_t)head * own->digest_bytes, scratch, near_count);
    ice_tile_write(&tile);
    for (int lane = 0; own->near_count && lane < tile.lanes; lane++) {
        const ice_row row = ice_tile_row(&tile, lane);
        own->near_count[(row.batch * p->query_heads + row.head) * p->queries + row.query] = (int32_t)near_count[lane];
    }
}

icecore_status ice_attend_selected(const icecore_attention *p, const ice_selector *selector, int64_t near_keys,
                                   int32_t *near_count) {
    icecore_status status = ice_check_problem(p);
    if (status != ICECORE_OK) return status;
    if (p->window >= 0 || p->mask_kind != ICECORE_MASK_NONE || near_keys < 1) return ICECORE_ERROR_VALUE;
    if (ice_is_empty(p)) return ICECORE_OK;
    selected_call own = {.call = {p, ice_active_kernels(), near_keys},
                         .selector = selector,
                         .heads = p->batch * p->key_heads,
                         .near_count = near_count};
    own.digest_bytes = ice_round_up(selector->digest_bytes(&own.call));
    own.scratch_bytes = ice_round_up(selector->scratch_bytes(&own.call));
    own.digests = ice_alloc(own.heads, own.digest_bytes ? own.digest_bytes : 1);
    if (!own.digests) return ICECORE_ERROR_MEMORY;
    const int64_t tiles = (ice_query_rows(p) + ICE_PANEL - 1) / ICE_PANEL;
    status = ice_parallel_for(own.heads, p->threads, 1, digest_task, &own);
    if (status == ICECORE_OK)
        status =
            ice_parallel_for(own.heads * tiles, p->threads, own.scratch_bytes + ice_tile_bytes(p), attend_task, &own);
    ice_free(own.digests);
    return status;
}

icecore_status icecore_attend_pages(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) {
    return ice_attend_selected(problem, &ice_pages, near_keys, near_count);
}
