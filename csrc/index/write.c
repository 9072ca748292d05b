/* An index as named arrays, one after another. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "index/fields.h"

/* For each segment its shape (count, layers, then the parents of each layer), its scale, its lists' lifting and its fields. */
#define MOST_ARRAYS (6 + ICE_MOST_SEGMENTS * (3 + ICE_MOST_FIELDS))

/* Arrays over slots lie in chunks and have no address of their own. */
enum { VECTORS, IDS, STATE, HOME };

typedef struct {
    ice_catalogue arrays;
    icecore_array table[MOST_ARRAYS];
    int source[MOST_ARRAYS];
    int64_t header[ICE_HEADER];
    int64_t shape[ICE_MOST_SEGMENTS][2 + ICE_MOST_LAYERS];
} contents;

static void list_contents(const icecore_index *index, contents *c) {
    const ice_slots *slots = &index->slots;
    const int64_t header[ICE_HEADER] = {index->used, index->removed, index->next_id, (int64_t)index->seals, index->open_count, slots->count};
    memcpy(c->header, header, sizeof header);
    c->arrays = (ice_catalogue){c->table, c->source, 0};
    ice_enter(&c->arrays, ICE_IN_PLACE, "header", 'l', ICE_HEADER, c->header);
    ice_enter(&c->arrays, VECTORS, "vectors", ice_type_of(slots->dtype), slots->count * slots->dim, NULL);
    ice_enter(&c->arrays, IDS, "ids", 'l', slots->count, NULL);
    ice_enter(&c->arrays, STATE, "state", 'b', slots->count, NULL);
    ice_enter(&c->arrays, HOME, "home", 'b', slots->count, NULL);
    ice_enter(&c->arrays, ICE_IN_PLACE, "open", 'i', index->open_count, index->open);
    for (int n = 0; n < ICE_MOST_SEGMENTS; n++) {
        icecore_segment *s = index->sealed[n].segment;
        if (!s) continue;
        char name[sizeof c->table->name];
        int64_t *shape = c->shape[n];
        shape[0] = s->count;
        shape[1] = s->layers;
        for (int i = 0; i < s->layers; i++) shape[2 + i] = s->layer[i].parents;
        snprintf(name, sizeof name, "segment%d.shape", n);
        ice_enter(&c->arrays, ICE_IN_PLACE, name, 'l', 2 + s->layers, shape);
        snprintf(name, sizeof name, "segment%d.scale", n);
        ice_enter(&c->arrays, ICE_IN_PLACE, name, 'f', 1, &s->scale);
        snprintf(name, sizeof name, "segment%d.lifting", n);
        ice_enter(&c->arrays, ICE_IN_PLACE, name, 'f', 1, &s->lifting);
        ice_field fields[ICE_MOST_FIELDS];
        int64_t count = ice_fields_of(s, &index->options, fields);
        for (int64_t i = 0; i < count; i++) {
            snprintf(name, sizeof name, "segment%d.%.*s", n, (int)sizeof fields->part, fields[i].part);
            ice_enter(&c->arrays, ICE_IN_PLACE, name, fields[i].type, fields[i].count, *fields[i].data);
        }
    }
    ice_align_catalogue(&c->arrays);
}

static int give_slots(const void *owner, int which, const ice_sink *sink) {
    const ice_slots *slots = owner;
    for (int64_t first = 0; first < slots->count; first += ICE_SLOT_CHUNK) {
        const ice_slot_chunk *chunk = ice_chunk_of(slots, first);
        int64_t count = slots->count - first < ICE_SLOT_CHUNK ? slots->count - first : ICE_SLOT_CHUNK;
        const void *data[] = {chunk->rows, chunk->id, chunk->state, chunk->home};
        const int64_t bytes[] = {(int64_t)slots->row_bytes, sizeof(int64_t), 1, 1};
        if (ice_give(sink, data[which], count * bytes[which])) return 1;
    }
    return 0;
}

icecore_status icecore_index_write(icecore_index *index, icecore_write write, void *context) {
    icecore_status status = ice_lock_read(&index->lock);
    if (status != ICECORE_OK) return status;
    contents *c = ice_alloc(1, sizeof *c);
    if (c) {
        list_contents(index, c);
        status = ice_write_catalogue(&c->arrays, write, context, give_slots, &index->slots);
    } else {
        status = ICECORE_ERROR_MEMORY;
    }
    ice_free(c);
    ice_unlock(&index->lock);
    return status;
}
