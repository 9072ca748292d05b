/* Reading back: the stored keys and values as float32, in the order of their tokens. */
#include "base/parallel.h"
#include "cache/cache.h"

/* Tokens 0 .. sinks - 1 and first .. length - 1 are held; their rows follow one another. */
typedef struct {
    const icecore_cache *cache;
    const ice_kernels *kernels;
    int64_t sinks, first, rows;
    float *keys, *values; /* heads x rows x dim, heads x rows x value_dim; NULL: not wanted */
} reading;

static reading begin(const icecore_cache *c, float *keys, float *values) {
    const int64_t sinks = ice_cache_sinks(c, c->length);
    return (reading){c, ice_active_kernels(), sinks, ice_cache_first_held(c), ice_cache_held(c), keys, values};
}

/* Where a token's row goes; NULL where it is not wanted or, in segments that reach back before `first`, not held. */
static float *place(const reading *r, float *rows, int64_t width, int64_t head, int64_t token) {
    if (!rows || (token >= r->sinks && token < r->first)) return NULL;
    const int64_t row = token < r->sinks ? token : token - r->first + r->sinks;
    return rows + (head * r->rows + row) * width;
}

/* Open rows or sinks. */
static icecore_status read_tokens(const reading *r, const ice_open_rows *from, int64_t head, int64_t first,
                                  int64_t end) {
    for (int64_t token = first; token < end; token++) {
        if (token % ICE_UNASKED == 0 && ice_interrupted()) return ICECORE_INTERRUPTED;
        float *key = place(r, r->keys, from->dim, head, token),
              *value = place(r, r->values, from->value_dim, head, token);
        if (key) r->kernels->to_float32(from->dtype, ice_open_key(from, head, token), key, from->dim);
        if (value) r->kernels->to_float32(from->dtype, ice_open_value(from, head, token), value, from->value_dim);
    }
    return ICECORE_OK;
}

static icecore_status read_segment(const reading *r, const icecore_segment *s, int64_t head, int64_t first) {
    for (int64_t i = 0, cell = 0; i < s->count; i++) {
        if (i % ICE_UNASKED == 0 && ice_interrupted()) return ICECORE_INTERRUPTED;
        while (i >= s->cell.offset[cell + 1]) cell++;
        const int64_t token = first + s->order[i];
        const float *base = ice_base_of(s, cell);
        float *key = place(r, r->keys, s->dim, head, token), *value = place(r, r->values, s->value_dim, head, token);
        if (key) ice_read_stored(s, r->kernels, s->keys, i, 1, s->dim, key);
        for (int64_t t = 0; key && base && t < s->dim; t++) key[t] += base[t];
        if (value) ice_read_stored(s, r->kernels, s->values, i, 1, s->value_dim, value);
    }
    return ICECORE_OK;
}

static icecore_status read_head(const reading *r, int64_t head) {
    const icecore_cache *c = r->cache;
    const ice_stack *stack = c->head[head].stack;
    const int64_t sealed = c->head[head].sealed * c->options.block, open = sealed > r->first ? sealed : r->first;
    icecore_status status = read_tokens(r, c->sinks, head, 0, r->sinks);
    for (int64_t i = 0; i < stack->levels && status == ICECORE_OK; i++) {
        const icecore_segment *s = stack->level[i].segment;
        if (s) status = read_segment(r, s, head, stack->level[i].end - s->count);
    }
    return status == ICECORE_OK ? read_tokens(r, c->open, head, open, c->length) : status;
}

icecore_status icecore_cache_read(icecore_cache *c, float *keys, float *values, int64_t count) {
    if (!ice_active_kernels()) return ICECORE_ERROR_ISA;
    icecore_status status = ice_lock_write(&c->lock);
    if (status != ICECORE_OK) return status;
    const reading r = begin(c, keys, values);
    if (count != r.rows) status = ICECORE_ERROR_VALUE;
    for (int64_t h = 0; h < c->options.heads && status == ICECORE_OK; h++) status = read_head(&r, h);
    ice_unlock(&c->lock);
    return status;
}
