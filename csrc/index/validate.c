#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"
#include "index/index.h"

typedef struct {
    char *text;
    int64_t size;
    icecore_status status;
} report;

/* The first thing that is wrong. */
static void say(report *r, const char *format, ...) {
    if (r->status != ICECORE_OK) return;
    r->status = ICECORE_ERROR_VALUE;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->text, (size_t)r->size, format, arguments);
    va_end(arguments);
}

/* Whether to look at this row as well: nothing was wrong so far, and nobody wants the call to end. */
static int goes_on(report *r, int64_t row) {
    if (r->status == ICECORE_OK && row % ICE_UNASKED == 0 && ice_interrupted()) r->status = ICECORE_INTERRUPTED;
    return r->status == ICECORE_OK;
}

/* Every slot that is not free lies in the open block or in one segment, once, and knows it. */
static void check_places(const icecore_index *index, uint8_t *seen, report *r) {
    const ice_slots *slots = &index->slots;
    int64_t used = 0, removed = 0;
    for (int64_t i = 0; i < index->open_count; i++) {
        int32_t slot = index->open[i];
        if (*ice_slot_state(slots, slot) != ICE_SLOT_USED || *ice_slot_home(slots, slot) != ICE_HOME_OPEN ||
            seen[slot]++)
            say(r, "slot %d of the open block is not a vector of its own", (int)slot);
        used++;
    }
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) {
        const ice_tree *s = index->sealed[n].segment;
        int64_t gone = 0;
        for (int64_t i = 0; s && i < s->count && goes_on(r, i); i++) {
            int32_t slot = s->order[i];
            uint8_t state = *ice_slot_state(slots, slot);
            if (state == ICE_SLOT_FREE || *ice_slot_home(slots, slot) != n || seen[slot]++)
                say(r, "slot %d of segment %d is not a vector of its own", (int)slot, n);
            gone += state == ICE_SLOT_REMOVED;
        }
        if (s) used += s->count - gone;
        removed += gone;
        if (r->status != ICECORE_OK) return;
        if (gone != index->sealed[n].removed) say(r, "segment %d has lost count of removed vectors", n);
    }
    int64_t taken = 0;
    for (int64_t s = 0; s < slots->count; s++) taken += *ice_slot_state(slots, s) != ICE_SLOT_FREE;
    if (used != index->used || removed != index->removed || taken != used + removed)
        say(r, "%lld vectors and %lld removed ones are in place, of %lld and %lld", (long long)used, (long long)removed,
            (long long)index->used, (long long)index->removed);
}

icecore_status ice_index_check_structure(const icecore_index *index, char *reason, int64_t reason_size) {
    report r = {reason, reason_size, ICECORE_OK};
    uint8_t *seen = ice_alloc(index->slots.count, 1);
    if (!seen) return ICECORE_ERROR_MEMORY;
    memset(seen, 0, (size_t)index->slots.count);
    check_places(index, seen, &r);
    ice_free(seen);
    return r.status;
}

static void check_ids(const icecore_index *index, report *r) {
    const ice_slots *slots = &index->slots;
    if (index->map.count != index->used) {
        if (!index->read_only) say(r, "%lld ids for %lld vectors", (long long)index->map.count, (long long)index->used);
        return;
    }
    for (int64_t s = 0; s < slots->count && goes_on(r, s); s++) {
        if (*ice_slot_state(slots, s) != ICE_SLOT_USED) continue;
        int64_t id = *ice_slot_id(slots, s);
        if (ice_id_map_find(&index->map, slots, id) != s) say(r, "id %lld belongs to two vectors", (long long)id);
        else if (id >= index->next_id && id < INT64_MAX) say(r, "id %lld would be given again", (long long)id);
    }
}

/* Vectors are finite, as those that are added. */
static void check_vectors(const icecore_index *index, const ice_kernels *kernels, float *buffer, report *r) {
    const ice_slots *slots = &index->slots;
    const ice_slot_rows rows = {kernels, slots, NULL};
    for (int64_t s = 0; s < slots->count && goes_on(r, s); s++) {
        if (*ice_slot_state(slots, s) == ICE_SLOT_FREE) continue;
        const float *x = ice_read_slot_row(&rows, s, buffer);
        for (int64_t t = 0; t < slots->dim; t++)
            if (!isfinite(x[t])) say(r, "the vector of slot %lld is not finite", (long long)s);
    }
}

/* Codes are within half a step of what they stand for; the smallest differences count as none (kernels->encode). */
static void check_codes(const ice_tree *s, int number, const ice_layer *layer, const ice_rows *children, float *buffer,
                        report *r) {
    for (int64_t p = 0; p < layer->parents; p++)
        for (int64_t c = layer->offset[p]; c < layer->offset[p + 1] && goes_on(r, c); c++) {
            const float *x = children->read(children->context, c, buffer), *mean = layer->mean + p * s->dim;
            for (int64_t t = 0; t < s->dim; t++) {
                float difference = x[t] - mean[t], step = layer->scale[c];
                float error = fabsf(difference - step * (float)(layer->code[c * layer->stride + t] - 128));
                const float margin = 0.501f * step + 1e-6f * fabsf(difference) + 127.0f / FLT_MAX;
                if (!(error <= margin) && isfinite(difference) && isfinite(step))
                    say(r, "segment %d: the code of child %lld is wrong", number, (long long)c);
            }
        }
}

static void check_lists(const ice_tree *s, int number, report *r) {
    const ice_lists *lists = &s->lists;
    for (int l = 0; l < lists->composites; l++)
        for (int j = 0; j < lists->simples; j++) {
            const float *sorted = j ? lists->sorted + ((int64_t)l * (lists->simples - 1) + j - 1) * s->count
                                    : lists->projection + (int64_t)l * lists->simples * s->count;
            for (int64_t c = 0; c < s->cells; c++)
                for (int64_t i = s->offset[c] + 1; i < s->offset[c + 1] && goes_on(r, i); i++)
                    if (!(sorted[i - 1] <= sorted[i]))
                        say(r, "segment %d: list %d of composite %d is not sorted", number, j, l);
        }
}

static const float *read_mean(const void *context, int64_t row, float *buffer) {
    (void)buffer;
    const ice_tree *const *s = context; /* the layer is in the second place */
    const ice_layer *layer = (const ice_layer *)s[1];
    return layer->mean + row * s[0]->dim;
}

static void check_segment(const icecore_index *index, const ice_kernels *kernels, int number, float *buffer,
                          report *r) {
    const ice_tree *s = index->sealed[number].segment;
    const ice_slot_rows slot_rows = {kernels, &index->slots, s->order};
    for (int i = 0; i < s->layers; i++) {
        const ice_layer *layer = &s->layer[i];
        if (!layer->code) continue;
        const void *pair[2] = {s, &s->layer[i + 1 < s->layers ? i + 1 : i]};
        ice_rows children = i + 1 < s->layers ? (ice_rows){read_mean, pair, layer->children, s->dim, NULL}
                                              : (ice_rows){ice_read_slot_row, &slot_rows, s->count, s->dim, NULL};
        check_codes(s, number, layer, &children, buffer, r);
    }
    check_lists(s, number, r);
}

static icecore_status check_contents(const icecore_index *index, const ice_kernels *kernels, float *buffer,
                                     char *reason, int64_t reason_size) {
    report r = {reason, reason_size, ICECORE_OK};
    check_ids(index, &r);
    check_vectors(index, kernels, buffer, &r);
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++)
        if (index->sealed[n].segment) check_segment(index, kernels, n, buffer, &r);
    return r.status;
}

icecore_status icecore_index_validate(icecore_index *index, char *reason, int64_t reason_size) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    reason[0] = '\0';
    float *buffer = ice_alloc(index->options.dim, sizeof *buffer);
    if (!buffer) return ICECORE_ERROR_MEMORY;
    icecore_status status = ice_lock_read(&index->lock);
    if (status == ICECORE_OK) {
        status = ice_index_check_structure(index, reason, reason_size);
        if (status == ICECORE_OK) status = check_contents(index, kernels, buffer, reason, reason_size);
        ice_unlock(&index->lock);
    }
    ice_free(buffer);
    return status;
}
