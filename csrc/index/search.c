/* Searching, for chunks of queries at a time.
 *
 * Down the tree, layer by layer: queries are gathered by the parent they opened, so that the children of a parent, which lie together, are
 * scored against a panel of queries at once.  Each query keeps the best parents of the next layer, at the end the best keys; those
 * are compared exactly.  Nodes of all segments compete with one another.  With P-DCI lists the last layer is done query by query. */
#include <string.h>

#include "base/memory.h"
#include "base/order.h"
#include "base/parallel.h"
#include "index/collector.h"
#include "index/index.h"
#include "segment/codes.h"
#include "segment/lists.h"

/* Queries of a chunk: enough that a panel of those which open one cell is full, few enough to share between threads and to fit a cache. */
#define MOST_CHUNK 4096
/* Memory of a chunk's collector that is not exceeded while a chunk has more than a panel of queries. */
#define MOST_COLLECTOR ((int64_t)32 << 20)
/* Room beyond what is kept: the larger, the rarer a cut. */
#define SLACK 64
/* The best parents go first until they hold this many times what is kept. */
#define LEADING 3
/* Up to this many are sorted by counting. */
#define MOST_RANKED 256
/* Rows compared exactly at once. */
#define EXACT_BLOCK 64

typedef struct {
    const icecore_segment *segment[ICE_MOST_SEGMENTS];
    int segments, layers;
    int64_t first[ICE_MOST_LAYERS + 1][ICE_MOST_SEGMENTS + 1];   /* number of each segment's first parent in a layer; [segments]: how many */
    int64_t largest_cell;
} forest;

typedef struct {
    icecore_index *index;
    const ice_kernels *kernels;
    const icecore_search *search;
    const float *queries;
    int64_t count, chunk;
    int64_t keep_nodes, keep;      /* parents kept; candidates compared exactly */
    int64_t capacity, nodes;       /* of the collector; parents a query can have picked */
    forest forest;
    uint8_t *allowed;              /* of each slot; NULL: all are */
    float *center;                 /* squared distances, exact comparison: subtracted from both sides */
    int64_t *ids, *counts, *visited;
    float *scores;
} search_call;

/* One chunk's memory. */
typedef struct {
    const search_call *call;
    int64_t first, count;          /* queries */
    ice_collector collector;
    int32_t *pick, *by_node;       /* count x nodes: the parents each query picked; the queries of each parent */
    int64_t *picks, *leading;      /* count: how many; how many of them go first */
    int64_t *node_begin;           /* parents + 1 */
    int64_t *visited;              /* count */
    int64_t stride;                /* of codes */
    int8_t *code, *own_code;       /* count x stride: inner products; stride: one query's from one parent's mean */
    float *code_scale;
    int32_t *code_offset;
    int8_t *quads;                 /* stride x ICE_PANEL */
    float *scores;                 /* ICE_KEY_BLOCK x ICE_PANEL */
    float *node_scores;            /* nodes of the first layer x ICE_PANEL */
    int32_t *places;               /* ICE_KEY_BLOCK x ICE_PANEL */
    float *panel, *rows;           /* dim x ICE_PANEL; ICE_KEY_BLOCK x dim */
    int32_t *candidates;           /* lists: composites x the largest cell */
    uint64_t *spare;               /* lists, and sorting */
    float *final_scores;           /* capacity: one query's candidates, best first */
    int32_t *final_slots, *rank;
} workspace;

/* ---- Memory ---- */

typedef struct {
    char *memory;              /* NULL: only measured */
    size_t used;
} arena;

static void *take(arena *a, int64_t count, size_t size) {
    void *taken = a->memory ? a->memory + a->used : NULL;
    a->used += ice_round_up((size_t)count * size);
    return taken;
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Lays a workspace out; with scratch = NULL only measures it. */
static size_t lay_out(const search_call *call, void *scratch, workspace *w) {
    arena a = {scratch, 0};
    const icecore_index_options *o = &call->index->options;
    const int64_t chunk = call->chunk, stride = w->stride = (o->dim + 3) & ~(int64_t)3;
    int64_t parents = 1;
    for (int i = 0; i < call->forest.layers; i++) parents = most(parents, call->forest.first[i][call->forest.segments]);
    const int64_t listed = o->composites ? call->forest.largest_cell : 0;
    w->collector.capacity = call->capacity;
    w->collector.kernels = call->kernels;
    w->collector.scores = take(&a, chunk * call->capacity, sizeof(float));
    w->collector.numbers = take(&a, chunk * call->capacity, sizeof(int32_t));
    w->collector.count = take(&a, chunk, sizeof(int64_t));
    w->collector.threshold = take(&a, chunk, sizeof(float));
    w->pick = take(&a, chunk * call->nodes, sizeof(int32_t));
    w->by_node = take(&a, chunk * call->nodes, sizeof(int32_t));
    w->picks = take(&a, chunk, sizeof(int64_t));
    w->leading = take(&a, chunk, sizeof(int64_t));
    w->node_begin = take(&a, parents + 1, sizeof(int64_t));
    w->visited = take(&a, chunk, sizeof(int64_t));
    w->code = take(&a, o->metric == ICECORE_INNER_PRODUCT ? chunk * stride : 0, 1);
    w->own_code = take(&a, stride, 1);
    w->code_scale = take(&a, chunk, sizeof(float));
    w->code_offset = take(&a, chunk, sizeof(int32_t));
    w->quads = take(&a, stride * ICE_PANEL, 1);
    w->scores = take(&a, ICE_KEY_BLOCK * ICE_PANEL, sizeof(float));
    const int64_t roots = call->forest.layers > 1 ? call->forest.first[1][call->forest.segments] : 0;
    w->node_scores = take(&a, roots * ICE_PANEL, sizeof(float));
    w->places = take(&a, ICE_KEY_BLOCK * ICE_PANEL, sizeof(int32_t));
    w->panel = take(&a, o->dim * ICE_PANEL, sizeof(float));
    w->rows = take(&a, o->dim * ICE_KEY_BLOCK, sizeof(float));
    w->candidates = take(&a, listed * o->composites, sizeof(int32_t));
    w->spare = take(&a, most(most(ICE_LISTS_SPARE(listed), 2 * listed * o->composites), 3 * call->capacity), sizeof(uint64_t));
    w->final_scores = take(&a, call->capacity, sizeof(float));
    w->final_slots = take(&a, call->capacity, sizeof(int32_t));
    w->rank = take(&a, call->capacity, sizeof(int32_t));
    return a.used;
}

/* ---- What a query may find ---- */

static int is_wanted(const search_call *call, int32_t slot) {
    if (call->allowed && !call->allowed[slot]) return 0;
    return *ice_slot_state(&call->index->slots, slot) == ICE_SLOT_USED;
}

/* ---- Down the tree ---- */

/* Inner products: the queries' own codes, for all parents. */
static void encode_queries(workspace *w) {
    const search_call *call = w->call;
    const icecore_index_options *o = &call->index->options;
    for (int64_t q = 0; q < w->count; q++)
        ice_encode_query(call->kernels, call->queries + (w->first + q) * o->dim, NULL, o->dim, w->stride, w->code + q * w->stride,
                         &w->code_scale[q], &w->code_offset[q]);
}

typedef struct {
    float base[ICE_PANEL], scale[ICE_PANEL];
    int32_t offset[ICE_PANEL];
} panel_of_codes;

/* The codes of some queries side by side in w->quads, and what goes with them: base is the score of the parent's mean. */
static void gather_panel(workspace *w, const ice_layer *layer, int64_t parent, const int32_t *queries, int lanes, panel_of_codes *p) {
    const search_call *call = w->call;
    const int64_t dim = call->index->options.dim, stride = w->stride;
    const int squared = call->index->options.metric == ICECORE_SQUARED_DISTANCE;
    const float *mean = layer->mean + parent * dim;
    const void *row = mean;
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        if (lane >= lanes && lane % call->kernels->width == 0) break;   /* kernels work on whole vectors, not on whole panels */
        int32_t q = queries[lane < lanes ? lane : 0];
        const float *query = call->queries + (w->first + q) * dim;
        const int8_t *code = w->code + q * stride;
        p->scale[lane] = w->code_scale[q];
        p->offset[lane] = w->code_offset[q];
        if (squared) {
            ice_encode_query(call->kernels, query, mean, dim, stride, w->own_code, &p->scale[lane], &p->offset[lane]);
            code = w->own_code;
        }
        for (int64_t t = 0; t < stride; t += 4) memcpy(w->quads + t * ICE_PANEL + lane * 4, code + t, 4);
        call->kernels->gathered_scores(query, dim, squared, ICECORE_FLOAT32, &row, 1, &p->base[lane]);
    }
}

/* Scores the children of one parent for a panel of queries and collects them. */
static void scan(workspace *w, const icecore_segment *segment, int64_t first_child, const ice_layer *layer, int64_t parent, int is_last,
                 const int32_t *queries, int lanes) {
    const search_call *call = w->call;
    const ice_kernels *kernels = call->kernels;
    const int64_t stride = layer->stride;
    float threshold[ICE_PANEL];
    panel_of_codes p;
    gather_panel(w, layer, parent, queries, lanes, &p);
    for (int lane = 0; lane < lanes; lane++) threshold[lane] = w->collector.threshold[queries[lane]];
    float lowest = INFINITY;
    for (int lane = 0; lane < lanes; lane++) lowest = fminf(lowest, threshold[lane]);
    for (int lane = lanes; lane < ICE_PANEL; lane++) threshold[lane] = INFINITY;
    int64_t end = layer->offset[parent + 1];
    const int filtered = is_last && (call->allowed || call->index->removed);
    /* neighbours in time are alike: of many blocks every eighth goes first, which raises the threshold sooner */
    const int64_t blocks = (end - layer->offset[parent] + ICE_KEY_BLOCK - 1) / ICE_KEY_BLOCK, stride_of_blocks = blocks < 16 ? 1 : 8;
    for (int64_t i = 0, turn = 0; turn < stride_of_blocks; i += stride_of_blocks) {
        if (i >= blocks) {
            i = ++turn - stride_of_blocks;
            continue;
        }
        int64_t child = layer->offset[parent] + i * ICE_KEY_BLOCK, block = least(end - child, ICE_KEY_BLOCK);
        kernels->code_scores(w->quads, lanes, p.base, p.scale, p.offset, layer->code + child * stride, stride, layer->scale + child,
                             layer->bias ? layer->bias + child : NULL, block, w->scores);
        if (lowest == -INFINITY && !filtered && block > w->collector.keep) {
            /* the first scores of a query: as many as are kept reach this, so nothing below is wanted */
            float bound[ICE_PANEL];
            kernels->nth_largest(w->scores, block, lanes, w->collector.keep, bound);
            for (int lane = 0; lane < lanes; lane++)
                if (bound[lane] > threshold[lane]) threshold[lane] = w->collector.threshold[queries[lane]] = bound[lane];
            lowest = 0.0f;
        }
        int64_t found = kernels->find_at_least(w->scores, block, lanes, threshold, w->places);
        for (int64_t i = 0; i < found; i++) {
            int32_t place = w->places[i];
            int lane = place % ICE_PANEL;
            int64_t number = child + place / ICE_PANEL;
            if (is_last) {
                int32_t slot = segment->order[number];
                if (filtered && !is_wanted(call, slot)) continue;
                number = slot;
            } else {
                number += first_child;
            }
            ice_collector_add(&w->collector, queries[lane], w->scores[place], (int32_t)number);
        }
        for (int lane = 0; lane < lanes; lane++) threshold[lane] = w->collector.threshold[queries[lane]];
    }
    for (int lane = 0; lane < lanes; lane++) w->visited[queries[lane]] += end - layer->offset[parent];
}

/* Keys below a node: descendants of a node lie together. */
static int64_t keys_below(const icecore_segment *segment, int layer, int64_t node) {
    int64_t low = node, high = node + 1;
    for (; layer < segment->layers; layer++) {
        low = segment->layer[layer].offset[low];
        high = segment->layer[layer].offset[high];
    }
    return high - low;
}

static int segment_of(const forest *f, int layer, int64_t node) {
    int n = 0;
    while (node >= f->first[layer][n + 1]) n++;
    return n;
}

/* What the collector holds becomes each query's picks in `layer`: the best field_of_view, or fewer once they hold `visit` keys.  The best
 * come first, until they hold LEADING times the keys that are wanted: done before the others, they set a threshold that few of those pass. */
static void pick_parents(workspace *w, int layer) {
    const search_call *call = w->call;
    const forest *f = &call->forest;
    const int64_t enough = LEADING * call->keep, visit = call->search->visit > 0 ? call->search->visit : INT64_MAX;
    for (int64_t q = 0; q < w->count; q++) {
        ice_collector_cut(&w->collector, q);
        float *scores = w->collector.scores + q * w->collector.capacity;
        int32_t *numbers = w->collector.numbers + q * w->collector.capacity;
        int64_t count = w->collector.count[q], keys = 0, i = 0;
        w->leading[q] = 0;
        for (; i < count && (keys < enough || visit < INT64_MAX) && keys < visit; i++) {
            int64_t best = i;
            for (int64_t j = i + 1; j < count; j++)
                if (scores[j] > scores[best] || (scores[j] == scores[best] && numbers[j] < numbers[best])) best = j;
            int32_t node = numbers[best];
            scores[best] = scores[i];
            numbers[best] = numbers[i];
            numbers[i] = node;
            int n = segment_of(f, layer, node);
            if (keys < enough) w->leading[q]++;
            keys += keys_below(f->segment[n], layer, node - f->first[layer][n]);
        }
        w->picks[q] = visit < INT64_MAX ? i : count;
        memcpy(w->pick + q * call->nodes, numbers, (size_t)w->picks[q] * sizeof *numbers);
    }
}

/* All parents of a layer, for all queries. */
static void pick_all(workspace *w, int layer) {
    int64_t parents = w->call->forest.first[layer][w->call->forest.segments];
    for (int64_t q = 0; q < w->count; q++) {
        w->picks[q] = parents;
        w->leading[q] = 0;
        for (int64_t node = 0; node < parents; node++) w->pick[q * w->call->nodes + node] = (int32_t)node;
    }
}

/* Sorts the picks by parent, the leading ones or the others: the queries of parent n are by_node[node_begin[n]] ..
 * by_node[node_begin[n + 1] - 1]. */
static void group_by_parent(workspace *w, int64_t parents, int leading) {
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

static void scan_picks(workspace *w, int layer, int leading) {
    const search_call *call = w->call;
    const forest *f = &call->forest;
    group_by_parent(w, f->first[layer][f->segments], leading);
    for (int n = 0; n < f->segments; n++) {
        const icecore_segment *segment = f->segment[n];
        const ice_layer *own = &segment->layer[layer];
        int is_last = layer == f->layers - 1;
        for (int64_t parent = 0; parent < own->parents; parent++) {
            int64_t node = f->first[layer][n] + parent, end = w->node_begin[node + 1];
            for (int64_t i = w->node_begin[node]; i < end; i += ICE_PANEL)
                scan(w, segment, is_last ? 0 : f->first[layer + 1][n], own, parent, is_last, w->by_node + i,
                     (int)least(end - i, ICE_PANEL));
        }
    }
}

static void scan_layer(workspace *w, int layer) {
    scan_picks(w, layer, 1);
    for (int64_t q = 0; q < w->count; q++) ice_collector_cut(&w->collector, q);
    scan_picks(w, layer, 0);
}

/* Appends the nodes whose scores reach the threshold to the picks of a panel's queries, up to `most_picks`; the
 * leading ones are there already. */
static void take_picks(workspace *w, int64_t first, int lanes, int64_t nodes, int64_t most_picks, const float *threshold) {
    const search_call *call = w->call;
    for (int64_t j = 0; j < nodes; j += ICE_KEY_BLOCK) {
        float *scores = w->node_scores + j * ICE_PANEL;
        int64_t found = call->kernels->find_at_least(scores, least(nodes - j, ICE_KEY_BLOCK), lanes, threshold, w->places);
        for (int64_t i = 0; i < found; i++) {
            int64_t q = first + w->places[i] % ICE_PANEL;
            int32_t node = (int32_t)(j + w->places[i] / ICE_PANEL);
            int taken = 0;
            for (int64_t t = 0; t < w->leading[q] && !taken; t++) taken = w->pick[q * call->nodes + t] == node;
            if (!taken && w->picks[q] < most_picks) w->pick[q * call->nodes + w->picks[q]++] = node;
        }
    }
}

/* The first layer, where all queries meet all nodes: a panel's scores lie together, and its lanes choose side by side. */
static void pick_from_roots(workspace *w) {
    const search_call *call = w->call;
    const forest *f = &call->forest;
    const ice_kernels *kernels = call->kernels;
    const int64_t nodes = f->first[1][f->segments], keep = least(call->keep_nodes, nodes);
    int64_t keys = 0;
    for (int n = 0; n < f->segments; n++) keys += f->segment[n]->count;
    const int64_t lead = most(1, LEADING * call->keep * nodes / keys);
    for (int64_t first = 0; first < w->count; first += ICE_PANEL) {
        int lanes = (int)least(w->count - first, ICE_PANEL);
        float threshold[ICE_PANEL];
        int32_t queries[ICE_PANEL];
        for (int lane = 0; lane < lanes; lane++) queries[lane] = (int32_t)(first + lane);
        for (int n = 0; n < f->segments; n++) {
            const ice_layer *layer = &f->segment[n]->layer[0];
            panel_of_codes p;
            gather_panel(w, layer, 0, queries, lanes, &p);
            kernels->code_scores(w->quads, lanes, p.base, p.scale, p.offset, layer->code, layer->stride, layer->scale, layer->bias,
                                 layer->children, w->node_scores + f->first[1][n] * ICE_PANEL);
        }
        for (int lane = 0; lane < lanes; lane++) {
            w->picks[first + lane] = w->leading[first + lane] = 0;
            w->visited[first + lane] += nodes;
        }
        if (lead < keep) {
            kernels->nth_largest(w->node_scores, nodes, lanes, lead, threshold);
            take_picks(w, first, lanes, nodes, lead, threshold);
        }
        for (int lane = 0; lane < lanes; lane++) w->leading[first + lane] = w->picks[first + lane];
        kernels->nth_largest(w->node_scores, nodes, lanes, keep, threshold);
        take_picks(w, first, lanes, nodes, keep, threshold);
    }
}

/* ---- P-DCI lists ---- */

/* Exact scores of stored rows of a segment, or of slots where segment is NULL. */
static void compare_exactly(workspace *w, int64_t q, const icecore_segment *segment, const int32_t *rows, int64_t count) {
    const search_call *call = w->call;
    const icecore_index *index = call->index;
    const void *address[EXACT_BLOCK];
    int32_t slots[EXACT_BLOCK];
    float scores[EXACT_BLOCK];
    for (int64_t i = 0; i < count;) {
        int filled = 0;
        for (; i < count && filled < EXACT_BLOCK; i++) {
            int32_t slot = segment ? segment->order[rows[i]] : rows[i];
            if (!is_wanted(call, slot)) continue;
            slots[filled] = slot;
            address[filled++] = ice_slot_row(&index->slots, slot);
        }
        call->kernels->gathered_scores(call->queries + (w->first + q) * index->options.dim, index->options.dim,
                                       index->options.metric == ICECORE_SQUARED_DISTANCE, index->options.dtype, address, filled, scores);
        w->visited[q] += filled;
        for (int j = 0; j < filled; j++) ice_collector_add(&w->collector, q, scores[j], slots[j]);
    }
}

static int64_t share(int64_t budget, int64_t part, int64_t whole) {
    if (budget == 0) return 0;
    int64_t own = (int64_t)((double)budget * (double)part / (double)whole + 0.999999);
    return own < 1 ? 1 : own;
}

static void search_lists(workspace *w) {
    const search_call *call = w->call;
    const forest *f = &call->forest;
    const icecore_index_options *o = &call->index->options;
    const int last = f->layers - 1;
    const int64_t width = o->dim + (o->metric == ICECORE_INNER_PRODUCT);
    float unit[ICECORE_MAX_SIMPLES];
    for (int64_t q = 0; q < w->count; q++) {
        const float *query = call->queries + (w->first + q) * o->dim;
        const int32_t *pick = w->pick + q * call->nodes;
        int64_t whole = 0;
        for (int64_t i = 0; i < w->picks[q]; i++) {
            int n = segment_of(f, last, pick[i]);
            whole += keys_below(f->segment[n], last, pick[i] - f->first[last][n]);
        }
        /* T(q) = [q / |q|; 0] */
        float norm = 1.0f;
        if (o->metric == ICECORE_INNER_PRODUCT) {
            double squared = 0.0;
            for (int64_t t = 0; t < o->dim; t++) squared += (double)query[t] * query[t];
            norm = squared > 0 ? (float)sqrt(squared) : 1.0f;
        }
        for (int64_t i = 0; i < w->picks[q]; i++) {
            int n = segment_of(f, last, pick[i]);
            const icecore_segment *segment = f->segment[n];
            int64_t cell = pick[i] - f->first[last][n], keys = keys_below(segment, last, cell), found = 0;
            for (int l = 0; l < o->composites; l++) {
                call->kernels->row_scores(query, o->dim, ICECORE_FLOAT32, call->index->directions + l * o->simples * width, width,
                                          o->simples, unit);
                for (int j = 0; j < o->simples; j++) unit[j] /= norm;
                found += ice_lists_candidates(call->kernels, segment, l, cell, unit, share(call->search->visit, keys, whole),
                                              share(call->search->retrieve, keys, whole), w->candidates + found, w->spare);
            }
            if (o->composites > 1) {   /* the union: sorted by 32-bit number, each once */
                uint64_t *sorted = w->spare;
                int64_t at = 0;
                for (int64_t j = 0; j < found; j++) sorted[j] = (uint32_t)w->candidates[j];
                ice_sort(sorted, sorted + found, found);
                for (int64_t j = 0; j < found; j++)
                    if (j == 0 || sorted[j] != sorted[j - 1]) w->candidates[at++] = (int32_t)sorted[j];
                found = at;
            }
            compare_exactly(w, q, segment, w->candidates, found);
        }
    }
}

/* ---- Exactly ---- */

/* Some slots against all queries of the chunk, in float32. */
static void scan_exactly(workspace *w, const int32_t *slots, int64_t count) {
    const search_call *call = w->call;
    const icecore_index_options *o = &call->index->options;
    const ice_slot_rows reader = {call->kernels, &call->index->slots, NULL};
    const int squared = o->metric == ICECORE_SQUARED_DISTANCE;
    int32_t slot[ICE_KEY_BLOCK];
    float bias[ICE_KEY_BLOCK], base[ICE_PANEL], threshold[ICE_PANEL];
    for (int64_t next = 0; next < count;) {
        int block = 0;
        for (; next < count && block < ICE_KEY_BLOCK; next++) {
            int32_t own = slots ? slots[next] : (int32_t)next;
            if (!is_wanted(call, own)) continue;
            float *row = w->rows + block * o->dim;
            const float *x = ice_read_slot_row(&reader, own, row);
            double size = 0.0;
            for (int64_t t = 0; t < o->dim; t++) {
                row[t] = squared ? x[t] - call->center[t] : x[t];
                size += (double)row[t] * row[t];
            }
            bias[block] = squared ? (float)(-0.5 * size) : 0.0f;
            slot[block++] = own;
        }
        for (int64_t first = 0; first < w->count; first += ICE_PANEL) {
            int lanes = (int)least(w->count - first, ICE_PANEL);
            for (int lane = 0; lane < ICE_PANEL; lane++) {
                const float *query = call->queries + (w->first + first + (lane < lanes ? lane : 0)) * o->dim;
                double size = 0.0;
                for (int64_t t = 0; t < o->dim; t++) {
                    float x = squared ? query[t] - call->center[t] : query[t];
                    w->panel[t * ICE_PANEL + lane] = x;
                    size += (double)x * x;
                }
                base[lane] = squared ? (float)(-0.5 * size) : 0.0f;
                threshold[lane] = lane < lanes ? w->collector.threshold[first + lane] : INFINITY;
            }
            call->kernels->scores(w->panel, o->dim, lanes, w->rows, o->dim, block, w->scores);
            for (int j = 0; j < block; j++)
                for (int lane = 0; lane < lanes; lane++) w->scores[j * ICE_PANEL + lane] += base[lane] + bias[j];
            int64_t found = call->kernels->find_at_least(w->scores, block, lanes, threshold, w->places);
            for (int64_t i = 0; i < found; i++)
                ice_collector_add(&w->collector, first + w->places[i] % ICE_PANEL, w->scores[w->places[i]],
                                  slot[w->places[i] / ICE_PANEL]);
        }
        for (int64_t q = 0; q < w->count; q++) w->visited[q] += block;
    }
}

/* ---- Answers ---- */

/* Ties by the smaller id: runs of equal scores, which are short, are put in order by insertion. */
static void order_ties(const search_call *call, const float *scores, int32_t *slots, int64_t count) {
    for (int64_t i = 1; i < count; i++) {
        if (scores[i] != scores[i - 1]) continue;
        int32_t slot = slots[i];
        int64_t id = *ice_slot_id(&call->index->slots, slot), j = i;
        for (; j > 0 && scores[j - 1] == scores[i] && *ice_slot_id(&call->index->slots, slots[j - 1]) > id; j--) slots[j] = slots[j - 1];
        slots[j] = slot;
    }
}

/* Compares exactly what the collector holds for a query, best first into w->final_scores and w->final_slots; returns how many. */
static int64_t compare_kept(workspace *w, int64_t q) {
    const search_call *call = w->call;
    const icecore_index *index = call->index;
    const icecore_index_options *o = &index->options;
    ice_collector_cut(&w->collector, q);
    int32_t *slots = w->collector.numbers + q * w->collector.capacity;
    float *scores = w->collector.scores + q * w->collector.capacity;
    int64_t count = w->collector.count[q];
    for (int64_t first = 0; first < count; first += EXACT_BLOCK) {
        int block = (int)least(count - first, EXACT_BLOCK);
        const void *address[EXACT_BLOCK];
        for (int i = 0; i < block; i++) {
            address[i] = ice_slot_row(&index->slots, slots[first + i]);
            __builtin_prefetch(address[i]);
        }
        call->kernels->gathered_scores(call->queries + (w->first + q) * o->dim, o->dim, o->metric == ICECORE_SQUARED_DISTANCE, o->dtype,
                                       address, block, scores + first);
    }
    if (count <= MOST_RANKED) {
        call->kernels->rank(scores, count, w->rank);
    } else {
        for (int64_t i = 0; i < count; i++) w->spare[i] = (uint64_t)~ice_ordered(scores[i]) << 32 | (uint32_t)i;
        ice_sort(w->spare, w->spare + count, count);
        for (int64_t i = 0; i < count; i++) w->rank[(uint32_t)w->spare[i]] = (int32_t)i;
    }
    for (int64_t i = 0; i < count; i++) {
        w->final_scores[w->rank[i]] = scores[i];
        w->final_slots[w->rank[i]] = slots[i];
    }
    order_ties(call, w->final_scores, w->final_slots, count);
    return count;
}

static void answer(workspace *w, int64_t q) {
    const search_call *call = w->call;
    const int64_t k = call->search->k, row = w->first + q;
    const int squared = call->index->options.metric == ICECORE_SQUARED_DISTANCE;
    int64_t found = least(compare_kept(w, q), k);
    for (int64_t i = 0; i < found; i++) {
        call->ids[row * k + i] = *ice_slot_id(&call->index->slots, w->final_slots[i]);
        call->scores[row * k + i] = squared ? -2.0f * w->final_scores[i] + 0.0f : w->final_scores[i];
    }
    for (int64_t i = found; i < k; i++) {
        call->ids[row * k + i] = -1;
        call->scores[row * k + i] = NAN;
    }
    call->counts[row] = found;
    if (call->visited) call->visited[row] = w->visited[q];
}

static void search_chunk(void *context, int64_t number, void *scratch) {
    const search_call *call = context;
    if (!scratch) return;
    workspace w = {.call = call, .first = number * call->chunk};
    w.count = least(call->count - w.first, call->chunk);
    lay_out(call, scratch, &w);
    memset(w.visited, 0, (size_t)w.count * sizeof *w.visited);
    const forest *f = &call->forest;
    if (call->search->exact) {
        ice_collector_clear(&w.collector, w.count, call->keep);
        scan_exactly(&w, NULL, call->index->slots.count);
    } else {
        const int lists = call->index->options.composites > 0;
        if (call->index->options.metric == ICECORE_INNER_PRODUCT) encode_queries(&w);
        if (f->segments) pick_all(&w, 0);
        for (int layer = 0; f->segments && layer + 1 < f->layers; layer++) {
            int64_t below = f->first[layer + 1][f->segments];
            if (below <= call->keep_nodes && call->search->visit == 0) {
                pick_all(&w, layer + 1);
                continue;
            }
            if (layer == 0 && call->search->visit == 0) {
                pick_from_roots(&w);
                continue;
            }
            ice_collector_clear(&w.collector, w.count, least(call->keep_nodes, below));
            scan_layer(&w, layer);
            pick_parents(&w, layer + 1);
        }
        ice_collector_clear(&w.collector, w.count, call->keep);
        scan_exactly(&w, call->index->open, call->index->open_count);
        if (f->segments) lists ? search_lists(&w) : scan_layer(&w, f->layers - 1);
    }
    for (int64_t q = 0; q < w.count; q++) answer(&w, q);
}

/* ---- The call ---- */

static void find_forest(const icecore_index *index, forest *f) {
    memset(f, 0, sizeof *f);
    for (int n = 0; n < ICE_MOST_SEGMENTS; n++)
        if (index->sealed[n].segment) f->segment[f->segments++] = index->sealed[n].segment;
    f->layers = index->options.levels;
    for (int layer = 0; layer < f->layers; layer++)
        for (int n = 0; n < f->segments; n++) f->first[layer][n + 1] = f->first[layer][n] + f->segment[n]->layer[layer].parents;
    for (int n = 0; n < f->segments; n++)
        for (int64_t c = 0; c < f->segment[n]->cells; c++)
            f->largest_cell = most(f->largest_cell, f->segment[n]->offset[c + 1] - f->segment[n]->offset[c]);
}

/* What is subtracted from both sides of an exact squared distance: the mean of the open block, or of the first segment. */
static void find_center(const search_call *call) {
    const icecore_index *index = call->index;
    const int64_t dim = index->options.dim;
    if (call->forest.segments) {
        memcpy(call->center, call->forest.segment[0]->layer[0].mean, (size_t)dim * sizeof(float));
        return;
    }
    memset(call->center, 0, 2 * (size_t)dim * sizeof(float));
    const ice_slot_rows reader = {call->kernels, &index->slots, index->open};
    for (int64_t i = 0; i < index->open_count; i++) {
        const float *x = ice_read_slot_row(&reader, i, call->center + dim);
        for (int64_t t = 0; t < dim; t++) call->center[t] += x[t] / (float)index->open_count;
    }
}

static void plan_search(search_call *call, int threads) {
    const icecore_search *s = call->search;
    const forest *f = &call->forest;
    const int lists = call->index->options.composites > 0 && !s->exact;
    int64_t parents = 1;
    for (int i = 0; i < f->layers; i++) parents = most(parents, f->first[i][f->segments]);
    call->keep_nodes = s->field_of_view > 0 ? least(s->field_of_view, parents) : parents;
    call->nodes = most(call->keep_nodes, f->segments);   /* every segment's root is picked */
    /* what rounding of codes and of float32 may misplace is compared exactly: a quarter more than asked for */
    int64_t margin = s->k + s->k / 4 + 8;
    call->keep = lists ? s->k : s->exact ? margin : most(s->k, s->retrieve > 0 ? s->retrieve : margin);
    call->keep = least(call->keep, call->index->used);
    call->capacity = most(2 * call->keep + SLACK, least(2 * call->keep_nodes + SLACK, parents));
    int64_t cells = f->layers ? f->first[f->layers - 1][f->segments] : 1;
    int64_t chunk = most(ICE_PANEL * cells / most(call->keep_nodes, 1), 512);
    chunk = least(chunk, MOST_CHUNK);
    chunk = least(chunk, (call->count + threads - 1) / threads);
    chunk = least(chunk, MOST_COLLECTOR / (8 * call->capacity + 8 * call->nodes));
    chunk = most(chunk, 1);
    /* whole panels, and as many chunks for each thread */
    if (chunk > ICE_PANEL) chunk = (chunk + ICE_PANEL - 1) / ICE_PANEL * ICE_PANEL;
    call->chunk = chunk;
}

static icecore_status find_allowed(search_call *call) {
    const icecore_search *s = call->search;
    const icecore_index *index = call->index;
    if (!s->allowed) return ICECORE_OK;
    call->allowed = ice_alloc(index->slots.count, 1);
    if (!call->allowed) return ICECORE_ERROR_MEMORY;
    memset(call->allowed, 0, (size_t)index->slots.count);
    for (int64_t i = 0; i < s->allowed_count; i++) {
        int32_t slot = ice_id_map_find(&index->map, &index->slots, s->allowed[i]);
        if (slot >= 0) call->allowed[slot] = 1;
    }
    return ICECORE_OK;
}

static icecore_status search_locked(search_call *call) {
    const icecore_search *s = call->search;
    const int threads = s->threads > 0 ? s->threads : icecore_default_threads();
    call->center = ice_alloc(2 * call->index->options.dim, sizeof(float));
    if (!call->center) return ICECORE_ERROR_MEMORY;
    icecore_status status = find_allowed(call);
    if (status != ICECORE_OK || call->count == 0) return status;
    find_forest(call->index, &call->forest);
    find_center(call);
    plan_search(call, threads);
    workspace unused;
    return ice_parallel_for((call->count + call->chunk - 1) / call->chunk, threads, lay_out(call, NULL, &unused), search_chunk, call);
}

icecore_status icecore_index_search(icecore_index *index, const float *queries, int64_t count, const icecore_search *search, int64_t *ids,
                                    float *scores, int64_t *counts, int64_t *visited) {
    if (search->k < 1 || search->visit < 0 || search->retrieve < 0 || search->field_of_view < 0) return ICECORE_ERROR_VALUE;
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    search_call *call = ice_alloc(1, sizeof *call);
    if (!call) return ICECORE_ERROR_MEMORY;
    *call = (search_call){.index = index, .kernels = kernels, .search = search, .queries = queries, .count = count,
                          .ids = ids, .scores = scores, .counts = counts, .visited = visited};
    icecore_status status = search->allowed ? ice_index_lookup_lock(index) : ice_index_read_lock(index);
    if (status == ICECORE_OK) {
        status = search_locked(call);
        ice_index_unlock(index);
    }
    ice_free(call->allowed);
    ice_free(call->center);
    ice_free(call);
    return status;
}
