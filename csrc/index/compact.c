/* Everything in one segment, in memory that holds nothing else. */
#include <string.h>

#include "base/memory.h"
#include "index/index.h"

/* All used slots, ascending. */
static int32_t *used_slots(const icecore_index *index) {
    int32_t *slot = ice_alloc(index->used, sizeof *slot);
    int64_t found = 0;
    for (int64_t s = 0; slot && s < index->slots.count; s++)
        if (*ice_slot_state(&index->slots, s) == ICE_SLOT_USED) slot[found++] = (int32_t)s;
    return slot;
}

static int is_compact(const icecore_index *index) {
    int segments = 0;
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) segments += index->sealed[n].segment != NULL;
    return segments <= 1 && index->removed == 0 && (segments == 0 || index->open_count == 0);
}

static icecore_status seal_all(icecore_index *index, int threads) {
    int32_t *slot = used_slots(index);
    if (!slot) return ICECORE_ERROR_MEMORY;
    ice_tree *segment;
    icecore_status status = ice_index_seal(index, slot, index->used, threads, NULL, NULL, &segment);
    if (status == ICECORE_OK) {
        int number[ICE_MAX_SEGMENTS], numbers = 0;
        ice_merge_drop_all(index);
        for (int n = 0; n < ICE_MAX_SEGMENTS; n++)
            if (index->sealed[n].segment) number[numbers++] = n;
        ice_index_adopt(index, segment);
        for (int i = 0; i < numbers; i++) ice_index_drop(index, number[i]);
        index->open_count = 0;
    }
    ice_free(slot);
    return status;
}

/* A table of ids as large as it need be, or the old one where there is no memory. */
static void enter_ids(icecore_index *index) {
    ice_id_map map = {0};
    if (ice_id_map_reserve(&map, &index->slots, index->used) == ICECORE_OK) {
        ice_id_map_end(&index->map);
        index->map = map;
    } else {
        memset(index->map.table, 0, (size_t)index->map.capacity * sizeof *index->map.table);
        index->map.count = 0;
    }
    for (int64_t s = 0; s < index->slots.count; s++) ice_id_map_insert(&index->map, &index->slots, (int32_t)s);
}

/* Moves all used slots to the front; there are no removed ones. */
static void renumber(icecore_index *index, const int32_t *name) {
    const ice_slots *slots = &index->slots;
    for (int64_t s = 0; s < slots->count; s++) {
        const int32_t to = name[s];
        if (to < 0 || to == s) continue;
        memcpy(ice_slot_row(slots, to), ice_slot_row(slots, s), slots->row_bytes);
        *ice_slot_id(slots, to) = *ice_slot_id(slots, s);
        *ice_slot_cell(slots, to) = *ice_slot_cell(slots, s);
        *ice_slot_state(slots, to) = *ice_slot_state(slots, s);
        *ice_slot_home(slots, to) = *ice_slot_home(slots, s);
    }
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) {
        ice_tree *segment = index->sealed[n].segment;
        for (int64_t i = 0; segment && i < segment->count; i++) segment->order[i] = name[segment->order[i]];
    }
    for (int64_t i = 0; i < index->open_count; i++) index->open[i] = name[index->open[i]];
    ice_slots_cut(&index->slots, index->used);
    enter_ids(index);
}

static icecore_status compact(icecore_index *index, int threads) {
    if (index->used == 0) {
        int64_t next_id = index->next_id;
        ice_index_drop_contents(index);
        index->next_id = next_id;
        return ICECORE_OK;
    }
    if (!is_compact(index) || (index->open_count && index->used >= ICE_OPEN_BLOCK)) {
        icecore_status status = seal_all(index, threads);
        if (status != ICECORE_OK) return status;
    }
    int32_t *name = ice_index_names(index);
    if (!name) return ICECORE_ERROR_MEMORY;
    renumber(index, name);
    ice_free(name);
    return ICECORE_OK;
}

icecore_status icecore_index_compact(icecore_index *index, int threads) {
    icecore_status status = ice_index_write_lock(index);
    if (status != ICECORE_OK) return status;
    status = compact(index, threads);
    ice_unlock(&index->lock);
    return status;
}
