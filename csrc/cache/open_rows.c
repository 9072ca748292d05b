#include "cache/open_rows.h"

#include <stdint.h>
#include <string.h>

#include "base/memory.h"

static ice_open_rows *without_arrays(int64_t heads, int64_t dim, int64_t value_dim, icecore_dtype dtype, int64_t first,
                                     int64_t capacity) {
    ice_open_rows *r = ice_alloc(1, sizeof *r);
    if (!r) return NULL;
    *r = (ice_open_rows){.owners = 1,
                         .writers = 1,
                         .filled = first,
                         .heads = heads,
                         .dim = dim,
                         .value_dim = value_dim,
                         .dtype = dtype,
                         .first = first,
                         .capacity = capacity};
    return r;
}

ice_open_rows *ice_open_rows_new(int64_t heads, int64_t dim, int64_t value_dim, icecore_dtype dtype, int64_t first,
                                 int64_t capacity) {
    ice_open_rows *r = without_arrays(heads, dim, value_dim, dtype, first, capacity);
    if (!r) return NULL;
    if (capacity > INT64_MAX / (heads * (dim + value_dim))) {
        ice_free(r);
        return NULL;
    }
    r->keys = ice_alloc(heads * capacity * dim, ice_element_size(dtype));
    r->values = ice_alloc(heads * capacity * value_dim, ice_element_size(dtype));
    if (r->keys && r->values) return r;
    ice_open_rows_release(r, 1);
    return NULL;
}

ice_open_rows *ice_open_rows_map(int64_t heads, int64_t dim, int64_t value_dim, icecore_dtype dtype, int64_t first,
                                 int64_t count, const void *keys, const void *values) {
    ice_open_rows *r = without_arrays(heads, dim, value_dim, dtype, first, count);
    if (!r) return NULL;
    r->filled = first + count;
    r->keys = (char *)keys;
    r->values = (char *)values;
    r->mapped = 1;
    return r;
}

ice_open_rows *ice_open_rows_share(ice_open_rows *r) {
    if (!r) return NULL;
    atomic_fetch_add(&r->owners, 1);
    atomic_fetch_add(&r->writers, 1);
    return r;
}

void ice_open_rows_share_reading(ice_open_rows *r, int64_t end) {
    int64_t before = atomic_load(&r->read_end);
    while (before < end && !atomic_compare_exchange_weak(&r->read_end, &before, end)) {}
    atomic_fetch_add(&r->owners, 1);
}

void ice_open_rows_release(ice_open_rows *r, int writes) {
    if (!r) return;
    if (writes) atomic_fetch_sub(&r->writers, 1);
    if (atomic_fetch_sub(&r->owners, 1) > 1) return;
    if (!r->mapped) {
        ice_free(r->keys);
        ice_free(r->values);
    }
    ice_free(r);
}

/* By way of integers: the address of a row that is not there is no pointer into the array. */
static void *address(const ice_open_rows *r, char *rows, int64_t head, int64_t row, int64_t width) {
    int64_t offset = (head * r->capacity + row - r->first) * width * (int64_t)ice_element_size(r->dtype);
    return (void *)((intptr_t)rows + (intptr_t)offset);
}

void *ice_open_key(const ice_open_rows *r, int64_t head, int64_t row) { return address(r, r->keys, head, row, r->dim); }
void *ice_open_value(const ice_open_rows *r, int64_t head, int64_t row) {
    return address(r, r->values, head, row, r->value_dim);
}

static void copy(const ice_open_rows *from, const ice_open_rows *to, const void *source, void *target, int64_t count,
                 int64_t width) {
    const ice_kernels *kernels = ice_active_kernels();
    float row[ICECORE_MAX_DIM];
    if (from->dtype == to->dtype) {
        memcpy(target, source, (size_t)(count * width) * ice_element_size(to->dtype));
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        kernels->to_float32(from->dtype, (const char *)source + (size_t)(i * width) * ice_element_size(from->dtype),
                            row, width);
        kernels->from_float32(to->dtype, row, (char *)target + (size_t)(i * width) * ice_element_size(to->dtype),
                              width);
    }
}

void ice_open_rows_copy(const ice_open_rows *from, ice_open_rows *to, int64_t first, int64_t end) {
    for (int64_t head = 0; head < from->heads && first < end; head++) {
        copy(from, to, ice_open_key(from, head, first), ice_open_key(to, head, first), end - first, from->dim);
        copy(from, to, ice_open_value(from, head, first), ice_open_value(to, head, first), end - first,
             from->value_dim);
    }
}
