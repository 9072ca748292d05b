#include "index/search_reach.h"

#include <math.h>

#include "base/memory.h"

/* z / sqrt(dim), a cosine that a direction exceeds with a probability of at most 1 / (2 one_in). */
static float rare_cosine(double one_in, int64_t dim) {
    return (float)fmin(1.0, sqrt(2.0 * log(fmax(one_in, 1.0)) / (double)dim));
}

static ice_reach reach_of(const ice_search_call *call, const ice_layer *layer, int64_t parent, double keys,
                          double parents) {
    const icecore_index_options *o = &call->index->options;
    const int squared = o->metric == ICECORE_SQUARED_DISTANCE;
    const double one_in = parents / (2.0 * (double)call->search->k);
    const float scale = squared ? call->scale : 1.0f;
    const float length[2] = {layer->spread[parent] * scale, layer->radius[parent] * scale};
    const double ratio = length[1] > 0.0f ? (double)length[0] / (double)length[1] : 1.0;
    const double count[2] = {keys, keys * ratio * ratio};
    ice_reach reach;
    for (int i = 0; i < 2; i++) {
        reach.slope[i] = rare_cosine(one_in * count[i], o->dim) * length[i];
        reach.drop[i] = squared ? 0.5f * length[i] * length[i] : 0.0f;
    }
    return reach;
}

icecore_status ice_find_reach(ice_search_call *call) {
    const ice_forest *f = &call->forest;
    if (!call->search->extend || f->layers != 2 || call->index->options.composites || call->exact) return ICECORE_OK;
    const int64_t nodes = f->first[1][f->segments];
    call->reach = ice_alloc(nodes, sizeof *call->reach);
    if (!call->reach) return ICECORE_ERROR_MEMORY;
    for (int n = 0; n < f->segments; n++) {
        const ice_layer *layer = &f->segment[n]->layer[1];
        for (int64_t p = 0; p < layer->parents; p++) {
            const int64_t node = f->first[1][n] + p;
            const double keys =
                f->wanted[1] ? (double)f->wanted[1][node] : (double)(layer->offset[p + 1] - layer->offset[p]);
            call->reach[node] = reach_of(call, layer, p, keys, (double)nodes);
        }
    }
    return ICECORE_OK;
}

void ice_find_norms(ice_search_space *w) {
    const int64_t dim = w->call->index->options.dim;
    for (int64_t q = 0; q < w->count; q++) {
        const float *query = ice_scaled_query(w, q);
        double squared = 0.0;
        for (int64_t t = 0; t < dim; t++) squared += (double)query[t] * (double)query[t];
        w->norm[q] = (float)sqrt(squared);
    }
}

void ice_add_reach(const ice_search_space *w, const ice_reach *reach, int64_t nodes, int lines, const int32_t *queries,
                   int lanes, float *scores) {
    const int squared = w->call->index->options.metric == ICECORE_SQUARED_DISTANCE;
    float distance[ICE_PANEL];
    for (int lane = 0; lane < lanes; lane++) distance[lane] = w->norm[queries[lane]];
    for (int64_t i = 0; i < nodes; i++) {
        const ice_reach r = reach[i];
        float *score = scores + i * ICE_PANEL;
        for (int lane = 0; lane < lanes; lane++) {
            const float far = squared ? sqrtf(fmaxf(-2.0f * score[lane], 0.0f)) : distance[lane];
            const float typical = r.slope[0] * far - r.drop[0], farthest = r.slope[1] * far - r.drop[1];
            score[lane] += lines == 1 ? typical : fmaxf(typical, farthest);
        }
    }
}
