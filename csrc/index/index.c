#include "index/index.h"

#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"
#include "tree/lists.h"

/* ---- Life ---- */

static int make_directions(icecore_index *index) {
    const icecore_index_options *o = &index->options;
    const int64_t width = o->dim + (o->metric == ICECORE_INNER_PRODUCT), rows = (int64_t)o->composites * o->simples;
    if (!rows) return 1;
    index->directions = ice_alloc(rows * width, sizeof(float));
    if (index->directions) ice_lists_directions(o->seed, rows, width, index->directions);
    return index->directions != NULL;
}

icecore_status icecore_index_create(const icecore_index_options *o, icecore_index **result) {
    if (o->dim < 1 || o->dim > ICECORE_MAX_INDEX_DIM || o->metric > ICECORE_SQUARED_DISTANCE || o->composites < 0 ||
        o->composites > ICECORE_MAX_COMPOSITES || o->simples < 1 || o->simples > ICECORE_MAX_SIMPLES || o->levels < 1 ||
        o->levels > ICECORE_MAX_LEVELS || !(o->promotion >= 0.0 && o->promotion < 1.0) || o->dtype > ICECORE_BFLOAT16)
        return ICECORE_ERROR_VALUE;
    icecore_index *index = ice_alloc(1, sizeof *index);
    if (!index) return ICECORE_ERROR_MEMORY;
    memset(index, 0, sizeof *index);
    index->options = *o;
    index->slots = (ice_slots){.dim = o->dim,
                               .dtype = o->dtype,
                               .owned = 1,
                               .row_bytes = (size_t)o->dim * (o->dtype == ICECORE_FLOAT32 ? 4 : 2)};
    ice_lock_begin(&index->lock);
    if (!make_directions(index)) {
        icecore_index_free(index);
        return ICECORE_ERROR_MEMORY;
    }
    *result = index;
    return ICECORE_OK;
}

void ice_index_drop_contents(icecore_index *index) {
    ice_merge_drop_all(index);
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) ice_tree_free(index->sealed[n].segment);
    memset(index->sealed, 0, sizeof index->sealed);
    ice_slots_end(&index->slots);
    ice_id_map_end(&index->map);
    index->used = index->removed = index->next_id = index->open_count = 0;
    index->seals = 0;
}

void icecore_index_free(icecore_index *index) {
    if (!index || index->lock.is_lost) return; /* what is in no known state is left alone */
    ice_index_drop_contents(index);
    ice_free(index->directions);
    ice_lock_end(&index->lock);
    ice_free(index);
}

icecore_status ice_index_write_lock(icecore_index *index) {
    return index->read_only ? ICECORE_ERROR_READ_ONLY : ice_lock_write(&index->lock);
}

icecore_status icecore_index_clear(icecore_index *index) {
    icecore_status status = ice_index_write_lock(index);
    if (status != ICECORE_OK) return status;
    ice_index_drop_contents(index);
    ice_unlock(&index->lock);
    return ICECORE_OK;
}

static icecore_status reserve(icecore_index *index, int64_t count) {
    icecore_status status = ice_slots_reserve(&index->slots, count + index->removed);
    return status == ICECORE_OK ? ice_id_map_reserve(&index->map, &index->slots, count) : status;
}

icecore_status icecore_index_reserve(icecore_index *index, int64_t count) {
    icecore_status status = ice_index_write_lock(index);
    if (status != ICECORE_OK) return status;
    if (count > index->used) status = reserve(index, count);
    ice_unlock(&index->lock);
    return status;
}

/* ---- Adding ---- */

/* A build in steps that are told to `progress`. */
static icecore_status build(ice_tree_builder *builder, int64_t whole, int threads, icecore_progress progress,
                            void *context) {
    for (int64_t done = 0; !ice_tree_done(builder);) {
        int64_t step = progress ? whole / 64 + 1 : INT64_MAX, work = step;
        icecore_status status = ice_tree_step(builder, &work, threads);
        if (status != ICECORE_OK) return status;
        done += step - work;
        if (progress && progress(context, done < whole ? (double)done / (double)whole : 1.0))
            return ICECORE_INTERRUPTED;
    }
    return ICECORE_OK;
}

icecore_status ice_index_seal(icecore_index *index, const int32_t *slot, int64_t count, int threads,
                              icecore_progress progress, void *context, ice_tree **segment) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    const ice_slot_rows rows = {kernels, &index->slots, slot};
    ice_tree_plan plan = ice_index_plan(index, kernels, &rows, count);
    ice_tree_builder *builder;
    icecore_status status = ice_tree_begin(&plan, &builder);
    if (status != ICECORE_OK) return status;
    status = build(builder, ice_tree_work(&plan), threads, progress, context);
    /* the last question: from here on the call succeeds */
    if (status == ICECORE_OK && ice_interrupted_now()) status = ICECORE_INTERRUPTED;
    if (status == ICECORE_OK) {
        ice_tree_rename(builder, slot);
        *segment = ice_tree_take(builder);
    }
    ice_tree_end(builder);
    return status;
}

/* Takes out what `enter` has entered; ids go back to the slots that had them. */
static void leave(icecore_index *index, const int32_t *slot, const int32_t *old, int64_t entered) {
    for (int64_t i = entered - 1; i >= 0; i--) {
        ice_id_map_remove(&index->map, &index->slots, slot[i]);
        ice_slots_give(&index->slots, slot[i]);
        if (old[i] < 0) continue;
        *ice_slot_state(&index->slots, old[i]) = ICE_SLOT_USED;
        ice_id_map_insert(&index->map, &index->slots, old[i]);
    }
}

/* Takes slots for the new vectors and enters their ids; old: the slots that had these ids, now marked as removed, or
 * -1.  On failure everything is as before. */
static icecore_status enter(icecore_index *index, const float *vectors, const int64_t *ids, int64_t count, int replace,
                            int32_t *slot, int32_t *old, int64_t *place) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    const int64_t dim = index->options.dim;
    icecore_status status = reserve(index, index->used + count);
    int64_t entered = 0;
    for (; status == ICECORE_OK && entered < count; entered++) {
        if (entered % ICE_UNASKED == 0 && ice_interrupted()) {
            status = ICECORE_INTERRUPTED;
            break;
        }
        const int32_t found = old[entered] = ice_id_map_find(&index->map, &index->slots, ids[entered]);
        const int is_new = found >= 0 && *ice_slot_home(&index->slots, found) == ICE_HOME_NEW;
        if (is_new || (found >= 0 && !replace)) {
            *place = entered;
            status = is_new ? ICECORE_ERROR_REPEATED : ICECORE_ERROR_EXISTS;
            break;
        }
        if (found >= 0) {
            ice_id_map_remove(&index->map, &index->slots, found);
            *ice_slot_state(&index->slots, found) = ICE_SLOT_REMOVED;
        }
        int32_t own = ice_slots_take(&index->slots);
        slot[entered] = own;
        kernels->from_float32(index->options.dtype, vectors + entered * dim, ice_slot_row(&index->slots, own), dim);
        *ice_slot_id(&index->slots, own) = ids[entered];
        *ice_slot_state(&index->slots, own) = ICE_SLOT_USED;
        *ice_slot_home(&index->slots, own) = ICE_HOME_NEW;
        ice_id_map_insert(&index->map, &index->slots, own);
    }
    if (status != ICECORE_OK) leave(index, slot, old, entered);
    return status;
}

/* What the open block then holds: `slot`, its own and new ones. */
static void fill_open_block(icecore_index *index, const int32_t *slot, int64_t count) {
    memcpy(index->open, slot, (size_t)count * sizeof *slot);
    index->open_count = count;
    for (int64_t i = 0; i < count; i++) *ice_slot_home(&index->slots, slot[i]) = ICE_HOME_OPEN;
}

/* Slots whose ids went to others. */
static void retire(icecore_index *index, const int32_t *old, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (old[i] < 0) continue;
        index->used--;
        if (*ice_slot_home(&index->slots, old[i]) == ICE_HOME_OPEN) ice_slots_give(&index->slots, old[i]);
        else ice_index_count_removed(index, old[i], 1);
    }
}

/* `slot`: room for the open block and the new ones; `old`: for those that they replace. */
static icecore_status put(icecore_index *index, const icecore_addition *a, int32_t *slot, int32_t *old,
                          int64_t *place) {
    const int64_t count = a->count;
    icecore_status status = enter(index, a->vectors, a->ids, count, a->replace, slot + index->open_count, old, place);
    if (status != ICECORE_OK) return status;
    int64_t held = 0;
    for (int64_t i = 0; i < index->open_count; i++)
        if (*ice_slot_state(&index->slots, index->open[i]) == ICE_SLOT_USED) slot[held++] = index->open[i];
    memmove(slot + held, slot + index->open_count, (size_t)count * sizeof *slot);
    if (held + count < ICE_OPEN_BLOCK) {
        fill_open_block(index, slot, held + count);
    } else {
        ice_tree *segment;
        status = ice_index_seal(index, slot, held + count, a->threads, a->progress, a->context, &segment);
        if (status != ICECORE_OK) {
            leave(index, slot + held, old, count);
            return status;
        }
        ice_index_adopt(index, segment);
        index->open_count = 0;
    }
    retire(index, old, count);
    index->used += count;
    for (int64_t i = 0; i < count; i++)
        if (a->ids[i] >= index->next_id) index->next_id = a->ids[i] < INT64_MAX ? a->ids[i] + 1 : INT64_MAX;
    ice_merge_settle(index);
    return ICECORE_OK;
}

static icecore_status add(icecore_index *index, const icecore_addition *a, int64_t *place) {
    if (a->count == 0) return ICECORE_OK;
    icecore_status status =
        ice_merge_step(index, ICE_SHARES_TO_ADD * a->count, a->count < ICE_OPEN_BLOCK ? 1 : a->threads);
    if (status != ICECORE_OK) return status;
    if (ice_interrupted()) return ICECORE_INTERRUPTED;
    ice_merge_settle(index);
    if (index->open_count + a->count >= ICE_OPEN_BLOCK && !ice_index_has_room(index))
        return ICECORE_ERROR_MEMORY; /* for merges, all along */
    int32_t *slot = ice_alloc(index->open_count + a->count, sizeof *slot), *old = ice_alloc(a->count, sizeof *old);
    status = slot && old ? put(index, a, slot, old, place) : ICECORE_ERROR_MEMORY;
    ice_free(slot);
    ice_free(old);
    return status;
}

static icecore_status add_counting(icecore_index *index, icecore_addition a, int64_t *first) {
    if (index->next_id > INT64_MAX - a.count) return ICECORE_ERROR_VALUE;
    int64_t *ids = ice_alloc(a.count, sizeof *ids), place;
    if (!ids) return ICECORE_ERROR_MEMORY;
    *first = index->next_id;
    for (int64_t i = 0; i < a.count; i++) ids[i] = *first + i;
    a.ids = ids;
    icecore_status status = add(index, &a, &place);
    ice_free(ids);
    return status;
}

icecore_status icecore_index_add(icecore_index *index, const icecore_addition *added, int64_t *place) {
    icecore_status status = ice_index_write_lock(index);
    if (status != ICECORE_OK) return status;
    status = added->ids ? add(index, added, place) : add_counting(index, *added, place);
    ice_unlock(&index->lock);
    return status;
}

/* ---- Reading ---- */

static icecore_status enter_mapped_ids(icecore_index *index) {
    icecore_status status = ice_lock_write(&index->lock);
    if (status != ICECORE_OK) return status;
    if (index->map.count != index->used) {
        status = ice_id_map_reserve(&index->map, &index->slots, index->used);
        if (status == ICECORE_OK && !index->slots.chunk->cell) status = ice_slots_reserve_cells(&index->slots);
        for (int n = 0; status == ICECORE_OK && n < ICE_MAX_SEGMENTS; n++)
            if (index->sealed[n].segment) ice_index_enter_cells(index, n);
    }
    for (int64_t s = 0; status == ICECORE_OK && index->map.count != index->used; s++) {
        if (*ice_slot_state(&index->slots, s) == ICE_SLOT_USED)
            ice_id_map_insert(&index->map, &index->slots, (int32_t)s);
        if (s % ICE_UNASKED == 0 && ice_interrupted()) status = ICECORE_INTERRUPTED;
    }
    if (status != ICECORE_OK) ice_id_map_end(&index->map);
    ice_unlock(&index->lock);
    return status;
}

icecore_status ice_index_lookup_lock(icecore_index *index) {
    icecore_status status = ice_lock_read(&index->lock);
    if (status != ICECORE_OK || !index->read_only || index->map.count == index->used) return status;
    ice_unlock(&index->lock);
    status = enter_mapped_ids(index);
    return status == ICECORE_OK ? ice_lock_read(&index->lock) : status;
}

icecore_status icecore_index_get(icecore_index *index, const int64_t *ids, int64_t count, float *vectors,
                                 int64_t *place) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    icecore_status status = ice_index_lookup_lock(index);
    if (status != ICECORE_OK) return status;
    const int64_t dim = index->options.dim;
    for (int64_t i = 0; i < count && status == ICECORE_OK; i++) {
        int32_t slot = ice_id_map_find(&index->map, &index->slots, ids[i]);
        if (slot >= 0) {
            kernels->to_float32(index->options.dtype, ice_slot_row(&index->slots, slot), vectors + i * dim, dim);
        } else {
            status = ICECORE_ERROR_ABSENT;
            *place = i;
        }
    }
    ice_unlock(&index->lock);
    return status;
}

icecore_status icecore_index_contains(icecore_index *index, const int64_t *ids, int64_t count, uint8_t *present) {
    icecore_status status = ice_index_lookup_lock(index);
    if (status != ICECORE_OK) return status;
    for (int64_t i = 0; i < count; i++) present[i] = ice_id_map_find(&index->map, &index->slots, ids[i]) >= 0;
    ice_unlock(&index->lock);
    return status;
}

icecore_status icecore_index_get_state(icecore_index *index, icecore_index_state *result) {
    icecore_status status = ice_lock_read(&index->lock);
    if (status != ICECORE_OK) return status;
    const icecore_index_options *o = &index->options;
    icecore_index_state state = {
        .count = index->used,
        .removed = index->removed,
        .open = index->open_count,
        .slots = index->slots.count,
        .next_id = index->next_id,
        .read_only = index->read_only,
        .bytes = (int64_t)sizeof *index + ice_slots_bytes(&index->slots) +
                 index->map.capacity * (int64_t)sizeof(int32_t) +
                 (index->directions ? (int64_t)o->composites * o->simples * (o->dim + 1) * (int64_t)sizeof(float) : 0),
    };
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) {
        const ice_sealed *sealed = &index->sealed[n];
        if (!sealed->segment) continue;
        state.segments++;
        state.cells += sealed->segment->cells;
        state.merging += sealed->merging;
        state.bytes += (int64_t)sizeof *sealed->segment + sealed->segment->owned.bytes;
    }
    for (int m = 0; m < ICE_MAX_MERGES; m++)
        if (index->merge[m].builder)
            state.bytes += (index->merge[m].slot ? index->merge[m].count * (int64_t)sizeof(int32_t) : 0) +
                           ice_tree_bytes(index->merge[m].builder);
    ice_unlock(&index->lock);
    *result = state;
    return ICECORE_OK;
}

icecore_status icecore_index_ids(icecore_index *index, int64_t *ids, int64_t capacity, int64_t *count) {
    icecore_status status = ice_lock_read(&index->lock);
    if (status != ICECORE_OK) return status;
    int64_t found = 0;
    for (int64_t s = 0; s < index->slots.count; s++) {
        if (*ice_slot_state(&index->slots, s) != ICE_SLOT_USED) continue;
        if (found < capacity) ids[found] = *ice_slot_id(&index->slots, s);
        found++;
    }
    ice_unlock(&index->lock);
    *count = found;
    return ICECORE_OK;
}
