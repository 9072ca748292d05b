/* Searching, for chunks of queries at a time.  A chunk goes down the tree, keeping the best parents of each layer, at
 * the end the best keys; those are compared exactly. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"
#include "index/search_exact.h"
#include "index/search_lists.h"
#include "index/search_reach.h"
#include "index/search_tree.h"
#include "index/search_wanted.h"
#include "tree/frame.h"
#include "tree/lists.h"

/* Queries of a chunk: enough that a panel of those which open one cell is full, few enough to share between threads and
 * to fit a cache. */
#define MAX_CHUNK 4096
/* Memory of a chunk's collector that is not exceeded while a chunk has more than a panel of queries. */
#define MAX_COLLECTOR ((int64_t)32 << 20)
/* Room beyond what is kept: the larger, the rarer a cut. */
#define SLACK 64

/* Lays out a chunk's memory; with scratch = NULL only measures it. */
static size_t lay_out(const ice_search_call *call, void *scratch, ice_search_space *w) {
    ice_arena a = {scratch, 0};
    const icecore_index_options *o = &call->index->options;
    const int64_t chunk = call->chunk, stride = w->stride = (o->dim + 3) & ~(int64_t)3;
    int64_t parents = 1;
    for (int i = 0; i < call->forest.layers; i++)
        parents = ice_max(parents, call->forest.first[i][call->forest.segments]);
    const int64_t listed = o->composites ? call->forest.largest_cell : 0;
    w->collector.capacity = call->capacity;
    w->collector.kernels = call->kernels;
    w->collector.scores = ice_arena_take(&a, chunk * call->capacity, sizeof(float));
    w->collector.numbers = ice_arena_take(&a, chunk * call->capacity, sizeof(int32_t));
    w->collector.count = ice_arena_take(&a, chunk, sizeof(int64_t));
    w->collector.threshold = ice_arena_take(&a, chunk, sizeof(float));
    w->query = ice_arena_take(&a, chunk * o->dim, sizeof(float));
    w->scale = ice_arena_take(&a, chunk, sizeof(float));
    w->norm = ice_arena_take(&a, chunk, sizeof(float));
    w->pick = ice_arena_take(&a, chunk * call->nodes, sizeof(int32_t));
    w->by_node = ice_arena_take(&a, chunk * call->nodes, sizeof(int32_t));
    w->picks = ice_arena_take(&a, chunk, sizeof(int64_t));
    w->leading = ice_arena_take(&a, chunk, sizeof(int64_t));
    w->node_begin = ice_arena_take(&a, parents + 1, sizeof(int64_t));
    w->visited = ice_arena_take(&a, chunk, sizeof(int64_t));
    w->code = ice_arena_take(&a, o->metric == ICECORE_INNER_PRODUCT ? chunk * stride : 0, 1);
    w->code_scale = ice_arena_take(&a, chunk, sizeof(float));
    w->code_offset = ice_arena_take(&a, chunk, sizeof(int32_t));
    w->quads = ice_arena_take(&a, stride * ICE_PANEL, 1);
    w->scores = ice_arena_take(&a, ICE_KEY_BLOCK * ICE_PANEL, sizeof(float));
    const int64_t roots = call->forest.layers > 1 ? call->forest.first[1][call->forest.segments] : 0;
    w->node_scores = ice_arena_take(&a, roots * ICE_PANEL, sizeof(float));
    w->places = ice_arena_take(&a, ICE_KEY_BLOCK * ICE_PANEL, sizeof(int32_t));
    w->panel = ice_arena_take(&a, o->dim * ICE_PANEL, sizeof(float));
    w->rows = ice_arena_take(&a, o->dim * ICE_KEY_BLOCK, sizeof(float));
    w->bias = ice_arena_take(&a, ICE_KEY_BLOCK, sizeof(float));
    w->framed = ice_arena_take(&a, o->dim, sizeof(float));
    w->candidates = ice_arena_take(&a, listed * o->composites, sizeof(int32_t));
    w->spare =
        ice_arena_take(&a, ice_max(ice_max(ICE_LISTS_SPARE(listed), 2 * listed * o->composites), 3 * call->capacity),
                       sizeof(uint64_t));
    w->collector.spare = w->spare;
    w->coded = ice_arena_take(&a, call->capacity, sizeof(float));
    w->final_scores = ice_arena_take(&a, call->capacity, sizeof(float));
    w->final_slots = ice_arena_take(&a, call->capacity, sizeof(int32_t));
    w->rank = ice_arena_take(&a, call->capacity, sizeof(int32_t));
    return a.used;
}

/* Inner products of one query keep their order whatever it is multiplied by: its largest component becomes 2^-16, so
 * that no sum over components overflows.  Squared distances are all taken on one scale. */
static void scale_queries(ice_search_space *w) {
    const ice_search_call *call = w->call;
    const int64_t dim = call->index->options.dim;
    for (int64_t q = 0; q < w->count; q++) {
        const float *query = call->queries + ice_query_row(w, q) * dim;
        float scale = call->scale, largest = 0.0f;
        if (scale == 0.0f) {
            for (int64_t t = 0; t < dim; t++) largest = fmaxf(largest, fabsf(query[t]));
            scale = largest > 0.0f ? exp2f(fminf(-16.0f - (float)ilogbf(largest), 126.0f)) : 1.0f;
        }
        w->scale[q] = scale;
        for (int64_t t = 0; t < dim; t++) w->query[q * dim + t] = query[t] * scale;
    }
}

static void answer(ice_search_space *w, int64_t q) {
    const ice_search_call *call = w->call;
    const int64_t k = call->search->k, row = ice_query_row(w, q);
    const int squared = call->index->options.metric == ICECORE_SQUARED_DISTANCE;
    int64_t found = ice_min(ice_compare_kept(w, q), k);
    const int in_double = squared && ice_is_out_of_scale(w, q, found);
    if (in_double) found = ice_find_in_double(w, q);
    for (int64_t i = 0; i < found; i++) {
        call->ids[row * k + i] = *ice_slot_id(&call->index->slots, w->final_slots[i]);
        float score = w->final_scores[i];
        if (!in_double) score /= w->scale[q];
        call->scores[row * k + i] = squared && !in_double ? -2.0f * (score / w->scale[q]) + 0.0f : score;
    }
    for (int64_t i = found; i < k; i++) {
        call->ids[row * k + i] = -1;
        call->scores[row * k + i] = NAN;
    }
    call->counts[row] = found;
    if (call->visited) call->visited[row] = w->visited[q] + (call->rows ? call->visited[row] : 0);
}

static void search_chunk(void *context, int64_t number, void *scratch) {
    const ice_search_call *call = context;
    if (!scratch) return;
    ice_search_space w = {.call = call, .first = number * call->chunk};
    w.count = ice_min(call->count - w.first, call->chunk);
    lay_out(call, scratch, &w);
    scale_queries(&w);
    memset(w.visited, 0, (size_t)w.count * sizeof *w.visited);
    const ice_forest *f = &call->forest;
    if (call->exact) {
        ice_collector_clear(&w.collector, w.count, call->keep, &call->index->slots);
        ice_scan_exactly(&w, NULL, call->index->slots.count);
    } else {
        const int lists = call->index->options.composites > 0;
        if (call->index->options.metric == ICECORE_INNER_PRODUCT) ice_encode_queries(&w);
        if (call->reach) ice_find_norms(&w);
        if (f->segments) ice_pick_all(&w, 0);
        for (int layer = 0; f->segments && layer + 1 < f->layers; layer++) {
            const int64_t below = f->first[layer + 1][f->segments];
            const int by_number = call->search->visit == 0 && !call->allowed; /* each parent counts as one */
            if (by_number && below <= call->keep_nodes) {
                ice_pick_all(&w, layer + 1);
                continue;
            }
            if (by_number && layer == 0) {
                ice_pick_from_roots(&w);
                continue;
            }
            ice_collector_clear(&w.collector, w.count, ice_min(call->keep_nodes, below), NULL);
            ice_scan_leading(&w, layer);
            ice_scan_others(&w, layer);
            ice_pick_parents(&w, layer + 1);
        }
        ice_collector_clear(&w.collector, w.count, call->keep, &call->index->slots);
        if (f->segments && !lists) ice_scan_leading(&w, f->layers - 1);
        ice_scan_exactly(&w, call->index->open, call->index->open_count); /* few of which pass the threshold by now */
        if (f->segments && !lists) ice_scan_others(&w, f->layers - 1);
        if (f->segments && lists) ice_search_lists(&w);
        if (f->segments && call->reach) ice_extend(&w);
    }
    for (int64_t q = 0; q < w.count && !ice_interrupted(); q++) answer(&w, q);
}

/* The scale of squared distances: the segments' least, since it is the largest distances that must not overflow;
 * without segments, of the open block. */
static icecore_status find_scale(ice_search_call *call) {
    const icecore_index *index = call->index;
    const ice_forest *f = &call->forest;
    if (index->options.metric != ICECORE_SQUARED_DISTANCE) return ICECORE_OK;
    call->scale = INFINITY;
    for (int n = 0; n < f->segments; n++) call->scale = fminf(call->scale, f->segment[n]->scale);
    if (f->segments) return ICECORE_OK;
    float *row = ice_alloc(index->options.dim, sizeof *row);
    if (!row) return ICECORE_ERROR_MEMORY;
    const ice_slot_rows open = {call->kernels, &index->slots, index->open};
    const ice_rows rows = {
        .read = ice_read_slot_row, .context = &open, .count = index->open_count, .dim = index->options.dim};
    call->scale = ice_frame_scale(&rows, NULL, row);
    ice_free(row);
    return ICECORE_OK;
}

/* Parents that are kept.  By default, of segments of n_i of all n keys, the sum of sqrt(n_i / n) times as many as of
 * one segment: their cells are smaller, and by about that factor more in all. */
static int64_t find_view(const ice_search_call *call) {
    const ice_forest *f = &call->forest;
    const int64_t view = call->search->field_of_view > 0 ? call->search->field_of_view : INT64_MAX;
    if (!call->search->extend || view == INT64_MAX) return view;
    double keys = 0.0, factor = 0.0;
    for (int n = 0; n < f->segments; n++) keys += (double)f->segment[n]->count;
    for (int n = 0; n < f->segments; n++) factor += sqrt((double)f->segment[n]->count / keys);
    return ice_max(view, (int64_t)ceil(factor * (double)view));
}

static void plan_search(ice_search_call *call, int threads) {
    const icecore_search *s = call->search;
    const ice_forest *f = &call->forest;
    const int lists = call->index->options.composites > 0 && !call->exact;
    int64_t parents = 1;
    for (int i = 0; i < f->layers; i++) parents = ice_max(parents, f->first[i][f->segments]);
    /* parents that hold few that are allowed count for little, so that any number may be needed */
    call->keep_nodes = s->field_of_view > 0 && !call->allowed ? ice_min(call->view, parents) : parents;
    call->nodes = call->reach ? parents : ice_max(call->keep_nodes, f->segments); /* every segment's root is picked */
    /* what rounding of codes and of float32 may misplace is compared exactly: a quarter more than asked for, many more
     * where that was not enough */
    int64_t margin = call->rows ? 8 * s->k + 256 : s->k + s->k / 4 + 8;
    call->keep = ice_max(s->k, s->retrieve > 0 ? s->retrieve : margin);
    if (lists) call->keep = s->k;
    else if (call->exact) call->keep = margin;
    call->keep = ice_min(call->keep, ice_max(call->wanted, 1));
    call->capacity = ice_max(2 * call->keep + SLACK, ice_min(2 * call->keep_nodes + SLACK, parents));
    int64_t cells = f->layers ? f->first[f->layers - 1][f->segments] : 1;
    int64_t chunk = ice_max(ICE_PANEL * cells / ice_max(call->keep_nodes, 1), 512);
    chunk = ice_min(chunk, MAX_CHUNK);
    chunk = ice_min(chunk, (call->count + threads - 1) / threads);
    chunk = ice_min(chunk, MAX_COLLECTOR / (8 * call->capacity + 8 * call->nodes));
    chunk = ice_max(chunk, 1);
    /* whole panels */
    if (chunk > ICE_PANEL) chunk = (chunk + ICE_PANEL - 1) / ICE_PANEL * ICE_PANEL;
    call->chunk = chunk;
}

static icecore_status search_queries(ice_search_call *call, int threads) {
    plan_search(call, threads);
    ice_search_space unused;
    return ice_parallel_for((call->count + call->chunk - 1) / call->chunk, threads, lay_out(call, NULL, &unused),
                            search_chunk, call);
}

/* Once more, with more candidates, for the queries that are unsure: near-duplicates by the dozen, which codes that
 * span other vectors as well do not tell apart. */
static icecore_status search_again(ice_search_call *call, int threads) {
    int64_t count = 0;
    for (int64_t q = 0; q < call->count; q++) count += call->unsure[q];
    if (count == 0) return ICECORE_OK;
    call->rows = ice_alloc(count, sizeof *call->rows);
    if (!call->rows) return ICECORE_ERROR_MEMORY;
    for (int64_t q = 0, next = 0; q < call->count; q++)
        if (call->unsure[q]) call->rows[next++] = q;
    call->count = count;
    return search_queries(call, threads);
}

static icecore_status search_locked(ice_search_call *call) {
    const icecore_search *s = call->search;
    const int threads = s->threads > 0 ? s->threads : icecore_default_threads();
    const int by_codes = call->index->options.composites == 0;
    if (call->count == 0) return ICECORE_OK;
    ice_forest_find(call->index, &call->forest);
    icecore_status status = ice_find_wanted(call);
    if (status == ICECORE_OK) status = find_scale(call);
    if (status != ICECORE_OK) return status;
    call->view = find_view(call);
    call->exact = s->exact || ice_exact_is_less(call);
    status = ice_find_reach(call);
    if (status != ICECORE_OK) return status;
    if (by_codes && !call->exact && s->retrieve == 0) {
        call->unsure = ice_alloc(call->count, sizeof *call->unsure);
        if (!call->unsure) return ICECORE_ERROR_MEMORY;
        memset(call->unsure, 0, (size_t)call->count);
    }
    status = search_queries(call, threads);
    return status == ICECORE_OK && call->unsure ? search_again(call, threads) : status;
}

icecore_status icecore_index_search(icecore_index *index, const float *queries, int64_t count,
                                    const icecore_search *search, int64_t *ids, float *scores, int64_t *counts,
                                    int64_t *visited) {
    if (search->k < 1 || search->visit < 0 || search->retrieve < 0 || search->field_of_view < 0)
        return ICECORE_ERROR_VALUE;
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    ice_search_call *call = ice_alloc(1, sizeof *call);
    if (!call) return ICECORE_ERROR_MEMORY;
    *call = (ice_search_call){.index = index,
                              .kernels = kernels,
                              .search = search,
                              .queries = queries,
                              .count = count,
                              .ids = ids,
                              .scores = scores,
                              .counts = counts,
                              .visited = visited};
    icecore_status status =
        search->allowed || search->excluded ? ice_index_lookup_lock(index) : ice_lock_read(&index->lock);
    if (status == ICECORE_OK) {
        status = search_locked(call);
        ice_unlock(&index->lock);
    }
    ice_free(call->allowed);
    ice_free(call->reach);
    ice_free(call->below);
    ice_free(call->unsure);
    ice_free(call->rows);
    ice_free(call);
    return status;
}
