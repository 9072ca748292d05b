#include "index/id_map.h"

#include <string.h>

#include "base/memory.h"
#include "base/random.h"

static int64_t home_of(const ice_id_map *map, int64_t id) {
    uint64_t state = (uint64_t)id;
    return (int64_t)(ice_random(&state) & (uint64_t)(map->capacity - 1));
}

icecore_status ice_id_map_reserve(ice_id_map *map, const ice_slots *slots, int64_t count) {
    /* at most three quarters full */
    int64_t capacity = map->capacity ? map->capacity : 64;
    while (count > capacity / 4 * 3) capacity *= 2;
    if (capacity == map->capacity) return ICECORE_OK;
    ice_id_map grown = {ice_alloc(capacity, sizeof(int32_t)), capacity, 0};
    if (!grown.table) return ICECORE_ERROR_MEMORY;
    memset(grown.table, 0, (size_t)capacity * sizeof *grown.table);
    for (int64_t i = 0; i < map->capacity; i++)
        if (map->table[i]) ice_id_map_insert(&grown, slots, map->table[i] - 1);
    ice_free(map->table);
    *map = grown;
    return ICECORE_OK;
}

void ice_id_map_end(ice_id_map *map) {
    ice_free(map->table);
    *map = (ice_id_map){0};
}

int32_t ice_id_map_find(const ice_id_map *map, const ice_slots *slots, int64_t id) {
    if (!map->capacity) return -1;
    for (int64_t i = home_of(map, id); map->table[i]; i = (i + 1) & (map->capacity - 1))
        if (*ice_slot_id(slots, map->table[i] - 1) == id) return map->table[i] - 1;
    return -1;
}

void ice_id_map_insert(ice_id_map *map, const ice_slots *slots, int32_t slot) {
    int64_t i = home_of(map, *ice_slot_id(slots, slot));
    while (map->table[i]) i = (i + 1) & (map->capacity - 1);
    map->table[i] = slot + 1;
    map->count++;
}

/* Later entries of the same run move up, so that no gap parts an id from its place. */
void ice_id_map_remove(ice_id_map *map, const ice_slots *slots, int32_t slot) {
    const int64_t mask = map->capacity - 1;
    int64_t hole = home_of(map, *ice_slot_id(slots, slot));
    while (map->table[hole] != slot + 1) hole = (hole + 1) & mask;
    for (int64_t i = (hole + 1) & mask; map->table[i]; i = (i + 1) & mask) {
        int64_t home = home_of(map, *ice_slot_id(slots, map->table[i] - 1));
        if (((i - home) & mask) < ((i - hole) & mask)) continue;
        map->table[hole] = map->table[i];
        hole = i;
    }
    map->table[hole] = 0;
    map->count--;
}
