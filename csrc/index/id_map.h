/* From ids to slots: open addressing.  The table holds slots alone; ids are compared where the slots keep them. */
#ifndef ICE_ID_MAP_H
#define ICE_ID_MAP_H

#include "index/slots.h"

typedef struct {
    int32_t *table;          /* capacity places: slot + 1, or 0 */
    int64_t capacity, count; /* capacity: 0 or a power of two */
} ice_id_map;

/* Room for `count` ids in all. */
icecore_status ice_id_map_reserve(ice_id_map *map, const ice_slots *slots, int64_t count);
void ice_id_map_end(ice_id_map *map);
/* The slot of an id, or -1. */
int32_t ice_id_map_find(const ice_id_map *map, const ice_slots *slots, int64_t id);
/* The id of `slot` must be absent, and there must be room. */
void ice_id_map_insert(ice_id_map *map, const ice_slots *slots, int32_t slot);
/* The id of `slot` must be present. */
void ice_id_map_remove(ice_id_map *map, const ice_slots *slots, int32_t slot);

#endif
