#include <string.h>

#include "base/memory.h"
#include "index/fields.h"

static icecore_segment *copy_segment(const icecore_segment *from, const icecore_index_options *o) {
    icecore_segment *s = ice_segment_new();
    if (!s) return NULL;
    s->count = from->count;
    s->dim = from->dim;
    s->cells = from->cells;
    s->scale = from->scale;
    s->lifting = from->lifting;
    s->layers = from->layers;
    for (int i = 0; i < s->layers; i++)
        s->layer[i] = (ice_layer){.parents = from->layer[i].parents, .children = from->layer[i].children, .stride = from->layer[i].stride};
    s->lists = (ice_lists){.composites = from->lists.composites, .simples = from->lists.simples};
    ice_field source[ICE_MOST_FIELDS], target[ICE_MOST_FIELDS];
    int64_t count = ice_fields_of((icecore_segment *)from, o, source);
    ice_fields_of(s, o, target);
    for (int64_t i = 0; i < count; i++) {
        *target[i].data = ice_segment_alloc(s, target[i].count, ice_size_of(target[i].type));
        if (!*target[i].data) {
            icecore_segment_free(s);
            return NULL;
        }
        memcpy(*target[i].data, *source[i].data, (size_t)target[i].count * ice_size_of(target[i].type));
    }
    s->offset = s->layer[s->layers - 1].offset;
    s->mean_key = s->layer[s->layers - 1].mean;
    s->used = ice_segment_alloc(s, s->cells, sizeof(int32_t));
    if (!s->used) {
        icecore_segment_free(s);
        return NULL;
    }
    memcpy(s->used, from->used, (size_t)s->cells * sizeof *s->used);
    return s;
}

static icecore_status copy_contents(const icecore_index *from, icecore_index *to) {
    const ice_slots *source = &from->slots;
    icecore_status status = ice_slots_reserve(&to->slots, source->count);
    if (status == ICECORE_OK) status = ice_id_map_reserve(&to->map, &to->slots, from->used);
    if (status != ICECORE_OK) return status;
    to->slots.count = source->count;
    for (int64_t first = 0; first < source->count; first += ICE_SLOT_CHUNK) {
        const ice_slot_chunk *a = ice_chunk_of(source, first), *b = ice_chunk_of(&to->slots, first);
        size_t count = (size_t)(source->count - first < ICE_SLOT_CHUNK ? source->count - first : ICE_SLOT_CHUNK);
        memcpy(b->rows, a->rows, count * source->row_bytes);
        memcpy(b->id, a->id, count * sizeof(int64_t));
        memcpy(b->state, a->state, count);
        memcpy(b->home, a->home, count);
    }
    for (int64_t s = 0; s < source->count; s++) {
        if (*ice_slot_state(&to->slots, s) == ICE_SLOT_USED) ice_id_map_insert(&to->map, &to->slots, (int32_t)s);
        else if (*ice_slot_state(&to->slots, s) == ICE_SLOT_FREE) ice_slots_give(&to->slots, (int32_t)s);
    }
    memcpy(to->open, from->open, sizeof to->open);
    to->open_count = from->open_count;
    to->used = from->used;
    to->removed = from->removed;
    to->next_id = from->next_id;
    to->seals = from->seals;
    for (int n = 0; n < ICE_MOST_SEGMENTS; n++) {
        if (!from->sealed[n].segment) continue;
        to->sealed[n] = (ice_sealed){.segment = copy_segment(from->sealed[n].segment, &from->options), .removed = from->sealed[n].removed};
        if (!to->sealed[n].segment) return ICECORE_ERROR_MEMORY;
        ice_index_enter_cells(to, n);
    }
    ice_merge_begin_due(to);
    return ICECORE_OK;
}

icecore_status icecore_index_copy(icecore_index *index, icecore_index **result) {
    icecore_index *copy;
    icecore_status status = icecore_index_create(&index->options, &copy);
    if (status != ICECORE_OK) return status;
    status = ice_lock_read(&index->lock);
    if (status == ICECORE_OK) {
        status = copy_contents(index, copy);
        ice_unlock(&index->lock);
    }
    if (status == ICECORE_OK) *result = copy;
    else icecore_index_free(copy);
    return status;
}
