/* Down the tree, layer by layer: queries are gathered by the parent they opened, so that the children of a parent,
 * which lie together, are scored against a panel of queries at once.  Nodes of all segments compete with one another.
 */
#include <math.h>
#include <string.h>

#include "base/order.h"
#include "base/parallel.h"
#include "index/search_reach.h"
#include "index/search_tree.h"
#include "tree/codes.h"

void ice_encode_queries(ice_search_space *w) {
    const ice_search_call *call = w->call;
    const icecore_index_options *o = &call->index->options;
    for (int64_t q = 0; q < w->count; q++)
        ice_encode_query(call->kernels, ice_scaled_query(w, q), o->dim, w->stride, w->code + q * w->stride,
                         &w->code_scale[q], &w->code_offset[q]);
}

typedef struct {
    float base[ICE_PANEL], scale[ICE_PANEL];
    int32_t offset[ICE_PANEL];
} panel_of_codes;

/* The codes of some queries side by side in w->quads, and what goes with them: base is the score of the parent's mean.
 */
static void gather_panel(ice_search_space *w, const ice_layer *layer, int64_t parent, const int32_t *queries, int lanes,
                         panel_of_codes *p) {
    const ice_search_call *call = w->call;
    const int64_t dim = call->index->options.dim, stride = w->stride;
    const int squared = call->index->options.metric == ICECORE_SQUARED_DISTANCE;
    const float *mean = layer->mean + parent * dim;
    const void *row = mean;
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        if (lane >= lanes && lane % call->kernels->width == 0)
            break; /* kernels work on whole vectors, not on whole panels */
        const int32_t q = queries[lane < lanes ? lane : 0];
        const float *query = ice_scaled_query(w, q);
        int8_t *quads = w->quads + (ptrdiff_t)lane * 4;
        if (squared) {
            p->scale[lane] = call->scale * call->kernels->encode_lane(query, mean, call->scale, dim, quads,
                                                                      &p->offset[lane], &p->base[lane]);
            continue;
        }
        p->scale[lane] = w->code_scale[q];
        p->offset[lane] = w->code_offset[q];
        for (int64_t t = 0; t < stride; t += 4) memcpy(quads + t * ICE_PANEL, w->code + q * stride + t, 4);
        call->kernels->gathered_scores(query, dim, call->scale, ICECORE_FLOAT32, &row, 1, &p->base[lane]);
    }
}

/* Scores of a block of children; those of the parent's mean are the panel's base. */
static void score_children(ice_search_space *w, const ice_tree *segment, const ice_layer *layer,
                           const panel_of_codes *p, int64_t child, int64_t count, int lanes, float *scores) {
    const ice_search_call *call = w->call;
    const float *bias = layer->bias ? layer->bias + child : NULL;
    if (bias && segment->scale != call->scale) {
        const float factor = call->scale / segment->scale;
        for (int64_t i = 0; i < count; i++) w->bias[i] = bias[i] * factor * factor;
        bias = w->bias;
    }
    const ice_code_panel panel = {w->quads, lanes, p->base, p->scale, p->offset};
    call->kernels->code_scores(&panel, layer->code + child * layer->stride, layer->stride, layer->scale + child, bias,
                               count, scores);
}

/* Scores the children of one parent in segment n for a panel of queries and collects them. */
static void scan(ice_search_space *w, int n, int layer_number, int64_t parent, const int32_t *queries, int lanes) {
    const ice_search_call *call = w->call;
    const ice_forest *f = &call->forest;
    const ice_kernels *kernels = call->kernels;
    const ice_tree *segment = f->segment[n];
    const ice_layer *layer = &segment->layer[layer_number];
    const int is_last = layer_number == f->layers - 1;
    const int32_t *wanted = is_last ? NULL : f->wanted[layer_number + 1]; /* how many are below each child, or NULL */
    const int64_t first_child = is_last ? 0 : f->first[layer_number + 1][n];
    float threshold[ICE_PANEL];
    panel_of_codes p;
    gather_panel(w, layer, parent, queries, lanes, &p);
    for (int lane = 0; lane < lanes; lane++) threshold[lane] = w->collector.threshold[queries[lane]];
    float lowest = INFINITY;
    for (int lane = 0; lane < lanes; lane++) lowest = fminf(lowest, threshold[lane]);
    for (int lane = lanes; lane < ICE_PANEL; lane++) threshold[lane] = INFINITY;
    const int64_t begin = layer->offset[parent], end = layer->offset[parent + 1];
    const int filtered = call->allowed || call->index->removed;
    /* neighbours in time are alike: of many blocks every eighth goes first, which raises the threshold sooner */
    const int64_t blocks = (end - begin + ICE_KEY_BLOCK - 1) / ICE_KEY_BLOCK, step = blocks < 16 ? 1 : 8;
    for (int64_t i = 0, place = 0; i < blocks; i++, place += step) {
        if (place >= blocks) place = place % step + 1;
        const int64_t child = begin + place * ICE_KEY_BLOCK, block = ice_min(end - child, ICE_KEY_BLOCK);
        score_children(w, segment, layer, &p, child, block, lanes, w->scores);
        if (!is_last && ice_ranks_by_reach(call))
            ice_add_reach(w, call->reach + first_child + child, block, 1, queries, lanes, w->scores);
        if (lowest == -INFINITY && !filtered && block > w->collector.keep) {
            /* the first scores of a query: as many as are kept reach this, so nothing below is wanted */
            float bound[ICE_PANEL];
            kernels->nth_largest(w->scores, block, lanes, w->collector.keep, bound);
            for (int lane = 0; lane < lanes; lane++)
                if (bound[lane] > threshold[lane])
                    threshold[lane] = w->collector.threshold[queries[lane]] = bound[lane];
            lowest = 0.0f;
        }
        int64_t found = kernels->find_at_least(w->scores, block, lanes, threshold, w->places);
        for (int64_t k = 0; k < found; k++) {
            const int32_t at = w->places[k], lane = at % ICE_PANEL;
            int64_t number = child + at / ICE_PANEL;
            if (is_last) {
                int32_t slot = segment->order[number];
                if (filtered && !ice_is_wanted(call, slot)) continue;
                number = slot;
            } else {
                number += first_child;
                if (wanted && !wanted[number]) continue;
            }
            ice_collector_add(&w->collector, queries[lane], w->scores[at], (int32_t)number);
        }
        for (int lane = 0; lane < lanes; lane++) threshold[lane] = w->collector.threshold[queries[lane]];
    }
    for (int lane = 0; lane < lanes; lane++) w->visited[queries[lane]] += end - begin;
}

/* What the collector holds becomes each query's picks in `layer`: the best `view`, or fewer once they hold `visit`
 * keys.  With a filter a parent counts by the share of its keys that is allowed, and so do its keys.  The best come
 * first, until they hold ICE_LEADING times the keys that are wanted: done before the others, they set a threshold that
 * few of those pass. */
void ice_pick_parents(ice_search_space *w, int layer) {
    const ice_search_call *call = w->call;
    const ice_forest *f = &call->forest;
    const int64_t enough = ICE_LEADING * call->keep, visit = call->search->visit > 0 ? call->search->visit : INT64_MAX;
    uint64_t *sorted = w->spare;
    for (int64_t q = 0; q < w->count; q++) {
        ice_collector_cut(&w->collector, q);
        const float *scores = w->collector.scores + q * w->collector.capacity;
        const int32_t *numbers = w->collector.numbers + q * w->collector.capacity;
        int64_t count = w->collector.count[q], keys = 0, picks = 0;
        double parents = 0.0;
        for (int64_t j = 0; j < count; j++) sorted[j] = (uint64_t)~ice_ordered(scores[j]) << 32 | (uint32_t)numbers[j];
        ice_sort(sorted, sorted + count, count);
        w->leading[q] = 0;
        for (int64_t i = 0; i < count && keys < visit && parents < (double)call->view; i++) {
            int32_t node = (int32_t)(uint32_t)sorted[i];
            w->pick[q * call->nodes + picks++] = node;
            w->leading[q] += keys < enough;
            keys += ice_wanted_below(f, layer, node);
            parents += call->allowed ? (double)f->wanted[layer][node] / (double)f->used[layer][node] : 1.0;
        }
        w->picks[q] = picks;
    }
}

void ice_pick_all(ice_search_space *w, int layer) {
    const int64_t parents = w->call->forest.first[layer][w->call->forest.segments];
    const int32_t *wanted = w->call->forest.wanted[layer];
    for (int64_t q = 0; q < w->count; q++) {
        int32_t *pick = w->pick + q * w->call->nodes;
        w->picks[q] = w->leading[q] = 0;
        for (int64_t node = 0; node < parents; node++)
            if (!wanted || wanted[node]) pick[w->picks[q]++] = (int32_t)node;
    }
}

/* Sorts the picks by parent, the leading ones or the others: the queries of parent n are by_node[node_begin[n]] ..
 * by_node[node_begin[n + 1] - 1]. */
static void group_by_parent(ice_search_space *w, int64_t parents, int leading) {
    const int64_t nodes = w->call->nodes;
    memset(w->node_begin, 0, (size_t)(parents + 1) * sizeof *w->node_begin);
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t q = 0; q < w->count; q++) {
            int64_t end = leading ? w->leading[q] : w->picks[q];
            for (int64_t i = leading ? 0 : w->leading[q]; i < end; i++) {
                int32_t node = w->pick[q * nodes + i];
                if (pass == 0) w->node_begin[node + 1]++;
                else w->by_node[w->node_begin[node]++] = (int32_t)q;
            }
        }
        if (pass == 0)
            for (int64_t n = 0; n < parents; n++) w->node_begin[n + 1] += w->node_begin[n];
    }
    memmove(w->node_begin + 1, w->node_begin, (size_t)parents * sizeof *w->node_begin);
    w->node_begin[0] = 0;
}

static void scan_picks(ice_search_space *w, int layer, int leading) {
    const ice_search_call *call = w->call;
    const ice_forest *f = &call->forest;
    group_by_parent(w, f->first[layer][f->segments], leading);
    for (int n = 0; n < f->segments; n++) {
        for (int64_t parent = 0; parent < f->segment[n]->layer[layer].parents; parent++) {
            int64_t node = f->first[layer][n] + parent, end = w->node_begin[node + 1];
            if (ice_interrupted()) return;
            for (int64_t i = w->node_begin[node]; i < end; i += ICE_PANEL)
                scan(w, n, layer, parent, w->by_node + i, (int)ice_min(end - i, ICE_PANEL));
        }
    }
}

void ice_scan_leading(ice_search_space *w, int layer) {
    scan_picks(w, layer, 1);
    for (int64_t q = 0; q < w->count; q++) ice_collector_cut(&w->collector, q);
}

void ice_scan_others(ice_search_space *w, int layer) { scan_picks(w, layer, 0); }

/* Appends the nodes whose scores reach the threshold to the picks of a panel's queries, up to `max_picks` in all; the
 * leading ones are there already. */
static void take_picks(ice_search_space *w, int64_t first, int lanes, int64_t max_picks, const float *threshold) {
    const ice_search_call *call = w->call;
    const int32_t *wanted = call->forest.wanted[1];
    const int64_t nodes = call->forest.first[1][call->forest.segments];
    for (int64_t j = 0; j < nodes; j += ICE_KEY_BLOCK) {
        float *scores = w->node_scores + j * ICE_PANEL;
        int64_t found =
            call->kernels->find_at_least(scores, ice_min(nodes - j, ICE_KEY_BLOCK), lanes, threshold, w->places);
        for (int64_t i = 0; i < found; i++) {
            int64_t q = first + w->places[i] % ICE_PANEL;
            int32_t node = (int32_t)(j + w->places[i] / ICE_PANEL);
            int taken = wanted && !wanted[node];
            for (int64_t t = 0; t < w->leading[q] && !taken; t++) taken = w->pick[q * call->nodes + t] == node;
            if (!taken && w->picks[q] < max_picks) w->pick[q * call->nodes + w->picks[q]++] = node;
        }
    }
}

/* Scores of the first layer's nodes for a panel of queries, those of all segments, in w->node_scores; with_reach: what
 * keys below them may score. */
static void score_roots(ice_search_space *w, int64_t first, int lanes, int lines) {
    const ice_forest *f = &w->call->forest;
    int32_t queries[ICE_PANEL];
    for (int lane = 0; lane < lanes; lane++) queries[lane] = (int32_t)(first + lane);
    for (int n = 0; n < f->segments; n++) {
        const ice_layer *layer = &f->segment[n]->layer[0];
        panel_of_codes p;
        gather_panel(w, layer, 0, queries, lanes, &p);
        for (int64_t child = 0; child < layer->children; child += ICE_KEY_BLOCK) {
            const int64_t node = f->first[1][n] + child, count = ice_min(layer->children - child, ICE_KEY_BLOCK);
            float *scores = w->node_scores + node * ICE_PANEL;
            score_children(w, f->segment[n], layer, &p, child, count, lanes, scores);
            if (lines) ice_add_reach(w, w->call->reach + node, count, lines, queries, lanes, scores);
        }
    }
    for (int lane = 0; lane < lanes; lane++) w->visited[first + lane] += f->first[1][f->segments];
}

/* Nodes with nothing wanted get the least score of the others. */
static void put_last(float *scores, const int32_t *wanted, int64_t nodes) {
    float minimum[ICE_PANEL];
    for (int lane = 0; lane < ICE_PANEL; lane++) minimum[lane] = INFINITY;
    for (int64_t node = 0; node < nodes; node++)
        for (int lane = 0; lane < ICE_PANEL && wanted[node]; lane++)
            minimum[lane] = fminf(minimum[lane], scores[node * ICE_PANEL + lane]);
    for (int64_t node = 0; node < nodes; node++)
        if (!wanted[node]) memcpy(scores + node * ICE_PANEL, minimum, sizeof minimum);
}

/* By inner product: the nodes whose typical keys may score most, half as many as the view. */
static void pick_by_reach(ice_search_space *w, int64_t first, int lanes, int64_t held, int64_t keep) {
    const ice_search_call *call = w->call;
    const int32_t *wanted = call->forest.wanted[1];
    const int64_t nodes = call->forest.first[1][call->forest.segments];
    float threshold[ICE_PANEL];
    int32_t queries[ICE_PANEL];
    int64_t leading[ICE_PANEL];
    for (int lane = 0; lane < lanes; lane++) {
        queries[lane] = (int32_t)(first + lane);
        leading[lane] = w->leading[first + lane];
        w->leading[first + lane] = w->picks[first + lane]; /* not to be taken twice */
    }
    ice_add_reach(w, call->reach, nodes, 1, queries, lanes, w->node_scores);
    if (held < nodes) put_last(w->node_scores, wanted, nodes);
    call->kernels->nth_largest(w->node_scores, nodes, lanes, (keep + 1) / 2, threshold);
    take_picks(w, first, lanes, keep + (keep + 1) / 2, threshold);
    for (int lane = 0; lane < lanes; lane++) w->leading[first + lane] = leading[lane];
}

/* The first layer, where all queries meet all nodes: a panel's scores lie together, and its lanes choose side by side.
 */
void ice_pick_from_roots(ice_search_space *w) {
    const ice_search_call *call = w->call;
    const ice_forest *f = &call->forest;
    const ice_kernels *kernels = call->kernels;
    const int32_t *wanted = f->wanted[1];
    const int64_t nodes = f->first[1][f->segments], keys = call->index->used - call->index->open_count;
    int64_t held = 0; /* nodes that hold keys */
    for (int64_t node = 0; node < nodes; node++) held += !wanted || wanted[node];
    const int64_t keep = ice_min(call->keep_nodes, held), lead = ice_max(1, ICE_LEADING * call->keep * held / keys);
    for (int64_t first = 0; first < w->count; first += ICE_PANEL) {
        int lanes = (int)ice_min(w->count - first, ICE_PANEL);
        float threshold[ICE_PANEL];
        score_roots(w, first, lanes, 0);
        if (held < nodes) put_last(w->node_scores, wanted, nodes);
        for (int lane = 0; lane < lanes; lane++) w->picks[first + lane] = w->leading[first + lane] = 0;
        if (lead < keep) {
            kernels->nth_largest(w->node_scores, nodes, lanes, lead, threshold);
            take_picks(w, first, lanes, lead, threshold);
        }
        for (int lane = 0; lane < lanes; lane++) w->leading[first + lane] = w->picks[first + lane];
        kernels->nth_largest(w->node_scores, nodes, lanes, keep, threshold);
        take_picks(w, first, lanes, keep, threshold);
        if (ice_ranks_by_reach(call)) pick_by_reach(w, first, lanes, held, keep);
    }
}

/* ---- Beyond the field of view ---- */

/* The k-th best score that was collected for a query; -inf where there are no more than k. */
static float kth_best(ice_search_space *w, int64_t q) {
    const int64_t k = w->call->search->k;
    ice_collector_cut(&w->collector, q);
    const int64_t count = w->collector.count[q];
    if (count <= k) return -INFINITY;
    memcpy(w->final_scores, w->collector.scores + q * w->collector.capacity, (size_t)count * sizeof(float));
    memcpy(w->final_slots, w->collector.numbers + q * w->collector.capacity, (size_t)count * sizeof(int32_t));
    return w->collector.kernels->keep_largest(w->final_scores, w->final_slots, count, k);
}

void ice_extend(ice_search_space *w) {
    const ice_forest *f = &w->call->forest;
    const int64_t nodes = f->first[1][f->segments];
    if (nodes <= w->call->keep_nodes && !w->call->allowed) return; /* all are picked */
    for (int64_t first = 0; first < w->count; first += ICE_PANEL) {
        const int lanes = (int)ice_min(w->count - first, ICE_PANEL);
        float threshold[ICE_PANEL];
        for (int lane = 0; lane < lanes; lane++) threshold[lane] = kth_best(w, first + lane);
        score_roots(w, first, lanes, 2);
        for (int lane = 0; lane < lanes; lane++) w->leading[first + lane] = w->picks[first + lane];
        take_picks(w, first, lanes, nodes, threshold);
    }
    scan_picks(w, 1, 0);
}
