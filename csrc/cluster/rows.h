/* Where rows come from: typed arrays, the vectors of an index, means of cells. */
#ifndef ICE_ROWS_H
#define ICE_ROWS_H

#include "kernels/kernels.h"

typedef struct {
    /* Row `row` as `dim` floats: where it lies, or widened into `buffer` (dim floats).  Called from several threads at
     * once. */
    const float *(*read)(const void *context, int64_t row, float *buffer);
    const void *context;
    int64_t count, dim;
    /* Where row `row` lies as numbers of `dtype`, contiguous; NULL where it does not.  May be left out. */
    const void *(*stored)(const void *context, int64_t row, icecore_dtype dtype);
} ice_rows;

/* Rows of a strided array of any dtype. */
typedef struct {
    const ice_kernels *kernels;
    icecore_dtype dtype;
    const void *data;
    int64_t stride, dim;
} ice_array_rows;
const float *ice_read_array_row(const void *array_rows, int64_t row, float *buffer);

#endif
