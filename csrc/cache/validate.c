#include <float.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/parallel.h"
#include "cache/cache.h"

const char *ice_cache_segment_fault(const icecore_segment *s, uint8_t *seen) {
    const ice_nodes *c = &s->cell, *p = &s->parent;
    if (c->offset[0] != 0 || c->offset[c->count] != s->count || p->offset[0] != 0 || p->offset[p->count] != c->count)
        return "cells or parents do not cover a segment";
    for (int64_t i = 0; i < c->count; i++)
        if (c->offset[i] >= c->offset[i + 1]) return "an empty cell";
    for (int64_t i = 0; i < p->count; i++)
        if (p->offset[i] >= p->offset[i + 1]) return "an empty parent";
    memset(seen, 0, (size_t)s->count);
    for (int64_t i = 0; i < s->count; i++) {
        if (s->order[i] < 0 || s->order[i] >= s->count || seen[s->order[i]])
            return "a segment's order is not a permutation";
        seen[s->order[i]] = 1;
    }
    for (int64_t i = 0; i < c->count; i++)
        if (!(c->radius[i] >= 0.0f) && c->log2_weight[i] == c->log2_weight[i]) return "a radius is not a number";
    if (!ice_all_positive(s->metric, s->dim)) return "a metric is not finite and above 0";
    for (int64_t t = 0; t < s->dim; t++)
        if (!(s->component_variance[t] >= 0.0f && s->component_variance[t] <= FLT_MAX))
            return "a component's variance is not finite";
    return NULL;
}

static const char *head_fault(const icecore_cache *c, const ice_cache_head *h) {
    const int64_t skip = ice_cache_first_in_cells(c);
    int64_t first = 0, nodes = 0, keys = 0;
    for (int64_t i = 0; i < h->stack->levels; i++) {
        const ice_stacked *level = &h->stack->level[i];
        if (level->first != first || level->end <= first) return "segments do not follow one another";
        first = level->end;
        if (!level->segment) {
            if (level->end > skip) return "a segment is missing";
            continue;
        }
        const icecore_segment *s = level->segment;
        int64_t start = s->count > level->end - level->first ? -1 : level->end - s->count;
        if (start < level->first || s->dim != c->options.dim || s->value_dim != c->options.value_dim ||
            s->dtype != c->options.dtype || (s->halves != ICE_WHOLE) != ice_is_in_halves(&c->options))
            return "a segment of another shape";
        if (start > level->first && start > skip) return "a segment lacks keys";
        if (s->relative && (c->offset != ICE_OFFSET_LARGE || s->mean_dtype != ICECORE_FLOAT32))
            return "keys less means that are not exact";
        nodes += s->cell.count + s->parent.count;
        keys += s->count;
    }
    if (first != h->sealed * c->options.block) return "segments do not end where open rows begin";
    if (first > c->length) return "segments reach past the last token";
    if (nodes != h->stack->nodes || keys != h->stack->keys) return "a stack's sums are wrong";
    ice_stacked next[ICE_NEXT_RANGES] = {{0}};
    ice_stack_next_ranges(h->sealed, c->options.block, next);
    for (int i = 0; i < ICE_NEXT_RANGES; i++) {
        const ice_pending *p = h->pending[i];
        if (p && (p->first != next[i].first || p->end != next[i].end || p->end > c->length))
            return "a segment in the making is out of place";
    }
    return NULL;
}

const char *ice_cache_structure_fault(const icecore_cache *c) {
    const int64_t first = c->sealed * c->options.block;
    if (c->length < 0 || first > c->length) return "more is sealed than there is";
    if (c->length && (!c->open || c->open->first > first || c->open->first + c->open->capacity < c->length ||
                      c->open->filled < c->length))
        return "open rows are missing";
    if (c->offset == ICE_OFFSET_UNKNOWN && c->length >= ice_cache_looked_at(&c->options))
        return "an offset that should be known";
    if (c->evicted < 0 || c->evicted > c->length) return "more is evicted than there was";
    int64_t sinks = ice_cache_sinks(c, c->length);
    if (sinks && (!c->sinks || c->sinks->filled < sinks)) return "sinks are missing";
    for (int64_t h = 0; h < c->options.heads; h++) {
        const char *fault = c->head[h].sealed < c->sealed ? "a head is behind" : head_fault(c, &c->head[h]);
        if (fault) return fault;
    }
    return NULL;
}

static icecore_status find_fault(const icecore_cache *c, const char **fault) {
    uint8_t *seen = ice_alloc(c->length + 1, 1);
    if (!seen) return ICECORE_ERROR_MEMORY;
    *fault = ice_cache_structure_fault(c);
    icecore_status status = ICECORE_OK;
    for (int64_t h = 0; h < c->options.heads && !*fault && status == ICECORE_OK; h++) {
        const ice_stack *stack = c->head[h].stack;
        for (int64_t i = 0; i < stack->levels && !*fault; i++)
            if (stack->level[i].segment) *fault = ice_cache_segment_fault(stack->level[i].segment, seen);
        if (ice_interrupted()) status = ICECORE_INTERRUPTED;
    }
    ice_free(seen);
    return status;
}

icecore_status icecore_cache_validate(icecore_cache *c, const char **fault) {
    icecore_status status = ice_lock_write(&c->lock);
    if (status != ICECORE_OK) return status;
    status = find_fault(c, fault);
    ice_unlock(&c->lock);
    return status;
}
