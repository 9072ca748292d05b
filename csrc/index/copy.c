/* An index without what was removed, in memory of its own. */
#include <string.h>

#include "base/memory.h"
#include "base/order.h"
#include "base/parallel.h"
#include "index/fields.h"

int32_t *ice_index_names(const icecore_index *index) {
    int32_t *name = ice_alloc(index->slots.count, sizeof *name), next = 0;
    for (int64_t s = 0; name && s < index->slots.count; s++)
        name[s] = *ice_slot_state(&index->slots, s) == ICE_SLOT_USED ? next++ : -1;
    return name;
}

/* Asked for each row: whether the call shall end. */
static int stops_at(int64_t row) { return row % ICE_UNASKED == 0 && ice_interrupted(); }

/* Rows below node `node` of a layer that stay; before[r]: how many stay of the rows before row r.  What is below a node
 * lies together. */
static int32_t staying(const ice_tree *s, const int32_t *before, int layer, int64_t node) {
    int64_t low = node, high = node + 1;
    for (; layer < s->layers; layer++) {
        low = s->layer[layer].offset[low];
        high = s->layer[layer].offset[high];
    }
    return before[high] - before[low];
}

static icecore_status copy_layer(const ice_tree *from, const int32_t *before, int layer, ice_layer *to) {
    const ice_layer *source = &from->layer[layer];
    const size_t stride = (size_t)source->stride, width = (size_t)from->dim;
    int64_t parent = 0, child = 0;
    to->offset[0] = 0;
    for (int64_t p = 0; p < source->parents; p++) {
        if (!staying(from, before, layer, p)) continue;
        memcpy(to->mean + parent * from->dim, source->mean + p * from->dim, width * sizeof(float));
        if (source->radius) { /* as they were: none is farther, though the farthest may have gone */
            to->radius[parent] = source->radius[p];
            to->spread[parent] = source->spread[p];
        }
        for (int64_t c = source->offset[p]; c < source->offset[p + 1]; c++) {
            if (stops_at(c)) return ICECORE_INTERRUPTED;
            if (!staying(from, before, layer + 1, c)) continue;
            if (source->code) memcpy(to->code + child * source->stride, source->code + c * source->stride, stride);
            if (source->code) to->scale[child] = source->scale[c];
            if (source->bias) to->bias[child] = source->bias[c];
            child++;
        }
        to->offset[++parent] = child;
    }
    return ICECORE_OK;
}

/* One composite; spare: 2 * count numbers. */
static icecore_status copy_list(const ice_tree *from, const int32_t *before, int composite, ice_tree *to,
                                uint64_t *spare) {
    const int simples = from->lists.simples;
    const int32_t *row = from->lists.row + composite * from->count;
    int32_t *own = to->lists.row + composite * to->count;
    for (int j = 0; j < simples; j++) {
        const float *projection = from->lists.projection + ((int64_t)composite * simples + j) * from->count;
        float *target = to->lists.projection + ((int64_t)composite * simples + j) * to->count;
        for (int64_t c = 0, place = 0; c < from->cells; c++) {
            const int64_t first = place;
            for (int64_t i = from->offset[c]; i < from->offset[c + 1]; i++) {
                if (stops_at(i)) return ICECORE_INTERRUPTED;
                if (before[row[i] + 1] == before[row[i]]) continue;
                own[place] = before[row[i]];
                spare[place - first] = (uint64_t)ice_ordered(projection[i]) << 32;
                target[place++] = projection[i];
            }
            if (j == 0) continue;
            ice_sort(spare, spare + to->count, place - first);
            float *sorted = to->lists.sorted + ((int64_t)composite * (simples - 1) + j - 1) * to->count;
            for (int64_t i = first; i < place; i++) sorted[i] = ice_unordered((uint32_t)(spare[i - first] >> 32));
        }
    }
    return ICECORE_OK;
}

/* The arrays of a segment whose shape is known. */
static int allocate(ice_tree *s, const icecore_index_options *o) {
    ice_field fields[ICE_MAX_FIELDS];
    const int64_t count = ice_fields_of(s, o, fields);
    for (int64_t i = 0; i < count; i++) {
        *fields[i].data = ice_owned_alloc(&s->owned, fields[i].count, ice_size_of(fields[i].type));
        if (!*fields[i].data) return 0;
    }
    s->offset = s->layer[s->layers - 1].offset;
    s->mean_key = s->layer[s->layers - 1].mean;
    s->used = ice_owned_alloc(&s->owned, s->cells, sizeof(int32_t));
    return s->used != NULL;
}

/* What is left of the shape of a segment. */
static void shape_without_removed(const ice_tree *from, const int32_t *before, ice_tree *s) {
    s->count = before[from->count];
    s->dim = from->dim;
    s->scale = from->scale;
    s->lifting = from->lifting;
    s->layers = from->layers;
    for (int i = 0; i < s->layers; i++) {
        const ice_layer *layer = &from->layer[i];
        ice_layer *own = &s->layer[i];
        own->stride = layer->stride;
        for (int64_t p = 0; p < layer->parents; p++) own->parents += staying(from, before, i, p) > 0;
        for (int64_t c = 0; c < layer->children; c++) own->children += staying(from, before, i + 1, c) > 0;
    }
    s->cells = s->layer[s->layers - 1].parents;
    s->lists = (ice_lists){.composites = from->lists.composites, .simples = from->lists.simples};
}

static icecore_status copy_without_removed(const ice_tree *from, const icecore_index_options *o, const int32_t *before,
                                           ice_tree *s) {
    shape_without_removed(from, before, s);
    uint64_t *spare = ice_alloc(s->lists.composites ? 2 * s->count : 0, sizeof *spare);
    icecore_status status = spare && allocate(s, o) ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    for (int i = 0; i < s->layers && status == ICECORE_OK; i++) status = copy_layer(from, before, i, &s->layer[i]);
    for (int l = 0; l < s->lists.composites && status == ICECORE_OK; l++) status = copy_list(from, before, l, s, spare);
    ice_free(spare);
    return status;
}

icecore_status ice_index_copy_used(const icecore_index *index, const ice_sealed *sealed, const int32_t *name,
                                   ice_tree **copy) {
    const ice_tree *from = sealed->segment;
    int32_t *before = ice_alloc(from->count + 1, sizeof *before);
    ice_tree *s = ice_tree_new();
    icecore_status status = before && s ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK) {
        before[0] = 0;
        for (int64_t i = 0; i < from->count; i++) before[i + 1] = before[i] + (name[from->order[i]] >= 0);
        status = copy_without_removed(from, &index->options, before, s);
    }
    if (status == ICECORE_OK) {
        for (int64_t i = 0; i < from->count; i++)
            if (name[from->order[i]] >= 0) s->order[before[i]] = name[from->order[i]];
        for (int64_t c = 0; c < s->cells; c++) s->used[c] = (int32_t)(s->offset[c + 1] - s->offset[c]);
        *copy = s;
    } else {
        ice_tree_free(s);
    }
    ice_free(before);
    return status;
}

static icecore_status copy_slots(const ice_slots *from, ice_slots *to, const int32_t *name) {
    for (int64_t s = 0; s < from->count; s++) {
        const int32_t own = name[s];
        if (stops_at(s)) return ICECORE_INTERRUPTED;
        if (own < 0) continue;
        memcpy(ice_slot_row(to, own), ice_slot_row(from, s), from->row_bytes);
        *ice_slot_id(to, own) = *ice_slot_id(from, s);
        *ice_slot_state(to, own) = ICE_SLOT_USED;
        *ice_slot_home(to, own) = *ice_slot_home(from, s);
    }
    return ICECORE_OK;
}

static icecore_status copy_contents(const icecore_index *from, icecore_index *to, const int32_t *name) {
    icecore_status status = ice_slots_reserve(&to->slots, from->used);
    if (status == ICECORE_OK) status = ice_id_map_reserve(&to->map, &to->slots, from->used);
    if (status == ICECORE_OK) status = copy_slots(&from->slots, &to->slots, name);
    if (status != ICECORE_OK) return status;
    to->slots.count = to->used = from->used;
    for (int64_t s = 0; s < to->used; s++) {
        if (stops_at(s)) return ICECORE_INTERRUPTED;
        ice_id_map_insert(&to->map, &to->slots, (int32_t)s);
    }
    for (int64_t i = 0; i < from->open_count; i++) to->open[i] = name[from->open[i]];
    to->open_count = from->open_count;
    to->next_id = from->next_id;
    to->seals = from->seals;
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) {
        if (!ice_used_in(&from->sealed[n])) continue;
        status = ice_index_copy_used(from, &from->sealed[n], name, &to->sealed[n].segment);
        if (status != ICECORE_OK) return status;
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
        int32_t *name = ice_index_names(index);
        status = name ? copy_contents(index, copy, name) : ICECORE_ERROR_MEMORY;
        ice_free(name);
        ice_unlock(&index->lock);
    }
    if (status == ICECORE_OK) *result = copy;
    else icecore_index_free(copy);
    return status;
}
