/* An attention problem's rows: addresses, visible keys, validation. */
#ifndef ICE_REQUEST_H
#define ICE_REQUEST_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "base/numbers.h"
#include "icecore.h"
#include "kernels/kernels.h"

#define ICE_LOG2_E 1.44269504088896340736
#define ICE_LN_2 0.69314718055994530942

/* ICECORE_ERROR_VALUE when a size or a pointer cannot be right. */
icecore_status ice_check_problem(const icecore_attention *problem);

/* 1 when there is no query to answer. */
static inline int ice_is_empty(const icecore_attention *p) {
    return p->batch == 0 || p->query_heads == 0 || p->queries == 0;
}

/* All queries that read one key head, of one batch entry, are its rows, query by query and within a query head by head,
 * so that neighbouring rows see the same keys. */
static inline int64_t ice_group(const icecore_attention *p) { return p->query_heads / p->key_heads; }
static inline int64_t ice_query_rows(const icecore_attention *p) { return ice_group(p) * p->queries; }

typedef struct {
    int64_t batch, head, query; /* head: the query head */
} ice_row;

static inline ice_row ice_row_at(const icecore_attention *p, int64_t batch, int64_t key_head, int64_t row) {
    int64_t group = ice_group(p);
    return (ice_row){batch, key_head * group + row % group, row / group};
}

/* The address of row `row` of head `head`. */
static inline void *ice_address(const icecore_tensor *t, icecore_dtype dtype, int64_t batch, int64_t head,
                                int64_t row) {
    int64_t offset = batch * t->batch_stride + head * t->head_stride + row * t->row_stride;
    return (char *)t->data + offset * (int64_t)ice_element_size(dtype);
}

/* The address of a key or a value of head batch * key_heads + key head. */
static inline void *ice_key_at(const icecore_attention *p, int64_t head, int64_t row) {
    return ice_address(&p->key, p->key_dtype, head / p->key_heads, head % p->key_heads, row);
}
static inline void *ice_value_at(const icecore_attention *p, int64_t head, int64_t row) {
    return ice_address(&p->value, p->key_dtype, head / p->key_heads, head % p->key_heads, row);
}

/* Where a row stands in arrays of batch x query_heads x queries. */
static inline int64_t ice_place_of(const icecore_attention *p, ice_row row) {
    return (row.batch * p->query_heads + row.head) * p->queries + row.query;
}

/* Query heads first_head .. first_head + heads - 1, which read one key head, as if each had one of its own. */
icecore_attention ice_heads_of(const icecore_attention *problem, int64_t batch, int64_t first_head, int64_t heads);

static inline int ice_has_window(const icecore_attention *p) { return p->window_left >= 0 || p->window_right >= 0; }
/* Whether anything but causality may hide keys. */
static inline int ice_hides_keys(const icecore_attention *p) {
    return ice_has_window(p) || p->ranges || p->mask_kind != ICECORE_MASK_NONE;
}

/* The keys a query may see, masks aside: [sink_begin, sink_end) and [begin, end); begin >= sink_end, either may be
 * empty. */
typedef struct {
    int64_t sink_begin, sink_end, begin, end;
} ice_visible;
/* Of a query that stands at `position`. */
ice_visible ice_visible_at(const icecore_attention *problem, int64_t batch, int64_t query, int64_t position);
static inline ice_visible ice_visible_keys(const icecore_attention *p, int64_t batch, int64_t query) {
    return ice_visible_at(p, batch, query, p->keys - p->queries + query);
}

/* Reads a query as float32, times `factor`. */
void ice_load_query(const icecore_attention *problem, const ice_kernels *kernels, ice_row row, float factor,
                    float *target);

/* What a number of an additive mask adds to a score in units of log 2: finite where it is itself.  Many masks hide by
 * the lowest finite number, and rows of nothing else are means of all values, as everywhere. */
static inline float ice_mask_bias(float bias) {
    const float product = bias * (float)ICE_LOG2_E;
    return fabsf(product) <= FLT_MAX || !(fabsf(bias) <= FLT_MAX) ? product : copysignf(FLT_MAX, bias);
}

/* Where a row of the mask begins. */
static inline int64_t ice_mask_offset(const icecore_attention *p, ice_row row) {
    return row.batch * p->mask_batch_stride + row.head * p->mask_head_stride + row.query * p->mask_row_stride;
}

/* Adds the mask of (row, key first + j) to scores[j * step], j < count; returns whether it hid any key. */
int ice_add_mask(const icecore_attention *problem, ice_row row, int64_t first, int64_t count, float *scores,
                 int64_t step);

/* What panels multiply: bfloat16 where there are kernels for it, keys and values have that dtype, and widths they can
 * do; else float32. */
icecore_dtype ice_panel_dtype(const icecore_attention *problem, const ice_kernels *kernels);

#endif
