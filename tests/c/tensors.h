/* Attention problems with memory: random inputs, guarded outputs, any layout. */
#ifndef TENSORS_H
#define TENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "icecore.h"

typedef enum {
    HEADS_FIRST, /* (batch, head, row) */
    ROWS_FIRST   /* (batch, row, head) */
} layout;

/* A problem and its arrays.  Start with one_head, change sizes and options, then allocate. */
typedef struct {
    icecore_attention p;
    layout layout;
    int64_t pad;   /* elements between rows: NaN in inputs, canaries in the output */
    uint64_t seed; /* of the contents */
    int64_t out_bytes, lse_count;
} problem;

/* One batch entry and one head, neither causal nor masked. */
problem one_head(int64_t queries, int64_t keys, int64_t dim, int64_t value_dim);

void problem_allocate(problem *problem);
void problem_free(problem *problem);

/* Overwrites out and lse with canaries. */
void problem_clear(problem *problem);
/* 1 if no output was written at all. */
int problem_is_clear(const problem *problem);
/* 1 if the gaps between the rows of the output hold what they held. */
int problem_gaps_are_clear(const problem *problem);

/* The keys and values of the first head, to be stored as float32 in cells of one key. */
icecore_segment_source segment_source(const problem *problem);

size_t element_size(icecore_dtype dtype);
int64_t element_index(const icecore_tensor *tensor, int64_t batch, int64_t head, int64_t row, int64_t column);
double element_get(const icecore_tensor *tensor, icecore_dtype dtype, int64_t index);
/* `value` must be representable. */
void element_set(const icecore_tensor *tensor, icecore_dtype dtype, int64_t index, float value);

/* The next number of a stream of random bits. */
uint64_t next_random(uint64_t *state);
float random_float(uint64_t *state); /* uniform in [-2, 2) */

#endif
