/* The newest keys and values of a cache, as they came, and the sinks: what is attended exactly.
 *
 * Caches that were forked share them.  Rows are only ever added at the end, so what one cache sees stays as it is: the
 * first to add a row behind those all have goes on in place, another one copies the rows that are still open. Forgotten
 * rows are written anew only where no other cache and no sealing can see them. */
#ifndef ICE_OPEN_ROWS_H
#define ICE_OPEN_ROWS_H

#include <stdatomic.h>

#include "kernels/kernels.h"

typedef struct {
    atomic_int owners;        /* caches, and sealings that read */
    atomic_int writers;       /* caches */
    _Atomic int64_t filled;   /* tokens held: the next one goes there */
    _Atomic int64_t read_end; /* sealings may read the rows before it, also of caches that have forgotten them */
    int64_t heads, dim, value_dim;
    icecore_dtype dtype;
    int64_t first, capacity; /* rows first .. first + capacity - 1 have room */
    char *keys, *values;     /* heads x capacity x dim, heads x capacity x value_dim */
    int mapped;              /* the arrays belong to somebody else: they are not written to */
} ice_open_rows;

ice_open_rows *ice_open_rows_new(int64_t heads, int64_t dim, int64_t value_dim, icecore_dtype dtype, int64_t first,
                                 int64_t capacity);
/* Rows first .. first + count - 1 where they lie. */
ice_open_rows *ice_open_rows_map(int64_t heads, int64_t dim, int64_t value_dim, icecore_dtype dtype, int64_t first,
                                 int64_t count, const void *keys, const void *values);
/* For another cache; NULL: NULL. */
ice_open_rows *ice_open_rows_share(ice_open_rows *rows);
/* For a sealing that reads rows before `end`. */
void ice_open_rows_share_reading(ice_open_rows *rows, int64_t end);
void ice_open_rows_release(ice_open_rows *rows, int writes); /* NULL: nothing */

/* Row `row` of a head, or where it would lie: the address of an array that begins with row 0, of which only the rows
 * from `first` on may be touched, is ice_open_key(rows, head, 0). */
void *ice_open_key(const ice_open_rows *rows, int64_t head, int64_t row);
void *ice_open_value(const ice_open_rows *rows, int64_t head, int64_t row);

/* Copies rows first .. end - 1 of all heads, as the dtype of the others. */
void ice_open_rows_copy(const ice_open_rows *from, ice_open_rows *to, int64_t first, int64_t end);

#endif
