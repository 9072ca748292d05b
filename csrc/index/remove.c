/* Removing vectors.  Their ids go at once; a slot that a segment names is marked and given back when the segment is
 * built anew. */
#include "base/memory.h"
#include "base/parallel.h"
#include "index/index.h"

void ice_index_count_removed(icecore_index *index, int32_t slot, int change) {
    ice_sealed *sealed = &index->sealed[*ice_slot_home(&index->slots, slot)];
    sealed->segment->used[*ice_slot_cell(&index->slots, slot)] -= change;
    sealed->removed += change;
    index->removed += change;
}

static void mark(icecore_index *index, const int32_t *slot, int64_t count, int removed) {
    for (int64_t i = 0; i < count; i++) {
        *ice_slot_state(&index->slots, slot[i]) = removed ? ICE_SLOT_REMOVED : ICE_SLOT_USED;
        if (*ice_slot_home(&index->slots, slot[i]) != ICE_HOME_OPEN)
            ice_index_count_removed(index, slot[i], removed ? 1 : -1);
    }
}

static void leave_open_block(icecore_index *index, int32_t slot) {
    int64_t i = 0;
    while (index->open[i] != slot) i++;
    index->open[i] = index->open[--index->open_count];
    ice_slots_give(&index->slots, slot);
}

/* The slots of ids, marked; *found: how many.  Where an id is at fault none is marked in the end, and *place says
 * which. */
static icecore_status find(icecore_index *index, const int64_t *ids, int64_t count, int absent_too, int32_t *slot,
                           int64_t *found, int64_t *place) {
    *found = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t own = ice_id_map_find(&index->map, &index->slots, ids[i]);
        const int absent = own < 0, repeated = !absent && *ice_slot_state(&index->slots, own) == ICE_SLOT_REMOVED;
        if (!absent && !repeated) {
            slot[(*found)++] = own;
            mark(index, &own, 1, 1);
        } else if (!absent_too) {
            mark(index, slot, *found, 0);
            *place = i;
            return absent ? ICECORE_ERROR_ABSENT : ICECORE_ERROR_REPEATED;
        }
    }
    return ICECORE_OK;
}

static icecore_status take_out(icecore_index *index, const int64_t *ids, int64_t count, int absent_too, int threads,
                               int64_t *place) {
    int64_t found;
    int32_t *slot = ice_alloc(count, sizeof *slot);
    if (!slot) return ICECORE_ERROR_MEMORY;
    icecore_status status = find(index, ids, count, absent_too, slot, &found, place);
    if (status == ICECORE_OK) {
        /* what a large removal makes due, it does itself: only searches may follow */
        ice_merge_begin_due(index);
        status = ice_merge_step(index, ICE_SHARES_TO_REMOVE * found, found < ICE_OPEN_BLOCK ? 1 : threads);
        if (status == ICECORE_OK && ice_interrupted()) status = ICECORE_INTERRUPTED;
        if (status != ICECORE_OK) {
            mark(index, slot, found, 0);
            ice_merge_drop_all(index); /* those begun here have left the slots out */
            ice_merge_begin_due(index);
        }
    }
    if (status == ICECORE_OK) {
        for (int64_t i = 0; i < found; i++) {
            ice_id_map_remove(&index->map, &index->slots, slot[i]);
            if (*ice_slot_home(&index->slots, slot[i]) == ICE_HOME_OPEN) leave_open_block(index, slot[i]);
        }
        index->used -= found;
        ice_merge_settle(index);
        *place = found;
    }
    ice_free(slot);
    return status;
}

icecore_status icecore_index_remove(icecore_index *index, const int64_t *ids, int64_t count, int absent_too,
                                    int threads, int64_t *place) {
    icecore_status status = ice_index_write_lock(index);
    if (status != ICECORE_OK) return status;
    *place = 0;
    if (count > 0) status = take_out(index, ids, count, absent_too, threads, place);
    ice_unlock(&index->lock);
    return status;
}
