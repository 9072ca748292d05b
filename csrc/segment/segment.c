#include "segment/segment.h"

#include <string.h>

#include "base/memory.h"

icecore_segment *ice_segment_new(void) {
    icecore_segment *s = ice_alloc(1, sizeof *s);
    if (!s) return NULL;
    memset(s, 0, sizeof *s);
    s->owned.owners = 1;
    return s;
}

void icecore_segment_free(icecore_segment *s) {
    if (!s || !ice_owned_release(&s->owned)) return;
    icecore_segment_free(s->base);
    ice_free(s);
}

icecore_segment *ice_segment_share(icecore_segment *s) {
    if (s) atomic_fetch_add(&s->owned.owners, 1);
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
