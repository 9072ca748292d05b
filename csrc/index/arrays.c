/* An index as named arrays, and back.  A segment's fields are named once, in the table that both directions read. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "index/index.h"

/* header: used, removed, next_id, seals, open_count, slots.  shape of a segment: count, layers, then parents of each layer. */
#define HEADER 6
#define ARRAYS_OF_SEGMENT (3 + 5 * ICE_MOST_LAYERS + 3)
#define MOST_ARRAYS (6 + ICE_MOST_SEGMENTS * ARRAYS_OF_SEGMENT)

static size_t size_of(char type) { return type == 'l' ? 8 : type == 'b' ? 1 : type == 'h' ? 2 : 4; }

/* ---- The arrays of a segment whose shape is known ---- */

typedef struct {
    char part[20];
    char type;
    int64_t count;
    void **data;               /* where the segment keeps it */
} field;

static int64_t fields_of(icecore_segment *s, const icecore_index_options *o, field *fields) {
    int64_t n = 0;
    fields[n++] = (field){"order", 'i', s->count, (void **)&s->order};
    for (int i = 0; i < s->layers; i++) {
        ice_layer *layer = &s->layer[i];
        int coded = i + 1 < s->layers || o->composites == 0;
        struct { const char *name; char type; int64_t count; void **data; } own[] = {
            {"offset", 'l', layer->parents + 1, (void **)&layer->offset},
            {"mean", 'f', layer->parents * s->dim, (void **)&layer->mean},
            {"code", 'b', coded ? layer->children * layer->stride : 0, (void **)&layer->code},
            {"scale", 'f', coded ? layer->children : 0, (void **)&layer->scale},
            {"bias", 'f', coded && o->metric == ICECORE_SQUARED_DISTANCE ? layer->children : 0, (void **)&layer->bias},
        };
        for (int k = 0; k < 5; k++) {
            if (!own[k].count) continue;
            fields[n] = (field){"", own[k].type, own[k].count, own[k].data};
            snprintf(fields[n++].part, sizeof fields->part, "layer%d.%s", i, own[k].name);
        }
    }
    if (o->composites) {
        int64_t lists = (int64_t)o->composites * o->simples;
        fields[n++] = (field){"lists.row", 'i', o->composites * s->count, (void **)&s->lists.row};
        fields[n++] = (field){"lists.projection", 'f', lists * s->count, (void **)&s->lists.projection};
        if (o->simples > 1) fields[n++] = (field){"lists.sorted", 'f', (lists - o->composites) * s->count, (void **)&s->lists.sorted};
    }
    return n;
}

/* ---- Writing ---- */

/* Arrays over slots lie in chunks and have no address of their own. */
enum { VECTORS, IDS, STATE, HOME, ELSEWHERE };

typedef struct {
    icecore_array table[MOST_ARRAYS];
    uint8_t slots[MOST_ARRAYS];        /* which array over slots, or ELSEWHERE */
    int64_t count;
    int64_t header[HEADER];
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
        for (; j > 0 && size_of(c->table[j - 1].type) < size_of(array.type); j--) {
            c->table[j] = c->table[j - 1];
            c->slots[j] = c->slots[j - 1];
        }
        c->table[j] = array;
        c->slots[j] = slots;
    }
}

static void fill_catalogue(const icecore_index *index, catalogue *c) {
    const ice_slots *slots = &index->slots;
    const int64_t header[HEADER] = {index->used, index->removed, index->next_id, (int64_t)index->seals, index->open_count, slots->count};
    memcpy(c->header, header, sizeof header);
    c->count = 0;
    enter(c, ELSEWHERE, "header", 'l', HEADER, c->header);
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
        field fields[ARRAYS_OF_SEGMENT];
        int64_t count = fields_of(s, &index->options, fields);
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
            else if (a->count) stop = write(context, c->table, c->count, a->data, a->count * (int64_t)size_of(a->type));
        }
        if (stop) status = ICECORE_INTERRUPTED;
    } else {
        status = ICECORE_ERROR_MEMORY;
    }
    ice_free(c);
    ice_index_unlock(index);
    return status;
}

/* ---- Mapping ---- */

typedef struct {
    const icecore_array *arrays;
    int64_t count, used;       /* used: how many have been asked for */
    char *reason;
    int64_t reason_size;
    int failed;
} reader;

static void refuse(reader *r, const char *name, const char *what) {
    if (!r->failed) snprintf(r->reason, (size_t)r->reason_size, "%s %s", name, what);
    r->failed = 1;
}

/* The array of this name, type and count (or any count, with count = -1); NULL and a reason otherwise. */
static const icecore_array *find(reader *r, const char *name, char type, int64_t count) {
    for (int64_t i = 0; i < r->count && !r->failed; i++) {
        const icecore_array *a = &r->arrays[i];
        if (strcmp(a->name, name) != 0) continue;
        if (a->type != type) refuse(r, name, "has the wrong type");
        else if (count >= 0 && a->count != count) refuse(r, name, "has the wrong length");
        else if ((uintptr_t)a->data % size_of(type)) refuse(r, name, "is not aligned");
        r->used++;
        return r->failed ? NULL : a;
    }
    refuse(r, name, "is missing");
    return NULL;
}

/* Every number of a segment that leads to memory. */
static void check_segment(reader *r, const icecore_segment *s, int number, const ice_slots *slots) {
    char name[48];
    snprintf(name, sizeof name, "segment%d", number);
    for (int i = 0; i < s->layers; i++) {
        const ice_layer *layer = &s->layer[i];
        int rising = layer->offset[0] == 0 && layer->offset[layer->parents] == layer->children;
        for (int64_t p = 0; p < layer->parents && rising; p++) rising = layer->offset[p] <= layer->offset[p + 1];
        if (!rising) refuse(r, name, "has offsets that do not rise from 0 to the number of children");
    }
    for (int64_t i = 0; i < s->count && !r->failed; i++) {
        if (s->order[i] < 0 || s->order[i] >= slots->count) refuse(r, name, "names a slot that does not exist");
        else if (*ice_slot_state(slots, s->order[i]) == ICE_SLOT_FREE) refuse(r, name, "names a free slot");
    }
    for (int l = 0; l < s->lists.composites; l++)
        for (int64_t c = 0; c < s->cells && !r->failed; c++)
            for (int64_t i = s->offset[c]; i < s->offset[c + 1] && !r->failed; i++) {
                int32_t row = s->lists.row[l * s->count + i];
                if (row < s->offset[c] || row >= s->offset[c + 1]) refuse(r, name, "has a list that leaves its cell");
            }
}

static void map_segment(reader *r, icecore_index *index, int number, const int64_t *shape, int64_t shape_count) {
    char name[48];
    const icecore_index_options *o = &index->options;
    snprintf(name, sizeof name, "segment%d.shape", number);
    if (shape_count < 3 || shape[1] != o->levels || shape_count != 2 + shape[1] || shape[0] < 1 || shape[0] > INT32_MAX || shape[2] != 1) {
        refuse(r, name, "is not a shape of this index");
        return;
    }
    icecore_segment *s = ice_segment_new();
    if (!s) {
        refuse(r, name, "does not fit into memory");
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
            refuse(r, name, "is not a shape of this index");
            return;
        }
    }
    if (o->composites) s->lists = (ice_lists){.composites = o->composites, .simples = o->simples};
    field fields[ARRAYS_OF_SEGMENT];
    int64_t count = fields_of(s, o, fields);
    for (int64_t i = 0; i < count && !r->failed; i++) {
        snprintf(name, sizeof name, "segment%d.%.*s", number, (int)sizeof fields->part, fields[i].part);
        const icecore_array *a = find(r, name, fields[i].type, fields[i].count);
        if (a) *fields[i].data = (void *)a->data;
    }
    snprintf(name, sizeof name, "segment%d.lifting", number);
    const icecore_array *lifting = r->failed ? NULL : find(r, name, 'f', 1);
    if (!lifting) return;
    s->lifting = *(const float *)lifting->data;
    if (!(s->lifting >= 0.0f) || (s->lifting > 0.0f) != (o->metric == ICECORE_INNER_PRODUCT)) refuse(r, name, "does not fit the metric");
    s->cells = s->layer[s->layers - 1].parents;
    s->offset = s->layer[s->layers - 1].offset;
    s->mean_key = s->layer[s->layers - 1].mean;
    if (!r->failed) check_segment(r, s, number, &index->slots);
    for (int64_t i = 0; i < s->count && !r->failed; i++)
        index->sealed[number].removed += *ice_slot_state(&index->slots, s->order[i]) == ICE_SLOT_REMOVED;
}

static void map_slots(reader *r, icecore_index *index, int64_t count) {
    ice_slots *slots = &index->slots;
    slots->owned = 0;
    const icecore_array *vectors = find(r, "vectors", slots->dtype == ICECORE_FLOAT32 ? 'f' : 'h', count * slots->dim);
    const icecore_array *ids = find(r, "ids", 'l', count), *state = find(r, "state", 'b', count), *home = find(r, "home", 'b', count);
    if (r->failed) return;
    int64_t chunks = (count + ICE_SLOT_CHUNK - 1) / ICE_SLOT_CHUNK;
    slots->chunk = ice_alloc(chunks, sizeof *slots->chunk);
    if (!slots->chunk) {
        refuse(r, "the index", "does not fit into memory");
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
        if (own > ICE_SLOT_REMOVED) refuse(r, "state", "holds a number that is no state");
        index->used += own == ICE_SLOT_USED;
        index->removed += own == ICE_SLOT_REMOVED;
    }
}

static void map_all(reader *r, icecore_index *index) {
    const icecore_array *header = find(r, "header", 'l', HEADER);
    if (!header) return;
    const int64_t *h = header->data;
    if (h[5] < 0 || h[5] > INT32_MAX || h[4] < 0 || h[4] > ICE_OPEN_BLOCK || h[2] < 0) {
        refuse(r, "header", "is out of range");
        return;
    }
    map_slots(r, index, h[5]);
    const icecore_array *open = r->failed ? NULL : find(r, "open", 'i', h[4]);
    if (!open) return;
    if (index->used != h[0] || index->removed != h[1]) refuse(r, "header", "does not count what state holds");
    index->next_id = h[2];
    index->seals = (uint64_t)h[3];
    index->open_count = h[4];
    if (h[4]) memcpy(index->open, open->data, (size_t)h[4] * sizeof *index->open);
    for (int64_t i = 0; i < h[4]; i++)
        if (index->open[i] < 0 || index->open[i] >= index->slots.count) refuse(r, "open", "names a slot that does not exist");
    for (int n = 0; n < ICE_MOST_SEGMENTS; n++)
        for (int64_t i = 0; i < r->count && !r->failed; i++) {
            char name[48];
            snprintf(name, sizeof name, "segment%d.shape", n);
            if (strcmp(r->arrays[i].name, name) != 0) continue;
            const icecore_array *shape = find(r, name, 'l', -1);
            if (shape) map_segment(r, index, n, shape->data, shape->count);
        }
    if (!r->failed && r->used != r->count) refuse(r, "the file", "holds arrays that do not belong to an index");
}

icecore_status icecore_index_map(const icecore_index_options *options, const icecore_array *arrays, int64_t count,
                                 icecore_index **result, char *reason, int64_t reason_size) {
    icecore_index *index;
    icecore_status status = icecore_index_create(options, &index);
    if (status != ICECORE_OK) {
        snprintf(reason, (size_t)reason_size, "its parameters are out of range");
        return status;
    }
    reader r = {arrays, count, 0, reason, reason_size, 0};
    index->read_only = 1;
    map_all(&r, index);
    /* what must hold for searching and changing to be safe, beyond single numbers */
    if (!r.failed && ice_index_check_structure(index, reason, reason_size) != ICECORE_OK) r.failed = 1;
    if (!r.failed) {
        *result = index;
        return ICECORE_OK;
    }
    icecore_index_free(index);
    return ICECORE_ERROR_VALUE;
}

/* ---- Copying ---- */

static icecore_segment *copy_segment(const icecore_segment *from, const icecore_index_options *o) {
    icecore_segment *s = ice_segment_new();
    if (!s) return NULL;
    s->count = from->count;
    s->dim = from->dim;
    s->cells = from->cells;
    s->lifting = from->lifting;
    s->layers = from->layers;
    for (int i = 0; i < s->layers; i++)
        s->layer[i] = (ice_layer){.parents = from->layer[i].parents, .children = from->layer[i].children, .stride = from->layer[i].stride};
    s->lists = (ice_lists){.composites = from->lists.composites, .simples = from->lists.simples};
    field source[ARRAYS_OF_SEGMENT], target[ARRAYS_OF_SEGMENT];
    int64_t count = fields_of((icecore_segment *)from, o, source);
    fields_of(s, o, target);
    for (int64_t i = 0; i < count; i++) {
        *target[i].data = ice_segment_alloc(s, target[i].count, size_of(target[i].type));
        if (!*target[i].data) {
            icecore_segment_free(s);
            return NULL;
        }
        memcpy(*target[i].data, *source[i].data, (size_t)target[i].count * size_of(target[i].type));
    }
    s->offset = s->layer[s->layers - 1].offset;
    s->mean_key = s->layer[s->layers - 1].mean;
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
    }
    ice_merge_begin_due(to);
    return ICECORE_OK;
}

icecore_status icecore_index_copy(icecore_index *index, icecore_index **result) {
    icecore_index *copy;
    icecore_status status = icecore_index_create(&index->options, &copy);
    if (status != ICECORE_OK) return status;
    status = ice_index_read_lock(index);
    if (status == ICECORE_OK) {
        status = copy_contents(index, copy);
        ice_index_unlock(index);
    }
    if (status == ICECORE_OK) *result = copy;
    else icecore_index_free(copy);
    return status;
}
