/* An index over somebody else's arrays, which may hold anything. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "index/fields.h"

/* A composite's list holds each row of a cell once: what copies the rows that stay has room for so many. */
static void check_lists(ice_reader *r, const ice_tree *s, const char *name) {
    int *seen_in = ice_alloc(s->count, sizeof *seen_in); /* the last composite that named the row, from 1 on */
    if (!seen_in) {
        ice_lack_memory(r);
        return;
    }
    memset(seen_in, 0, (size_t)s->count * sizeof *seen_in);
    for (int l = 0; l < s->lists.composites; l++)
        for (int64_t c = 0; c < s->cells && !r->failed; c++)
            for (int64_t i = s->offset[c]; i < s->offset[c + 1] && !r->failed; i++) {
                const int32_t row = s->lists.row[l * s->count + i];
                if (row < s->offset[c] || row >= s->offset[c + 1])
                    ice_refuse(r, name, "has a list that leaves its cell");
                else if (seen_in[row] == l + 1) ice_refuse(r, name, "has a list that names a row twice");
                else seen_in[row] = l + 1;
            }
    ice_free(seen_in);
}

/* Every number of a segment that leads to memory. */
static void check_segment(ice_reader *r, const ice_tree *s, int number, const ice_slots *slots) {
    char name[48];
    snprintf(name, sizeof name, "segment%d", number);
    for (int i = 0; i < s->layers; i++) {
        const ice_layer *layer = &s->layer[i];
        int rising = layer->offset[0] == 0 && layer->offset[layer->parents] == layer->children;
        for (int64_t p = 0; p < layer->parents && rising; p++) rising = layer->offset[p] <= layer->offset[p + 1];
        if (!rising) ice_refuse(r, name, "has offsets that do not rise from 0 to the number of children");
    }
    for (int64_t i = 0; i < s->count && !r->failed; i++) {
        if (s->order[i] < 0 || s->order[i] >= slots->count) ice_refuse(r, name, "names a slot that does not exist");
        else if (*ice_slot_state(slots, s->order[i]) == ICE_SLOT_FREE) ice_refuse(r, name, "names a free slot");
    }
    if (s->lists.composites && !r->failed) check_lists(r, s, name);
}

static float number_of(ice_reader *r, int number, const char *what) {
    char name[48];
    snprintf(name, sizeof name, "segment%d.%s", number, what);
    const icecore_array *a = ice_find(r, name, 'f', 1);
    return a ? *(const float *)a->data : NAN;
}

static void map_scales(ice_reader *r, ice_tree *s, int number, const icecore_index_options *o) {
    char name[48];
    snprintf(name, sizeof name, "segment%d", number);
    s->scale = number_of(r, number, "scale");
    s->lifting = number_of(r, number, "lifting");
    if (r->failed) return;
    if (!(s->scale >= 0x1p-126f && s->scale <= 0x1p126f)) ice_refuse(r, name, "has a scale out of range");
    if (!(s->lifting >= 0.0f) || (s->lifting > 0.0f) != (o->metric == ICECORE_INNER_PRODUCT && o->composites > 0))
        ice_refuse(r, name, "has a lifting that does not fit the metric");
}

static void map_segment(ice_reader *r, icecore_index *index, int number, const int64_t *shape, int64_t shape_count) {
    char name[48];
    const icecore_index_options *o = &index->options;
    snprintf(name, sizeof name, "segment%d.shape", number);
    if (shape_count < 3 || shape[1] != o->levels || shape_count != 2 + shape[1] || shape[0] < 1 ||
        shape[0] > INT32_MAX || shape[2] != 1) {
        ice_refuse(r, name, "is not a shape of this index");
        return;
    }
    ice_tree *s = ice_tree_new();
    if (!s) {
        ice_lack_memory(r);
        return;
    }
    index->sealed[number].segment = s;
    s->count = shape[0];
    s->dim = o->dim;
    s->layers = (int)shape[1];
    for (int i = 0; i < s->layers; i++) {
        ice_layer *layer = &s->layer[i];
        layer->parents = shape[2 + i];
        layer->children = i + 1 < s->layers ? shape[3 + i] : s->count;
        layer->stride = (s->dim + 3) & ~(int64_t)3;
        if (layer->parents < 1 || layer->children < layer->parents || layer->children > s->count) {
            ice_refuse(r, name, "is not a shape of this index");
            return;
        }
    }
    if (o->composites) s->lists = (ice_lists){.composites = o->composites, .simples = o->simples};
    ice_field fields[ICE_MAX_FIELDS];
    int64_t count = ice_fields_of(s, o, fields);
    for (int64_t i = 0; i < count && !r->failed; i++) {
        snprintf(name, sizeof name, "segment%d.%.*s", number, (int)sizeof fields->part, fields[i].part);
        const icecore_array *a = ice_find(r, name, fields[i].type, fields[i].count);
        if (a) *fields[i].data = (void *)a->data;
    }
    map_scales(r, s, number, o);
    s->cells = s->layer[s->layers - 1].parents;
    s->offset = s->layer[s->layers - 1].offset;
    s->mean_key = s->layer[s->layers - 1].mean;
    if (!r->failed) check_segment(r, s, number, &index->slots);
    if (r->failed) return;
    s->used = ice_owned_alloc(&s->owned, s->cells, sizeof(int32_t));
    if (s->used) index->sealed[number].removed = ice_index_count_used(index, s);
    else ice_lack_memory(r);
}

static void map_slots(ice_reader *r, icecore_index *index, int64_t count) {
    ice_slots *slots = &index->slots;
    slots->owned = 0;
    const icecore_array *vectors = ice_find(r, "vectors", ice_type_of(slots->dtype), count * slots->dim);
    const icecore_array *ids = ice_find(r, "ids", 'l', count), *state = ice_find(r, "state", 'b', count),
                        *home = ice_find(r, "home", 'b', count);
    if (r->failed) return;
    int64_t chunks = (count + ICE_SLOT_CHUNK - 1) / ICE_SLOT_CHUNK;
    slots->chunk = ice_alloc(chunks, sizeof *slots->chunk);
    if (!slots->chunk) {
        ice_lack_memory(r);
        return;
    }
    for (int64_t i = 0; i < chunks; i++)
        slots->chunk[i] = (ice_slot_chunk){
            .rows = (char *)vectors->data + (size_t)(i * ICE_SLOT_CHUNK) * slots->row_bytes,
            .id = (int64_t *)ids->data + i * ICE_SLOT_CHUNK,
            .state = (uint8_t *)state->data + i * ICE_SLOT_CHUNK,
            .home = (uint8_t *)home->data + i * ICE_SLOT_CHUNK,
        };
    slots->chunks = slots->capacity = chunks;
    slots->count = count;
    for (int64_t s = 0; s < count; s++) {
        uint8_t own = *ice_slot_state(slots, s);
        if (own > ICE_SLOT_REMOVED) ice_refuse(r, "state", "holds a number that is no state");
        index->used += own == ICE_SLOT_USED;
        index->removed += own == ICE_SLOT_REMOVED;
    }
}

static void map_all(ice_reader *r, icecore_index *index) {
    const icecore_array *header = ice_find(r, "header", 'l', ICE_HEADER);
    if (!header) return;
    const int64_t *h = header->data;
    if (h[5] < 0 || h[5] > INT32_MAX || h[4] < 0 || h[4] > ICE_OPEN_BLOCK || h[2] < 0) {
        ice_refuse(r, "header", "is out of range");
        return;
    }
    map_slots(r, index, h[5]);
    const icecore_array *open = r->failed ? NULL : ice_find(r, "open", 'i', h[4]);
    if (!open) return;
    if (index->used != h[0] || index->removed != h[1]) ice_refuse(r, "header", "does not count what state holds");
    index->next_id = h[2];
    index->seals = (uint64_t)h[3];
    index->open_count = h[4];
    if (h[4]) memcpy(index->open, open->data, (size_t)h[4] * sizeof *index->open);
    for (int64_t i = 0; i < h[4]; i++)
        if (index->open[i] < 0 || index->open[i] >= index->slots.count)
            ice_refuse(r, "open", "names a slot that does not exist");
    int segments = 0;
    for (int n = 0; n < ICE_MAX_SEGMENTS && !r->failed; n++) {
        char name[48];
        snprintf(name, sizeof name, "segment%d.shape", n);
        int64_t i = 0;
        while (i < r->count && strcmp(r->arrays[i].name, name) != 0) i++;
        if (i == r->count) continue;
        const icecore_array *shape = ice_find(r, name, 'l', -1);
        if (++segments > ICE_MAX_SAVED_SEGMENTS)
            ice_refuse(r, "the file", "holds more segments than an index ever has");
        else if (shape) map_segment(r, index, n, shape->data, shape->count);
    }
    if (!r->failed && r->used != r->count) ice_refuse(r, "the file", "holds arrays that do not belong to an index");
}

icecore_status icecore_index_map(const icecore_index_options *options, const icecore_array *arrays, int64_t count,
                                 icecore_index **result, char *reason, int64_t reason_size) {
    icecore_index *index;
    icecore_status status = icecore_index_create(options, &index);
    if (status != ICECORE_OK) {
        snprintf(reason, (size_t)reason_size, "its parameters are out of range");
        return status;
    }
    ice_reader r = {.arrays = arrays, .count = count, .reason = reason, .reason_size = reason_size};
    index->read_only = 1;
    map_all(&r, index);
    status = ice_reader_status(&r);
    /* what must hold for searching and changing to be safe, beyond single numbers */
    if (status == ICECORE_OK) status = ice_index_check_structure(index, reason, reason_size);
    if (status == ICECORE_OK) *result = index;
    else icecore_index_free(index);
    return status;
}
