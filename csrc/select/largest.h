/* Of each row of a tile the keys with the largest scores, single ones: all scores are computed. */
#ifndef ICE_LARGEST_H
#define ICE_LARGEST_H

#include "select/kept.h"
#include "select/selector.h"

typedef struct {
    ice_kept kept[ICE_PANEL];
    int32_t *places; /* of a block's scores that reach the thresholds */
} ice_largest;

/* As of ice_selector_memory: own is an ice_largest. */
void ice_largest_lay_out(const ice_selector_call *call, void *own, ice_arena *arena);

/* kept[lane]: the near_keys keys with the largest scores, the first among equals, of those that the row sees without
 * the first `sinks` and the last `window`.  NaN counts as infinite.  No short runs wait in the tile. */
void ice_find_largest(const ice_selector_call *call, ice_tile *tile, int64_t sinks, int64_t window, ice_largest *l);

#endif
