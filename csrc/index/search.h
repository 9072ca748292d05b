/* One search on its way: what is asked, the memory of a chunk of queries, and the steps, each in a file of its own. */
#ifndef ICE_SEARCH_H
#define ICE_SEARCH_H

#include "index/collector.h"
#include "index/index.h"

/* The best parents go first until they hold this many times what is kept. */
#define ICE_LEADING 3

/* All segments that hold a vector, side by side. */
typedef struct {
    const icecore_segment *segment[ICE_MAX_SEGMENTS];
    int segments, layers;
    int64_t first[ICE_MAX_LAYERS + 1]
                 [ICE_MAX_SEGMENTS + 1]; /* number of each segment's first parent in a layer; [segments]: how many */
    int64_t largest_cell;
    /* Below each parent of a layer: vectors that are not removed, and those of them that may be returned.  NULL where
     * that is all. */
    int32_t *used[ICE_MAX_LAYERS], *wanted[ICE_MAX_LAYERS];
} ice_forest;

typedef struct {
    icecore_index *index;
    const ice_kernels *kernels;
    const icecore_search *search;
    const float *queries;
    int64_t count, chunk;
    float scale;              /* of squared distances: the rows' and the queries'; 0: inner products */
    int64_t keep_nodes, keep; /* parents kept; candidates compared exactly */
    int64_t capacity, nodes;  /* of the collector; parents a query can have picked */
    int own_views, extends; /* whether each segment has a field of view of its own; whether parents beyond it follow */
    int64_t view[ICE_MAX_SEGMENTS]; /* parents kept of each segment with a view of its own, or [0]: of all */
    ice_forest forest;
    uint8_t *allowed; /* of each slot; NULL: all are */
    int64_t wanted;   /* vectors that may be returned */
    int32_t *below;   /* the memory of the forest's `used` and `wanted` */
    int exact;        /* all that are wanted are compared, because it was asked for or is less work */
    int64_t *ids, *counts, *visited;
    float *scores;
} ice_search_call;

/* One chunk's memory. */
typedef struct {
    const ice_search_call *call;
    int64_t first, count; /* queries */
    float *query, *scale; /* count x dim: the queries times their scales, which are powers of two; count */
    ice_collector collector;
    int32_t *pick, *by_node;  /* count x nodes: the parents each query picked; the queries of each parent */
    int64_t *picks, *leading; /* count: how many; how many of them go first */
    int64_t *node_begin;      /* parents + 1 */
    int64_t *visited;         /* count */
    int64_t stride;           /* of codes */
    int8_t *code, *own_code;  /* count x stride: inner products; stride: one query's from one parent's mean */
    float *code_scale;
    int32_t *code_offset;
    int8_t *quads;        /* stride x ICE_PANEL */
    float *scores;        /* ICE_KEY_BLOCK x ICE_PANEL */
    float *node_scores;   /* nodes of the first layer x ICE_PANEL */
    int32_t *places;      /* ICE_KEY_BLOCK x ICE_PANEL */
    float *panel, *rows;  /* dim x ICE_PANEL; ICE_KEY_BLOCK x dim */
    float *bias, *framed; /* ICE_KEY_BLOCK: of a segment of another scale; dim: lists */
    int32_t *candidates;  /* lists: composites x the largest cell */
    uint64_t *spare;      /* lists, and sorting */
    float *final_scores;  /* capacity: one query's candidates, best first */
    int32_t *final_slots, *rank;
} ice_search_space;

static inline int64_t ice_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ice_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Whether a slot's vector may be returned. */
static inline int ice_is_wanted(const ice_search_call *call, int32_t slot) {
    if (call->allowed && !call->allowed[slot]) return 0;
    return *ice_slot_state(&call->index->slots, slot) == ICE_SLOT_USED;
}

/* The segment of a node, a parent in `layer` numbered through all segments. */
static inline int ice_forest_segment(const ice_forest *f, int layer, int64_t node) {
    int n = 0;
    while (node >= f->first[layer][n + 1]) n++;
    return n;
}

/* Keys below a segment's own parent: descendants of a node lie together. */
static inline int64_t ice_keys_below(const icecore_segment *segment, int layer, int64_t parent) {
    int64_t low = parent, high = parent + 1;
    for (; layer < segment->layers; layer++) {
        low = segment->layer[layer].offset[low];
        high = segment->layer[layer].offset[high];
    }
    return high - low;
}

/* Vectors below a parent that may be returned. */
static inline int64_t ice_wanted_below(const ice_forest *f, int layer, int64_t node) {
    if (f->wanted[layer]) return f->wanted[layer][node];
    int n = ice_forest_segment(f, layer, node);
    return ice_keys_below(f->segment[n], layer, node - f->first[layer][n]);
}

/* ---- search_wanted.c: filters and removed vectors ---- */

/* Finds what may be returned.  The forest must be known. */
icecore_status ice_find_wanted(ice_search_call *call);
/* Whether a filter leaves fewer vectors than a search of the trees would visit: since its budgets count what is wanted
 * alone, it opens the more parents, the fewer there are. */
int ice_exact_is_less(const ice_search_call *call);

/* ---- search_tree.c: down the tree by 8-bit codes ---- */

/* Inner products: the queries' own codes, for all parents. */
void ice_encode_queries(ice_search_space *w);
/* All parents of a layer become every query's picks. */
void ice_pick_all(ice_search_space *w, int layer);
/* The first layer's scores, and each query's picks in the second. */
void ice_pick_from_roots(ice_search_space *w);
/* Score the children of the picked parents and collect the best: nodes of the next layer, in the last one slots.  The
 * leading picks set a threshold for the others. */
void ice_scan_leading(ice_search_space *w, int layer);
void ice_scan_others(ice_search_space *w, int layer);
/* What was collected becomes the picks in `layer`. */
void ice_pick_parents(ice_search_space *w, int layer);

/* Two levels, after the last layer was scanned: picks and scans the parents that may hold one of the k best all the
 * same. */
void ice_extend(ice_search_space *w);

/* ---- search_lists.c: the P-DCI lists of the picked parents of the last layer ---- */

void ice_search_lists(ice_search_space *w);

/* ---- search_exact.c: exact scores ---- */

/* Some slots, or all with slots = NULL, against all queries of the chunk, in float32. */
void ice_scan_exactly(ice_search_space *w, const int32_t *slots, int64_t count);
/* A query of the chunk, scaled. */
static inline const float *ice_scaled_query(const ice_search_space *w, int64_t q) {
    return w->query + q * w->call->index->options.dim;
}

/* Stored rows of a segment against one query. */
void ice_compare_exactly(ice_search_space *w, int64_t q, const icecore_segment *segment, const int32_t *rows,
                         int64_t count);
/* What was collected for a query, best first, into w->final_scores and w->final_slots; returns how many. */
int64_t ice_compare_kept(ice_search_space *w, int64_t q);

#endif
