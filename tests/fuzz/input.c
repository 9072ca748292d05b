#include "input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void read_input(input *in, const uint8_t *bytes, size_t size) {
    memset(in, 0, sizeof *in);
    memcpy(in->option, bytes, size < OPTIONS ? size : OPTIONS);
    size_t at = OPTIONS + 1;
    if (size < at) return;
    const uint8_t *entry = bytes + at;
    in->count = bytes[OPTIONS];
    if (in->count > (int64_t)((size - at) / ENTRY)) in->count = (int64_t)((size - at) / ENTRY);
    at += (size_t)in->count * ENTRY;
    for (int64_t i = 0; i < in->count; i++, entry += ENTRY) {
        icecore_array *a = &in->array[i];
        uint32_t count;
        memcpy(a->name, entry, NAME);
        memcpy(&count, entry + NAME + 1, sizeof count);
        a->type = (char)entry[NAME];
        const size_t left = (size - at) / size_of(a->type), own = count < left ? count : left;
        const size_t length = own * size_of(a->type);
        void *data = malloc(length ? length : 1);
        if (length) memcpy(data, bytes + at, length);
        a->count = (int64_t)own;
        a->data = data;
        at += length;
    }
}

void free_input(input *in) {
    for (int64_t i = 0; i < in->count; i++) free((void *)in->array[i].data);
}

size_t write_input(const input *in, uint8_t *bytes, size_t capacity) {
    size_t size = OPTIONS + 1 + (size_t)in->count * ENTRY;
    if (size > capacity) return 0;
    memset(bytes, 0, size);
    memcpy(bytes, in->option, OPTIONS);
    bytes[OPTIONS] = (uint8_t)in->count;
    uint8_t *entry = bytes + OPTIONS + 1;
    for (int64_t i = 0; i < in->count; i++, entry += ENTRY) {
        const icecore_array *a = &in->array[i];
        const size_t length = (size_t)a->count * size_of(a->type);
        const uint32_t count = (uint32_t)a->count;
        if (length > capacity - size) return 0;
        memcpy(entry, a->name, NAME - 1);
        entry[NAME] = (uint8_t)a->type;
        memcpy(entry + NAME + 1, &count, sizeof count);
        if (length) memcpy(bytes + size, a->data, length);
        size += length;
    }
    return size;
}

void broken(const char *file, int line, const char *condition) {
    fprintf(stderr, "%s:%d: a promise does not hold: %s\n", file, line, condition);
    abort();
}

/* Freed memory is watched for a while only: most of it is large and cleared. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "quarantine_size_mb=4"; }
