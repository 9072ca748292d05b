/* Where a head's keys and values come from when they are sealed: an array, and for keys that it no longer holds the
 * segments that do. */
#ifndef ICE_SOURCE_H
#define ICE_SOURCE_H

#include "cluster/rows.h"
#include "segment/segment.h"

/* Keys first .. end - 1 of a head, held by a segment; NULL where the range is empty. */
typedef struct {
    int64_t first, end;
    icecore_segment *segment;
} ice_stacked;

typedef struct {
    icecore_dtype dtype;          /* of the arrays */
    icecore_dtype storage, means; /* of rows and of means in segments */
    const void *keys, *values;    /* from key `origin` on */
    int64_t origin, key_stride, value_stride, dim, value_dim;
    const float *centre;       /* NULL, or what is taken off the array's keys */
    int relative;              /* keys in segments are less the mean key of their cell (segment.h) */
    int halves;                /* float32 rows in segments lie in halves */
    const ice_stacked *sealed; /* hold the keys before `origin`, those before `skip` aside */
    int64_t sealed_count;
    int64_t skip; /* keys before this one stay outside all segments: the sinks, and what was evicted */
    int64_t block, cell_size;
    /* Writes the second moments (metric.h) of the queries that stand at keys first .. end - 1; 0 where too few are
     * known, below 0 where memory is short.  NULL: none are. */
    int (*moments)(const void *context, int64_t first, int64_t end, float *moments);
    /* Of a source whose segments keep sums of q q^T: how many numbers, and what adds up those of keys first .. end - 1.
     */
    int64_t query_numbers;
    void (*add_query_sums)(const void *context, int64_t first, int64_t end, float *sum);
    const void *moments_context; /* of both */
    uint64_t seed;
} ice_source;

/* Where a row is stored. */
typedef struct {
    const icecore_segment *segment;
    int64_t row;
} ice_stored_row;

/* The keys start .. end - 1 of a source, row by row.  Quantized, they are rounded when they come from the array too, so
 * that cells are the same whether a segment is built at once or by merges; 16-bit ones have that type already, or
 * nothing is merged.  Keys that are stored less the mean of their cell come with it, and each merge rounds them anew.
 */
typedef struct {
    ice_array_rows keys, values;
    const float *centre;
    int64_t sealed; /* so many of the first rows come from segments, which hold them as `storage` */
    icecore_dtype storage;
    int relative;
    ice_stored_row *place; /* of these rows */
    const float **base;    /* what their keys lack; NULL: nothing */
} ice_source_rows;

/* What is read must not move or change until the end. */
icecore_status ice_source_begin(ice_source_rows *rows, const ice_kernels *kernels, const ice_source *source,
                                int64_t start, int64_t end);
void ice_source_end(ice_source_rows *rows);
/* For ice_rows; the context is an ice_source_rows. */
const float *ice_read_source_key(const void *source_rows, int64_t row, float *buffer);
const float *ice_read_source_value(const void *source_rows, int64_t row, float *buffer);
const void *ice_stored_source_key(const void *source_rows, int64_t row, icecore_dtype dtype);
const void *ice_stored_source_value(const void *source_rows, int64_t row, icecore_dtype dtype);

#endif
