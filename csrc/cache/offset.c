/* Keys that share a large part, such as a projection's bias: rounding to 16 or 8 bits takes much of the small rest that
 * tells them apart. Then open rows and sinks are kept as float32, which queries are multiplied with as they are, and in
 * segments keys are rounded less the mean of their cell (segment.h).  A cell follows an offset that rotary embedding
 * turns; one mean of all keys would not. */
#include "cache/cache.h"

/* Of fewer tokens two may be alike by chance. */
#define FEWEST 16
/* A component is offset when its root mean square is so many times what it, and what half of the components, vary from
 * token to token. (18 is the most in SmolLM2's 90 heads, where rounding does no harm.) */
#define LARGE 24.0

/* The key of a token: of the cache, or of those that come. */
static void read_key(const icecore_cache *c, icecore_dtype dtype, icecore_tensor keys, int64_t head, int64_t token,
                     float *key) {
    const ice_kernels *kernels = ice_active_kernels();
    if (token < c->length) kernels->to_float32(c->open->dtype, ice_open_key(c->open, head, token), key, c->options.dim);
    else kernels->to_float32(dtype, ice_address(&keys, dtype, 0, head, token - c->length), key, c->options.dim);
}

static int is_offset(const icecore_cache *c, icecore_dtype dtype, icecore_tensor keys, int64_t head, int64_t tokens) {
    const int64_t dim = c->options.dim;
    double squared[ICECORE_MAX_DIM] = {0}, varied[ICECORE_MAX_DIM] = {0};
    float key[2][ICECORE_MAX_DIM];
    for (int64_t i = 0; i < tokens; i++) {
        const float *own = key[i % 2], *previous = key[(i + 1) % 2];
        read_key(c, dtype, keys, head, i, key[i % 2]);
        for (int64_t t = 0; t < dim; t++) {
            const double difference = i ? (double)own[t] - (double)previous[t] : 0.0;
            squared[t] += (double)own[t] * (double)own[t] / (double)tokens;
            varied[t] += difference * difference / (double)(2 * (tokens - 1));
        }
    }
    for (int64_t t = 0; t < dim; t++) {
        int64_t smaller = 0;
        if (!(squared[t] > LARGE * LARGE * varied[t])) continue; /* nor where it is NaN or inf */
        for (int64_t i = 0; i < dim; i++) smaller += squared[t] > LARGE * LARGE * varied[i];
        if (2 * smaller >= dim) return 1;
    }
    return 0;
}

ice_offset ice_cache_find_offset(const icecore_cache *c, icecore_dtype dtype, icecore_tensor keys, int64_t count) {
    if (c->options.dtype == ICECORE_FLOAT32) return ICE_OFFSET_SMALL;
    if (c->length && c->offset != ICE_OFFSET_UNKNOWN) return c->offset;
    const int64_t tokens = ice_cache_looked_at(&c->options);
    if (c->length + count < tokens) return ICE_OFFSET_UNKNOWN;
    for (int64_t h = 0; h < c->options.heads && tokens >= FEWEST; h++)
        if (is_offset(c, dtype, keys, h, tokens)) return ICE_OFFSET_LARGE;
    return ICE_OFFSET_SMALL;
}

/* Rows of a cache in another type, with room for as many; NULL when out of memory. */
static ice_open_rows *converted(const ice_open_rows *r, icecore_dtype dtype, int64_t end) {
    ice_open_rows *own = ice_open_rows_new(r->heads, r->dim, r->value_dim, dtype, r->first, r->capacity);
    if (!own) return NULL;
    ice_open_rows_copy(r, own, r->first, end);
    own->filled = end;
    return own;
}

icecore_status ice_cache_set_offset(icecore_cache *c, ice_offset offset) {
    const icecore_dtype dtype = ice_open_dtype(&c->options, offset);
    ice_open_rows **rows[] = {&c->sinks, &c->open}, *own[2] = {NULL, NULL};
    const int64_t end[] = {ice_cache_sinks(c, c->length), c->length};
    for (int i = 0; i < 2; i++) {
        if (!*rows[i] || (*rows[i])->dtype == dtype) continue;
        own[i] = converted(*rows[i], dtype, end[i]);
        if (own[i]) continue;
        ice_open_rows_release(own[0], 1);
        return ICECORE_ERROR_MEMORY;
    }
    for (int i = 0; i < 2; i++) {
        if (!own[i]) continue;
        ice_open_rows_release(*rows[i], 1);
        *rows[i] = own[i];
    }
    for (int64_t h = 0; c->offset != offset && h < c->options.heads; h++)
        ice_cache_drop_pending(&c->head[h], INT64_MAX, 0);
    c->offset = offset;
    return ICECORE_OK;
}
