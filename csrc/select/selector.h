/* A selector: what a method of choosing keys has to write.
 *
 * Once per call it makes digests of each key head; then, for each tile of rows, it streams runs of keys into it
 * (attend/run.h).  The schedule is attention/selected.c's. */
#ifndef ICE_SELECTOR_H
#define ICE_SELECTOR_H

#include "attend/run.h"

/* A call as selectors see it. */
typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    int64_t near_keys;       /* for each row, about */
    int64_t vertical, slash; /* minference: columns and diagonals */
    int64_t visit;           /* pdci: keys that each composite index yields, at least near_keys and at most all */
    uint64_t seed;           /* pdci, magicpig, vattention, zeta */
    const void *settings;    /* of the method's own type below, if it has one */
} ice_selector_call;

typedef struct {
    int64_t page;           /* keys */
    int mean_reach;         /* whether boxes reach from their centre as far as keys do on average, or hold all keys */
    int64_t oldest, newest; /* whole pages that a row always chooses; near_keys counts them */
} ice_pages_settings;

typedef struct {
    int64_t components, local; /* of a query, the largest ones; last keys, which are always chosen */
} ice_sparq_settings;

#define ICE_MAGICPIG_MAX_BITS 16
#define ICE_MAGICPIG_MAX_TABLES 4096
typedef struct {
    int64_t bits, tables, sinks, local; /* sinks, local: first and last keys, which are always attended to */
} ice_magicpig_settings;

typedef struct {
    int64_t stride; /* 4, 8 or 16 */
    double threshold;
} ice_xattention_settings;

typedef struct {
    int64_t sinks, window;
    double epsilon;
    double deviate; /* that a normal number exceeds, to both sides, with probability delta */
} ice_vattention_settings;

static inline int64_t ice_at_most(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct {
    /* Bytes of one head's digests (NULL, as `digest`: there are none), and of a tile's scratch. */
    size_t (*digest_bytes)(const ice_selector_call *call);
    size_t (*scratch_bytes)(const ice_selector_call *call);
    /* head: batch * key_heads + key head.  The digests are zero before. */
    icecore_status (*digest)(const ice_selector_call *call, int64_t head, void *digests);
    /* Frees what digests hold, also where digesting has failed or was never begun; NULL: they hold nothing. */
    void (*release)(const ice_selector_call *call, void *digests);
    /* Attends; near_count[lane]: the keys that were chosen for it. */
    void (*select)(const ice_selector_call *call, ice_tile *tile, const void *digests, void *scratch,
                   int64_t near_count[ICE_PANEL]);
} ice_selector;

/* Attends all rows to keys first .. end - 1, each to those it sees, and counts these. */
static inline void ice_attend_counted(ice_tile *tile, int64_t first, int64_t end, int64_t near_count[ICE_PANEL]) {
    if (first >= end) return;
    ice_tile_attend_keys(tile, tile->problem, first, end);
    for (int lane = 0; lane < tile->lanes; lane++) {
        const int64_t seen = tile->visible[lane].end < end ? tile->visible[lane].end : end;
        if (seen > first) near_count[lane] += seen - first;
    }
}

extern const ice_selector ice_top_k, ice_minference, ice_block_sparse, ice_pages, ice_pdci;
extern const ice_selector ice_sparq, ice_magicpig, ice_xattention, ice_vattention, ice_zeta, ice_retroinfer;

/* ICECORE_ERROR_VALUE for windows, ranges, masks and near_keys below 1.  near_count: NULL, or batch x query_heads x
 * queries. */
icecore_status ice_attend_selected(const ice_selector_call *call, const ice_selector *selector, int32_t *near_count);

#endif
