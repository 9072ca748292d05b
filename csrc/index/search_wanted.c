/* Which vectors a search may return, and how many of them lie below each parent of the trees. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "index/search_wanted.h"

/* Parents of a layer in all segments. */
static int64_t parents_in(const ice_forest *f, int layer) { return f->first[layer][f->segments]; }

/* Adds up what lies below the parents of all layers but the last. */
static void sum_layers(const ice_forest *f, int32_t *const *below) {
    for (int layer = f->layers - 2; layer >= 0; layer--)
        for (int n = 0; n < f->segments; n++) {
            const ice_layer *own = &f->segment[n]->layer[layer];
            const int32_t *children = below[layer + 1] + f->first[layer + 1][n];
            for (int64_t p = 0; p < own->parents; p++) {
                int32_t sum = 0;
                for (int64_t child = own->offset[p]; child < own->offset[p + 1]; child++) sum += children[child];
                below[layer][f->first[layer][n] + p] = sum;
            }
        }
}

/* Admits an id to the answer, or takes it out; one that is absent does not matter. */
static void admit(ice_search_call *call, const int64_t *place_of, int64_t id, int is_allowed) {
    const icecore_index *index = call->index;
    int32_t slot = ice_id_map_find(&index->map, &index->slots, id);
    if (slot < 0 || call->allowed[slot] == is_allowed) return;
    const int change = is_allowed ? 1 : -1;
    const uint8_t home = *ice_slot_home(&index->slots, slot);
    call->allowed[slot] = (uint8_t)is_allowed;
    call->wanted += change;
    if (home != ICE_HOME_OPEN)
        call->forest.wanted[call->forest.layers - 1][place_of[home] + *ice_slot_cell(&index->slots, slot)] += change;
}

static icecore_status filter(ice_search_call *call) {
    const icecore_search *s = call->search;
    const icecore_index *index = call->index;
    ice_forest *f = &call->forest;
    const int last = f->layers - 1;
    int64_t place_of[ICE_MAX_SEGMENTS] = {0}; /* of each segment's first cell */
    for (int n = 0, at = 0; n < ICE_MAX_SEGMENTS; n++)
        if (ice_used_in(&index->sealed[n])) place_of[n] = f->first[last][at++];
    call->allowed = ice_alloc(index->slots.count, 1);
    if (!call->allowed) return ICECORE_ERROR_MEMORY;
    memset(call->allowed, !s->allowed, (size_t)index->slots.count);
    if (s->allowed) {
        call->wanted = 0;
        memset(f->wanted[last], 0, (size_t)parents_in(f, last) * sizeof(int32_t));
    }
    for (int64_t i = 0; i < s->allowed_count; i++) admit(call, place_of, s->allowed[i], 1);
    for (int64_t i = 0; i < s->excluded_count; i++) admit(call, place_of, s->excluded[i], 0);
    return ICECORE_OK;
}

icecore_status ice_find_wanted(ice_search_call *call) {
    const icecore_search *s = call->search;
    ice_forest *f = &call->forest;
    const int last = f->layers - 1, filtered = s->allowed || s->excluded;
    call->wanted = call->index->used;
    if (!filtered && !call->index->removed) return ICECORE_OK;
    int64_t parents = 0;
    for (int layer = 0; layer < f->layers; layer++) parents += parents_in(f, layer);
    call->below = ice_alloc(2 * parents, sizeof *call->below);
    if (!call->below) return ICECORE_ERROR_MEMORY;
    int32_t *next = call->below;
    for (int layer = 0; layer < f->layers; layer++) {
        f->used[layer] = next;
        f->wanted[layer] = next + parents;
        next += parents_in(f, layer);
    }
    for (int n = 0; n < f->segments; n++)
        memcpy(f->used[last] + f->first[last][n], f->segment[n]->used, (size_t)f->segment[n]->cells * sizeof(int32_t));
    memcpy(f->wanted[last], f->used[last], (size_t)parents_in(f, last) * sizeof(int32_t));
    icecore_status status = filtered ? filter(call) : ICECORE_OK;
    sum_layers(f, f->used);
    sum_layers(f, f->wanted);
    return status;
}

/* What a search of the trees would compare a query with, on average: the means below the roots, and the vectors of the
 * cells that it opens. */
static double visits(const ice_search_call *call) {
    const icecore_search *s = call->search;
    const ice_forest *f = &call->forest;
    const int last = f->layers - 1;
    double cells = 0.0, used = 0.0, wanted = 0.0, shares = 0.0,
           means = 0.0; /* of cells that hold a vector that is wanted */
    for (int64_t c = 0; c < parents_in(f, last); c++) {
        if (!f->wanted[last][c]) continue;
        cells++;
        used += f->used[last][c];
        wanted += f->wanted[last][c];
        shares += (double)f->wanted[last][c] / (double)f->used[last][c];
    }
    if (cells == 0.0) return 0.0;
    double opened = cells;
    if (s->field_of_view > 0) opened = fmin(opened, (double)call->view * cells / shares);
    if (call->index->options.composites) {
        double candidates = opened / cells * wanted, lists = (double)call->index->options.composites;
        if (s->visit > 0) candidates = fmin(candidates, (double)s->visit * lists);
        return s->retrieve > 0 ? fmin(candidates, (double)s->retrieve * lists) : candidates;
    }
    if (s->visit > 0) opened = fmin(opened, (double)s->visit * cells / wanted);
    for (int64_t node = 0; last > 0 && node < parents_in(f, 1); node++) means += f->wanted[1][node] > 0;
    return means + opened * used / cells;
}

int ice_exact_is_less(const ice_search_call *call) { return call->allowed && (double)call->wanted < visits(call); }
