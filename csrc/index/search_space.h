/* One search on its way: what is asked, and the memory of a chunk of queries. */
#ifndef ICE_SEARCH_SPACE_H
#define ICE_SEARCH_SPACE_H

#include "index/collector.h"
#include "index/forest.h"

/* The best parents go first until they hold this many times what is kept. */
#define ICE_LEADING 3

/* What the best keys below a node may score (search_reach.h): one of two lines in the distance from its mean. */
typedef struct {
    float slope[2], drop[2];
} ice_reach;

typedef struct {
    icecore_index *index;
    const ice_kernels *kernels;
    const icecore_search *search;
    const float *queries;
    int64_t count, chunk;
    int64_t *rows;            /* of the queries that are searched, in their order; NULL: all */
    uint8_t *unsure;          /* of each query: others may be as good as its best (search_exact.h); NULL: not asked */
    float scale;              /* of squared distances: the rows' and the queries'; 0: inner products */
    int64_t keep_nodes, keep; /* parents kept; candidates compared exactly */
    int64_t capacity, nodes;  /* of the collector; parents a query can have picked */
    int64_t view;             /* parents kept, of those of which all vectors may be returned */
    ice_reach *reach;         /* of the second layer's nodes, by which others follow the view; NULL: none do */
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
    float *norm;          /* count: of the scaled queries; for reaches of inner products */
    ice_collector collector;
    int32_t *pick, *by_node;  /* count x nodes: the parents each query picked; the queries of each parent */
    int64_t *picks, *leading; /* count: how many; how many of them go first */
    int64_t *node_begin;      /* parents + 1 */
    int64_t *visited;         /* count */
    int64_t stride;           /* of codes */
    int8_t *code;             /* count x stride: inner products */
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
    float *coded;         /* capacity: one query's candidates' scores by codes */
    float *final_scores;  /* capacity: the candidates, best first */
    int32_t *final_slots, *rank;
} ice_search_space;

static inline int64_t ice_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ice_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Whether a slot's vector may be returned. */
static inline int ice_is_wanted(const ice_search_call *call, int32_t slot) {
    if (call->allowed && !call->allowed[slot]) return 0;
    return *ice_slot_state(&call->index->slots, slot) == ICE_SLOT_USED;
}

/* The row of a query of the chunk in what is asked and answered. */
static inline int64_t ice_query_row(const ice_search_space *w, int64_t q) {
    return w->call->rows ? w->call->rows[w->first + q] : w->first + q;
}

/* A query of the chunk, scaled. */
static inline const float *ice_scaled_query(const ice_search_space *w, int64_t q) {
    return w->query + q * w->call->index->options.dim;
}

#endif
