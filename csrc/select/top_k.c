/* Exact top-k attention: of all keys those with the largest scores, the ceiling of every method that keeps some keys
 * and drops the rest. */
#include "select/largest.h"

static size_t scratch_bytes(const ice_selector_call *call) {
    ice_largest none;
    return ice_largest_lay_out(call, NULL, &none);
}

static void select_largest(const ice_selector_call *call, ice_tile *tile, const void *digests, void *scratch,
                           int64_t near_count[ICE_PANEL]) {
    ice_largest l;
    (void)digests;
    ice_largest_lay_out(call, scratch, &l);
    ice_find_largest(call, tile, 0, 0, &l);
    for (int lane = 0; lane < tile->lanes; lane++) {
        near_count[lane] = l.kept[lane].count;
        ice_kept_attend(tile, lane, &l.kept[lane], NULL);
    }
}

const ice_selector ice_top_k = {NULL, scratch_bytes, NULL, NULL, select_largest};
