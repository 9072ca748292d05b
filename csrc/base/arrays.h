/* Named arrays (icecore_array): what the files of an index and of a cache are made of. */
#ifndef ICE_ARRAYS_H
#define ICE_ARRAYS_H

#include <stddef.h>
#include <stdint.h>

#include "icecore.h"

/* Bytes of an element of an icecore_array's type. */
static inline size_t ice_size_of(char type) {
    switch (type) {
    case 'b': return 1;
    case 'h': return 2;
    case 'l': return 8;
    default: return 4;
    }
}
/* The type of numbers of a dtype. */
static inline char ice_type_of(icecore_dtype dtype) {
    if (dtype == ICECORE_FLOAT32) return 'f';
    return dtype >= ICECORE_INT8 ? 'b' : 'h'; /* quantized rows are bytes */
}

/* An array of a segment. */
typedef struct {
    char part[28]; /* its name */
    char type;
    int64_t count;
    void **data; /* where the segment keeps it */
} ice_field;

/* ---- Writing ---- */

/* Of an array whose bytes lie in one place. */
#define ICE_IN_PLACE (-1)

typedef struct {
    icecore_array *table; /* room for all that is entered */
    int *source;          /* for each: ICE_IN_PLACE, or which of its owner's arrays it is */
    int64_t count;
} ice_catalogue;

void ice_enter(ice_catalogue *catalogue, int source, const char *name, char type, int64_t count, const void *data);
/* Puts arrays in an order in which, written one after another from a cache line's beginning, each is aligned to its
 * elements, and to a cache line where it fills whole ones. */
void ice_align_catalogue(ice_catalogue *catalogue);

/* What a piece of an array is given to; a non-zero answer ends the writing. */
typedef struct {
    const ice_catalogue *catalogue;
    icecore_write write;
    void *context;
} ice_sink;
int ice_give(const ice_sink *sink, const void *bytes, int64_t count);
/* Writes the table, then all arrays; those not in place by `give`. */
icecore_status ice_write_catalogue(const ice_catalogue *catalogue, icecore_write write, void *context,
                                   int (*give)(const void *owner, int source, const ice_sink *sink), const void *owner);

/* ---- Reading: arrays may hold anything ---- */

typedef struct {
    const icecore_array *arrays;
    int64_t count, used; /* used: how many have been asked for */
    char *reason;
    int64_t reason_size;
    int failed, no_memory; /* no_memory: it failed for want of memory, not for what the arrays hold */
} ice_reader;

/* Says what is wrong; the first that is said stays. */
void ice_refuse(ice_reader *reader, const char *name, const char *what);
/* Ends the reading for want of memory. */
void ice_lack_memory(ice_reader *reader);
icecore_status ice_reader_status(const ice_reader *reader);
/* The array of this name, type and count (or any count, with count = -1); NULL and a reason otherwise, or when
 * something has failed before. */
const icecore_array *ice_find(ice_reader *reader, const char *name, char type, int64_t count);

#endif
