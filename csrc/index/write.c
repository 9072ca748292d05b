/* An index as named arrays, one after another. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "index/fields.h"

/* For each segment its shape (count, layers, then the parents of each layer), its lifting scale and its fields. */
#define MOST_ARRAYS (6 + ICE_MOST_SEGMENTS * (2 + ICE_MOST_FIELDS))

/* Arrays over slots lie in chunks and have no address of their own. */
enum { VECTORS, IDS, STATE, HOME, ELSEWHERE };

typedef struct {
    icecore_array table[MOST_ARRAYS];
    uint8_t slots[MOST_ARRAYS];        /* which array over slots, or ELSEWHERE */
    int64_t count;
    int64_t header[ICE_HEADER];
    int64_t shape[ICE_MOST_SEGMENTS][2 + ICE_MOST_LAYERS];
} catalogue;

static void enter(catalogue *c, int slots, const char *name, char type, int64_t count, const void *data) {
    c->slots[c->count] = (uint8_t)slots;
    icecore_array *array = &c->table[c->count++];
    memset(array, 0, sizeof *array);
    snprintf(array->name, sizeof array->name, "%s", name);
    array->type = type;
    array->count = count;
    array->data = data;
}

/* Longer elements first, so that arrays written one after another are aligned. */
static void sort_by_alignment(catalogue *c) {
    for (int64_t i = 1; i < c->count; i++) {
        icecore_array array = c->table[i];
        uint8_t slots = c->slots[i];
        int64_t j = i;
        for (; j > 0 && ice_size_of(c->table[j - 1].type) < ice_size_of(array.type); j--) {
            c->table[j] = c->table[j - 1];
            c->slots[j] = c->slots[j - 1];
        }
        c->table[j] = array;
        c->slots[j] = slots;
    }
}

static void fill_catalogue(const icecore_index *index, catalogue *c) {
    const ice_slots *slots = &index->slots;
    const int64_t header[ICE_HEADER] = {index->used, index->removed, index->next_id, (int64_t)index->seals, index->open_count, slots->count};
    memcpy(c->header, header, sizeof header);
    c->count = 0;
    enter(c, ELSEWHERE, "header", 'l', ICE_HEADER, c->header);
    enter(c, VECTORS, "vectors", slots->dtype == ICECORE_FLOAT32 ? 'f' : 'h', slots->count * slots->dim, NULL);
    enter(c, IDS, "ids", 'l', slots->count, NULL);
    enter(c, STATE, "state", 'b', slots->count, NULL);
    enter(c, HOME, "home", 'b', slots->count, NULL);
    enter(c, ELSEWHERE, "open", 'i', index->open_count, index->open);
    for (int n = 0; n < ICE_MOST_SEGMENTS; n++) {
        icecore_segment *s = index->sealed[n].segment;
        if (!s) continue;
        char name[sizeof c->table->name];
        int64_t *shape = c->shape[n];
        shape[0] = s->count;
        shape[1] = s->layers;
        for (int i = 0; i < s->layers; i++) shape[2 + i] = s->layer[i].parents;
        snprintf(name, sizeof name, "segment%d.shape", n);
        enter(c, ELSEWHERE, name, 'l', 2 + s->layers, shape);
        snprintf(name, sizeof name, "segment%d.lifting", n);
        enter(c, ELSEWHERE, name, 'f', 1, &s->lifting);
        ice_field fields[ICE_MOST_FIELDS];
        int64_t count = ice_fields_of(s, &index->options, fields);
        for (int64_t i = 0; i < count; i++) {
            snprintf(name, sizeof name, "segment%d.%.*s", n, (int)sizeof fields->part, fields[i].part);
            enter(c, ELSEWHERE, name, fields[i].type, fields[i].count, *fields[i].data);
        }
    }
    sort_by_alignment(c);
}

static int write_slots(const ice_slots *slots, int which, icecore_write write, void *context, const catalogue *c) {
    for (int64_t first = 0; first < slots->count; first += ICE_SLOT_CHUNK) {
        const ice_slot_chunk *chunk = ice_chunk_of(slots, first);
        int64_t count = slots->count - first < ICE_SLOT_CHUNK ? slots->count - first : ICE_SLOT_CHUNK;
        const void *data[] = {chunk->rows, chunk->id, chunk->state, chunk->home};
        const int64_t bytes[] = {(int64_t)slots->row_bytes, sizeof(int64_t), 1, 1};
        if (write(context, c->table, c->count, data[which], count * bytes[which])) return 1;
    }
    return 0;
}

icecore_status icecore_index_write(icecore_index *index, icecore_write write, void *context) {
    icecore_status status = ice_index_read_lock(index);
    if (status != ICECORE_OK) return status;
    catalogue *c = ice_alloc(1, sizeof *c);
    if (c) {
        fill_catalogue(index, c);
        int stop = write(context, c->table, c->count, NULL, 0);
        for (int64_t i = 0; i < c->count && !stop; i++) {
            const icecore_array *a = &c->table[i];
            if (c->slots[i] != ELSEWHERE) stop = write_slots(&index->slots, c->slots[i], write, context, c);
            else if (a->count) stop = write(context, c->table, c->count, a->data, a->count * (int64_t)ice_size_of(a->type));
        }
        if (stop) status = ICECORE_INTERRUPTED;
    } else {
        status = ICECORE_ERROR_MEMORY;
    }
    ice_free(c);
    ice_index_unlock(index);
    return status;
}
