/* An index as named arrays, one after another, without what was removed. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "index/fields.h"

/* For each segment its shape (count, layers, then the parents of each layer), its scale, its lists' lifting and its
 * fields. */
#define MAX_ARRAYS (6 + ICE_MAX_SEGMENTS * (3 + ICE_MAX_FIELDS))

/* Arrays over slots lie in chunks and have no address of their own. */
enum { VECTORS, IDS, STATE, HOME };

typedef struct {
    const icecore_index *index;
    int32_t *name; /* new numbers of slots */
    int32_t open[ICE_OPEN_BLOCK];
    ice_tree *segment[ICE_MAX_SEGMENTS]; /* as they are written */
    ice_catalogue arrays;
    icecore_array table[MAX_ARRAYS];
    int source[MAX_ARRAYS];
    int64_t header[ICE_HEADER];
    int64_t shape[ICE_MAX_SEGMENTS][2 + ICE_MAX_LAYERS];
} contents;

/* A segment by the new numbers of its slots; all else is the old one's. */
static icecore_status rename_slots(ice_tree *from, const int32_t *name, ice_tree **result) {
    ice_tree *s = ice_tree_new();
    if (!s) return ICECORE_ERROR_MEMORY;
    memcpy(s, from, sizeof *s);
    s->owned = (ice_owned){.owners = 1};
    s->base = ice_tree_share(from);
    s->order = ice_owned_alloc(&s->owned, s->count, sizeof *s->order);
    if (!s->order) {
        ice_tree_free(s);
        return ICECORE_ERROR_MEMORY;
    }
    for (int64_t i = 0; i < s->count; i++) s->order[i] = name[from->order[i]];
    *result = s;
    return ICECORE_OK;
}

static icecore_status prepare(const icecore_index *index, contents *c) {
    memset(c, 0, sizeof *c);
    c->index = index;
    c->name = ice_index_names(index);
    icecore_status status = c->name ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    for (int64_t i = 0; i < index->open_count && c->name; i++) c->open[i] = c->name[index->open[i]];
    for (int n = 0; n < ICE_MAX_SEGMENTS && status == ICECORE_OK; n++) {
        const ice_sealed *sealed = &index->sealed[n];
        if (!ice_used_in(sealed)) continue;
        status = sealed->removed ? ice_index_copy_used(index, sealed, c->name, &c->segment[n])
                                 : rename_slots(sealed->segment, c->name, &c->segment[n]);
    }
    return status;
}

static void release(contents *c) {
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) ice_tree_free(c->segment[n]);
    ice_free(c->name);
    ice_free(c);
}

static void list_contents(contents *c) {
    const icecore_index *index = c->index;
    const ice_slots *slots = &index->slots;
    const int64_t header[ICE_HEADER] = {index->used,       0,          index->next_id, (int64_t)index->seals,
                                        index->open_count, index->used};
    memcpy(c->header, header, sizeof header);
    c->arrays = (ice_catalogue){c->table, c->source, 0};
    ice_enter(&c->arrays, ICE_IN_PLACE, "header", 'l', ICE_HEADER, c->header);
    ice_enter(&c->arrays, VECTORS, "vectors", ice_type_of(slots->dtype), index->used * slots->dim, NULL);
    ice_enter(&c->arrays, IDS, "ids", 'l', index->used, NULL);
    ice_enter(&c->arrays, STATE, "state", 'b', index->used, NULL);
    ice_enter(&c->arrays, HOME, "home", 'b', index->used, NULL);
    ice_enter(&c->arrays, ICE_IN_PLACE, "open", 'i', index->open_count, c->open);
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) {
        ice_tree *s = c->segment[n];
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
        ice_field fields[ICE_MAX_FIELDS];
        int64_t count = ice_fields_of(s, &index->options, fields);
        for (int64_t i = 0; i < count; i++) {
            snprintf(name, sizeof name, "segment%d.%.*s", n, (int)sizeof fields->part, fields[i].part);
            ice_enter(&c->arrays, ICE_IN_PLACE, name, fields[i].type, fields[i].count, *fields[i].data);
        }
    }
    ice_align_catalogue(&c->arrays);
}

/* The `count` entries of a chunk that are in use, of `size` bytes each; small ones many at a time. */
static int give_used(const ice_sink *sink, const int32_t *name, const char *data, int64_t count, int64_t size) {
    char buffer[ICE_SLOT_CHUNK * sizeof(int64_t)];
    int64_t filled = 0;
    for (int64_t i = 0; i < count; i++) {
        if (name[i] < 0) continue;
        if (filled + size > (int64_t)sizeof buffer) {
            if (filled && ice_give(sink, buffer, filled)) return 1;
            filled = 0;
        }
        if (size > (int64_t)sizeof buffer) {
            if (ice_give(sink, data + i * size, size)) return 1;
        } else {
            memcpy(buffer + filled, data + i * size, (size_t)size);
            filled += size;
        }
    }
    return filled && ice_give(sink, buffer, filled);
}

static int give_slots(const void *owner, int which, const ice_sink *sink) {
    const contents *c = owner;
    const ice_slots *slots = &c->index->slots;
    const int64_t size[] = {(int64_t)slots->row_bytes, sizeof(int64_t), 1, 1};
    for (int64_t first = 0; first < slots->count; first += ICE_SLOT_CHUNK) {
        const ice_slot_chunk *chunk = ice_chunk_of(slots, first);
        const char *data[] = {chunk->rows, (char *)chunk->id, (char *)chunk->state, (char *)chunk->home};
        const int64_t count = slots->count - first < ICE_SLOT_CHUNK ? slots->count - first : ICE_SLOT_CHUNK;
        const int whole = slots->count == c->index->used;
        const int failed = whole ? ice_give(sink, data[which], count * size[which])
                                 : give_used(sink, c->name + first, data[which], count, size[which]);
        if (failed) return 1;
    }
    return 0;
}

icecore_status icecore_index_write(icecore_index *index, icecore_write write, void *context) {
    icecore_status status = ice_lock_read(&index->lock);
    if (status != ICECORE_OK) return status;
    contents *c = ice_alloc(1, sizeof *c);
    status = c ? prepare(index, c) : ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK) {
        list_contents(c);
        status = ice_write_catalogue(&c->arrays, write, context, give_slots, c);
    }
    if (c) release(c);
    ice_unlock(&index->lock);
    return status;
}
