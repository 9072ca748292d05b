#include "arrays.h"

#include <stdlib.h>
#include <string.h>

static uint64_t state = 1;

uint64_t draw(uint64_t bound) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % bound;
}

int is_valid_cache(icecore_cache *cache) {
    const char *fault = NULL;
    return icecore_cache_validate(cache, &fault) == ICECORE_OK && !fault;
}

size_t size_of(char type) {
    switch (type) {
    case 'b': return 1;
    case 'h': return 2;
    case 'l': return 8;
    default: return 4;
    }
}

int write_arrays(void *context, const icecore_array *table, int64_t arrays, const void *bytes, int64_t count) {
    file *f = context;
    if (!bytes) {
        f->count = arrays;
        memcpy(f->arrays, table, (size_t)arrays * sizeof *table);
        for (int64_t i = 0; i < arrays; i++)
            f->arrays[i].data = malloc((size_t)table[i].count * size_of(table[i].type) + 1);
        return 0;
    }
    while (f->filled == f->arrays[f->filling].count * (int64_t)size_of(f->arrays[f->filling].type))
        f->filling++, f->filled = 0;
    memcpy((char *)f->arrays[f->filling].data + f->filled, bytes, (size_t)count);
    f->filled += count;
    return 0;
}

void free_arrays(file *f) {
    for (int64_t i = 0; i < f->count; i++) free((void *)f->arrays[i].data);
}

lie tell_lie(file *f) {
    icecore_array *a = &f->arrays[draw((uint64_t)f->count)];
    lie l = {.array = a, .before = *a, .data = (unsigned char *)a->data};
    size_t bytes = (size_t)a->count * size_of(a->type);
    l.at = bytes ? draw(bytes) : 0;
    l.byte = l.data[l.at];
    switch (draw(5)) {
    case 0: a->count = (int64_t)draw(10) - 2 + (draw(2) ? a->count : 0); break;
    case 1: a->type = "bhilf"[draw(5)]; break;
    case 2: a->name[draw(12)] ^= 1; break;
    default: l.data[l.at] = (unsigned char)(draw(2) ? draw(256) : l.byte ^ (1u << draw(8)));
    }
    /* where the data would end too early it is not for us to lie: then nothing is changed */
    if (a->count > l.before.count || size_of(a->type) > size_of(l.before.type)) *a = l.before;
    return l;
}

void take_back(const lie *l) {
    l->data[l->at] = l->byte;
    *l->array = l->before;
}
