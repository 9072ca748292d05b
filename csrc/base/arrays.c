#include "base/arrays.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

/* ---- Writing ---- */

void ice_enter(ice_catalogue *c, int source, const char *name, char type, int64_t count, const void *data) {
    c->source[c->count] = source;
    icecore_array *array = &c->table[c->count++];
    memset(array, 0, sizeof *array);
    snprintf(array->name, sizeof array->name, "%s", name);
    array->type = type;
    array->count = count;
    array->data = data;
}

/* The largest power of two that divides an array's bytes, up to a cache line. */
static int64_t alignment_of(const icecore_array *array) {
    int64_t bytes = array->count * (int64_t)ice_size_of(array->type) | ICE_ALIGNMENT;
    return bytes & -bytes;
}

/* In falling order of alignment_of: what lies before an array is then a multiple of its own. */
void ice_align_catalogue(ice_catalogue *c) {
    for (int64_t i = 1; i < c->count; i++) {
        icecore_array array = c->table[i];
        int source = c->source[i];
        int64_t j = i;
        for (; j > 0 && alignment_of(&c->table[j - 1]) < alignment_of(&array); j--) {
            c->table[j] = c->table[j - 1];
            c->source[j] = c->source[j - 1];
        }
        c->table[j] = array;
        c->source[j] = source;
    }
}

int ice_give(const ice_sink *sink, const void *bytes, int64_t count) {
    return count ? sink->write(sink->context, sink->catalogue->table, sink->catalogue->count, bytes, count) : 0;
}

icecore_status ice_write_catalogue(const ice_catalogue *c, icecore_write write, void *context,
                                   int (*give)(const void *owner, int source, const ice_sink *sink),
                                   const void *owner) {
    const ice_sink sink = {c, write, context};
    int stop = write(context, c->table, c->count, NULL, 0);
    for (int64_t i = 0; i < c->count && !stop; i++) {
        const icecore_array *a = &c->table[i];
        if (c->source[i] == ICE_IN_PLACE) stop = ice_give(&sink, a->data, a->count * (int64_t)ice_size_of(a->type));
        else stop = give(owner, c->source[i], &sink);
    }
    return stop ? ICECORE_INTERRUPTED : ICECORE_OK;
}

/* ---- Reading ---- */

void ice_refuse(ice_reader *r, const char *name, const char *what) {
    if (!r->failed) snprintf(r->reason, (size_t)r->reason_size, "%s %s", name, what);
    r->failed = 1;
}

void ice_lack_memory(ice_reader *r) {
    if (!r->failed) r->no_memory = 1;
    ice_refuse(r, "the file", "does not fit into memory");
}

icecore_status ice_reader_status(const ice_reader *r) {
    if (!r->failed) return ICECORE_OK;
    return r->no_memory ? ICECORE_ERROR_MEMORY : ICECORE_ERROR_VALUE;
}

const icecore_array *ice_find(ice_reader *r, const char *name, char type, int64_t count) {
    for (int64_t i = 0; i < r->count && !r->failed; i++) {
        const icecore_array *a = &r->arrays[i];
        if (strcmp(a->name, name) != 0) continue;
        if (a->type != type) ice_refuse(r, name, "has the wrong type");
        else if (a->count < 0 || (count >= 0 && a->count != count)) ice_refuse(r, name, "has the wrong length");
        else if ((uintptr_t)a->data % ice_size_of(type)) ice_refuse(r, name, "is not aligned");
        r->used++;
        return r->failed ? NULL : a;
    }
    ice_refuse(r, name, "is missing");
    return NULL;
}
