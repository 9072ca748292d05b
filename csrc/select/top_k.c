/* Exact top-k attention: of all keys those with the largest scores, the ceiling of every method that keeps some keys
 * and drops the rest. */
#include "select/largest.h"

static void select_largest(const ice_selector_call *call, ice_tile *tile, const void *digests, void *space,
                           int64_t near_count[ICE_PANEL]) {
    ice_largest *l = space;
    (void)digests;
    ice_find_largest(call, tile, 0, 0, l);
    for (int lane = 0; lane < tile->lanes; lane++) {
        near_count[lane] = l->kept[lane].count;
        ice_kept_attend(tile, lane, &l->kept[lane], NULL);
    }
}

static const ice_selector top_k = {.space = {sizeof(ice_largest), ice_largest_lay_out}, .select = select_largest};

icecore_status icecore_attend_top_k(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) {
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys};
    return ice_attend_selected(&call, &top_k, near_count);
}
