#include "segment/source.h"

#include "base/memory.h"

static const void *row_at(const void *rows, int64_t row, int64_t stride, icecore_dtype dtype) {
    return (const char *)rows + row * stride * (int64_t)ice_element_size(dtype);
}

icecore_status ice_source_begin(ice_source_rows *r, const ice_kernels *kernels, const ice_source *s, int64_t start,
                                int64_t end) {
    const int64_t from_array = start > s->origin ? start : s->origin;
    *r = (ice_source_rows){.storage = s->storage, .relative = s->relative, .centre = s->centre};
    r->sealed = (end < s->origin ? end : s->origin) - start;
    if (r->sealed < 0) r->sealed = 0;
    r->keys = (ice_array_rows){kernels, s->dtype, NULL, s->key_stride, s->dim};
    r->values = (ice_array_rows){kernels, s->dtype, NULL, s->value_stride, s->value_dim};
    if (from_array < end) {
        r->keys.data = row_at(s->keys, from_array - s->origin, s->key_stride, s->dtype);
        r->values.data = row_at(s->values, from_array - s->origin, s->value_stride, s->dtype);
    }
    if (!r->sealed) return ICECORE_OK;
    r->place = ice_alloc(r->sealed, sizeof *r->place);
    r->base = s->relative ? ice_alloc(r->sealed, sizeof *r->base) : NULL;
    if (!r->place || (s->relative && !r->base)) {
        ice_source_end(r);
        return ICECORE_ERROR_MEMORY;
    }
    for (int64_t n = 0; n < s->sealed_count; n++) {
        const icecore_segment *segment = s->sealed[n].segment;
        if (!segment) continue;
        const int64_t first = s->sealed[n].end - segment->count - start; /* its first key among the rows */
        for (int64_t i = 0, cell = 0; i < segment->count; i++) {
            int64_t row = first + segment->order[i];
            while (i >= segment->cell.offset[cell + 1]) cell++;
            if (row < 0 || row >= r->sealed) continue;
            if (r->base) r->base[row] = ice_base_of(segment, cell);
            r->place[row] = (ice_stored_row){segment, i};
        }
    }
    return ICECORE_OK;
}

void ice_source_end(ice_source_rows *r) {
    ice_free(r->place);
    ice_free(r->base);
    *r = (ice_source_rows){0};
}

/* The array of a segment that holds a place's rows like those of `array`. */
static void *rows_like(const ice_source_rows *r, const ice_array_rows *array, const icecore_segment *segment) {
    return array == &r->keys ? segment->keys : segment->values;
}

static const float *read(const ice_source_rows *r, const ice_array_rows *array, int64_t row, float *buffer) {
    if (row >= r->sealed) return ice_read_array_row(array, row - r->sealed, buffer);
    const ice_stored_row *place = &r->place[row];
    void *rows = rows_like(r, array, place->segment);
    if (r->storage == ICECORE_FLOAT32 && !place->segment->halves) return (const float *)rows + place->row * array->dim;
    ice_read_stored(place->segment, array->kernels, rows, place->row, 1, array->dim, buffer);
    return buffer;
}

/* As a segment will hold it. */
static const float *rounded(const ice_source_rows *r, const ice_array_rows *array, const float *x, float *buffer) {
    int8_t stored[2 * ICECORE_MAX_DIM];
    if (!ice_is_quantized(r->storage)) return x;
    array->kernels->from_float32(r->storage, x, stored, array->dim);
    array->kernels->to_float32(r->storage, stored, buffer, array->dim);
    return buffer;
}

const float *ice_read_source_key(const void *context, int64_t row, float *buffer) {
    const ice_source_rows *r = context;
    const float *x = read(r, &r->keys, row, buffer), *base = row < r->sealed && r->base ? r->base[row] : NULL;
    for (int64_t t = 0; base && t < r->keys.dim; t++) buffer[t] = x[t] + base[t];
    if (base) return buffer;
    if (row < r->sealed || r->relative) return x;
    for (int64_t t = 0; r->centre && t < r->keys.dim; t++) buffer[t] = x[t] - r->centre[t];
    return rounded(r, &r->keys, r->centre ? buffer : x, buffer);
}

const float *ice_read_source_value(const void *context, int64_t row, float *buffer) {
    const ice_source_rows *r = context;
    const float *x = read(r, &r->values, row, buffer);
    return row < r->sealed ? x : rounded(r, &r->values, x, buffer);
}

static const void *stored(const ice_source_rows *r, const ice_array_rows *array, int64_t row, icecore_dtype dtype) {
    if (row < r->sealed) {
        const ice_stored_row *place = &r->place[row];
        if (r->storage != dtype || place->segment->halves) return NULL;
        return (const char *)rows_like(r, array, place->segment) +
               (size_t)place->row * ice_row_bytes(dtype, array->dim);
    }
    return array->dtype == dtype ? row_at(array->data, row - r->sealed, array->stride, dtype) : NULL;
}

const void *ice_stored_source_key(const void *context, int64_t row, icecore_dtype dtype) {
    const ice_source_rows *r = context;
    return r->relative || (r->centre && row >= r->sealed) ? NULL : stored(r, &r->keys, row, dtype);
}

const void *ice_stored_source_value(const void *context, int64_t row, icecore_dtype dtype) {
    const ice_source_rows *r = context;
    return stored(r, &r->values, row, dtype);
}
