/* A selector: what a method of choosing keys has to write.
 *
 * Once per call it makes digests of each key head; then, for each tile of rows, it streams runs of keys into it
 * (attend/run.h).  The driver lays out its memory and has the tasks. */
#ifndef ICE_SELECTOR_H
#define ICE_SELECTOR_H

#include "attend/run.h"

/* A call as selectors see it. */
typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    int64_t near_keys;    /* for each row, about */
    uint64_t seed;        /* of methods that draw random numbers */
    const void *settings; /* of the method's own type, if it has one */
} ice_selector_call;

/* A struct of the method's own, and the arrays that it points to. */
typedef struct {
    size_t size; /* of the struct; 0: there is none */
    /* Takes the arrays, and fills in what follows from the call alone. */
    void (*lay_out)(const ice_selector_call *call, void *own, ice_arena *arena);
} ice_selector_memory;

typedef struct {
    ice_selector_memory digests, space; /* of a head; of a tile */
    /* Fills in a head's digests, whose arrays are zero before.  head: batch * key_heads + key head. */
    icecore_status (*digest)(const ice_selector_call *call, int64_t head, void *digests);
    /* Frees what digests hold, also where digesting has failed or was never begun; NULL: they hold nothing. */
    void (*release)(const ice_selector_call *call, void *digests);
    /* Attends; near_count[lane]: the keys that were chosen for it. */
    void (*select)(const ice_selector_call *call, ice_tile *tile, const void *digests, void *space,
                   int64_t near_count[ICE_PANEL]);
} ice_selector;

/* ICECORE_ERROR_VALUE for windows, ranges, masks, ALiBi, near_keys below 1, and more than INT32_MAX keys, which have
 * numbers of 32 bits.  near_count: NULL, or batch x query_heads x queries. */
icecore_status ice_attend_selected(const ice_selector_call *call, const ice_selector *selector, int32_t *near_count);
/* Query head by query head, as if each had a key head of its own: tiles of each head's rows. */
icecore_status ice_attend_selected_by_heads(const ice_selector_call *call, const ice_selector *selector,
                                            int32_t *near_count);

/* ---- What several have in common ---- */

/* A key of a head as float32. */
static inline void ice_read_key(const ice_selector_call *call, int64_t head, int64_t key, float *row) {
    const icecore_attention *p = call->problem;
    call->kernels->to_float32(p->key_dtype, ice_key_at(p, head, key), row, p->dim);
}

/* Attends all rows to keys first .. end - 1, each to those it sees, and counts these. */
static inline void ice_attend_counted(ice_tile *tile, int64_t first, int64_t end, int64_t near_count[ICE_PANEL]) {
    if (first >= end) return;
    ice_tile_attend_keys(tile, tile->problem, first, end);
    for (int lane = 0; lane < tile->lanes; lane++) {
        const int64_t seen = ice_min(tile->visible[lane].end, end);
        if (seen > first) near_count[lane] += seen - first;
    }
}

#endif
