#include "segment/segment.h"

#include <string.h>

#include "base/memory.h"
#include "base/random.h"

uint64_t ice_segment_seed(uint64_t seed, int64_t first, int64_t count) {
    uint64_t state = seed ^ ((uint64_t)first * 0x9E3779B97F4A7C15u) ^ ((uint64_t)count << 32);
    return ice_random(&state);
}

icecore_segment *ice_segment_new(void) {
    icecore_segment *s = ice_alloc(1, sizeof *s);
    if (!s) return NULL;
    memset(s, 0, sizeof *s);
    s->owners = 1;
    return s;
}

void *ice_segment_alloc(icecore_segment *s, int64_t count, size_t size) {
    if (s->owned_count == (int)(sizeof s->owned / sizeof *s->owned)) return NULL;
    void *memory = ice_alloc_kept(count, size);
    if (!memory) return NULL;
    s->owned[s->owned_count++] = memory;
    s->bytes += count * (int64_t)size;
    return memory;
}

void icecore_segment_free(icecore_segment *s) {
    if (!s || atomic_fetch_sub(&s->owners, 1) > 1) return;
    for (int i = 0; i < s->owned_count; i++) ice_free_kept(s->owned[i]);
    icecore_segment_free(s->base);
    ice_free(s);
}

icecore_segment *ice_segment_share(icecore_segment *s) {
    if (s) atomic_fetch_add(&s->owners, 1);
    return s;
}

int64_t ice_segment_bytes(const icecore_segment *s) { return s->bytes + (s->base ? s->base->bytes : 0); }

icecore_segment_view icecore_segment_get(const icecore_segment *s) {
    const ice_nodes *c = &s->cell, *p = &s->parent;
    return (icecore_segment_view){
        s->dtype,
        s->mean_dtype,
        s->count,
        s->dim,
        s->value_dim,
        s->order,
        s->keys,
        s->values,
        s->metric,
        s->component_variance,
        s->centre,
        {c->count, c->offset, c->mean_key, c->mean_value, c->variance, c->radius, c->log2_count, c->log2_weight},
        {p->count, p->offset, p->mean_key, p->mean_value, p->variance, p->radius, p->log2_count, p->log2_weight},
    };
}
