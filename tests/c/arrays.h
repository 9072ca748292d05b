/* Named arrays of the core kept in memory, for tests of files. */
#ifndef ARRAYS_H
#define ARRAYS_H

#include <stddef.h>
#include <stdint.h>

#include "icecore.h"

typedef struct {
    icecore_array arrays[400];
    int64_t count, filled, filling;
} file;

size_t size_of(char type);
/* An icecore_write whose context is a file of nothing. */
int write_arrays(void *context, const icecore_array *table, int64_t arrays, const void *bytes, int64_t count);
void free_arrays(file *f);

/* Whether the cache finds nothing wrong with itself. */
int is_valid_cache(icecore_cache *cache);

/* A pseudo-random number below `bound`. */
uint64_t draw(uint64_t bound);

/* What an array was before it began to lie. */
typedef struct {
    icecore_array *array, before;
    unsigned char *data, byte;
    size_t at;
} lie;
/* Changes the length, type, name or a byte of some array. */
lie tell_lie(file *f);
void take_back(const lie *l);

#endif
