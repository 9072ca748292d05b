/* P-DCI at the picked parents, query by query: the union of the composites' candidates, compared exactly. */
#include "base/order.h"
#include "base/parallel.h"
#include "index/search_exact.h"
#include "index/search_lists.h"
#include "tree/lists.h"

static int is_candidate(const void *call, int32_t slot) { return ice_is_wanted(call, slot); }

static int64_t share(int64_t budget, int64_t part, int64_t whole) {
    if (budget == 0) return 0;
    int64_t own = (int64_t)((double)budget * (double)part / (double)whole + 0.999999);
    return own < 1 ? 1 : own;
}

/* For distances a query is taken in the segment's frame, as its rows are; for inner products, where the centre adds the
 * same to all, as it is. */
static void project_query(ice_search_space *w, int64_t q, const ice_tree *segment, float *projection) {
    const ice_search_call *call = w->call;
    const icecore_index_options *o = &call->index->options;
    const float *query = ice_scaled_query(w, q);
    const int simples = o->composites * o->simples;
    if (o->metric == ICECORE_INNER_PRODUCT) {
        ice_project_query(call->kernels, query, o->dim, call->index->directions, simples, projection);
        return;
    }
    ice_frame_row(segment, segment->layer[0].mean, call->queries + ice_query_row(w, q) * o->dim, w->framed);
    ice_project(call->kernels, w->framed, o->dim, 0.0f, 0.0f, call->index->directions, simples, projection);
}

void ice_search_lists(ice_search_space *w) {
    const ice_search_call *call = w->call;
    const ice_forest *f = &call->forest;
    const icecore_index_options *o = &call->index->options;
    const int last = f->layers - 1;
    float projection[ICECORE_MAX_COMPOSITES * ICECORE_MAX_SIMPLES];
    for (int64_t q = 0; q < w->count && !ice_interrupted(); q++) {
        const int32_t *pick = w->pick + q * call->nodes;
        int64_t whole = 0;
        for (int64_t i = 0; i < w->picks[q]; i++) whole += ice_wanted_below(f, last, pick[i]);
        int projected = -1; /* the segment in whose frame the query is projected */
        for (int64_t i = 0; i < w->picks[q]; i++) {
            int n = ice_forest_segment(f, last, pick[i]);
            const ice_tree *segment = f->segment[n];
            if (n != projected) project_query(w, q, segment, projection);
            projected = n;
            const int64_t cell = pick[i] - f->first[last][n], wanted = ice_wanted_below(f, last, pick[i]);
            const int64_t keys = ice_keys_below(segment, last, cell);
            int64_t found = 0;
            /* keys that are not wanted take their part of the pops, so that there are more of them */
            int64_t pops = share(call->search->visit, wanted, whole);
            if (wanted < keys) pops = (int64_t)((double)pops * (double)keys / (double)wanted + 0.999999);
            const ice_lists_query query = {.kernels = call->kernels,
                                           .projection = projection,
                                           .visit = pops,
                                           .retrieve = share(call->search->retrieve, wanted, whole),
                                           .wanted = is_candidate,
                                           .context = call,
                                           .spare = w->spare};
            for (int l = 0; l < o->composites; l++)
                found += ice_lists_candidates(&query, segment, l, cell, w->candidates + found);
            if (o->composites > 1) { /* the union: sorted by 32-bit number, each once */
                uint64_t *sorted = w->spare;
                int64_t at = 0;
                for (int64_t j = 0; j < found; j++) sorted[j] = (uint32_t)w->candidates[j];
                ice_sort(sorted, sorted + found, found);
                for (int64_t j = 0; j < found; j++)
                    if (j == 0 || sorted[j] != sorted[j - 1]) w->candidates[at++] = (int32_t)sorted[j];
                found = at;
            }
            ice_compare_exactly(w, q, segment, w->candidates, found);
        }
    }
}
