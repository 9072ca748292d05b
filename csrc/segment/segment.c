#include "segment/segment.h"

#include <string.h>

#include "base/memory.h"

icecore_segment *ice_segment_new(void) { return ice_owned_new(sizeof(icecore_segment)); }

void icecore_segment_free(icecore_segment *s) {
    if (!s || !ice_owned_release(&s->owned)) return;
    icecore_segment_free(s->base);
    ice_free(s);
}

icecore_segment *ice_segment_share(icecore_segment *s) {
    if (s) atomic_fetch_add(&s->owned.owners, 1);
    return s;
}

icecore_segment *ice_segment_over(icecore_segment *from) {
    icecore_segment *s = ice_segment_new();
    if (!s) return NULL;
    const size_t own = sizeof s->owned; /* others may share and release `from` meanwhile */
    memcpy((char *)s + own, (const char *)from + own, sizeof *s - own);
    s->base = ice_segment_share(from);
    return s;
}

int64_t ice_segment_bytes(const icecore_segment *s) { return s->owned.bytes + (s->base ? s->base->owned.bytes : 0); }

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
