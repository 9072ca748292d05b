/* A tile: up to ICE_PANEL rows of one key head on their way through the keys.
 *
 * begin, then any number of the calls of run.h, in any order over disjoint keys, then finish or write.  What the row
 * kernels sum goes to a state of each row, what the panel kernels sum to a state in lanes (kernels.h); finish merges
 * them.  The panel's part is set up by the first call that needs it. */
#ifndef ICE_TILE_H
#define ICE_TILE_H

#include "attend/packed_heads.h"
#include "attend/state.h"
#include "base/memory.h"

/* Keys of short runs, put together for the panel kernels (key_block.c). */
typedef struct {
    const void *keys, *values; /* in ice_panel_dtype */
    int64_t count;
    int pieces; /* runs of keys with the same lanes */
    int64_t piece_count[ICE_KEY_BLOCK];
    uint64_t piece_lanes[ICE_KEY_BLOCK];
} ice_key_block;

typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    int64_t batch, key_head, first_row;
    int lanes;
    float scale; /* scale * log2(e) */
    float cap;   /* softcap * log2(e); 0: none */
    ice_visible visible[ICE_PANEL];
    int64_t position[ICE_PANEL]; /* where the rows stand */
    ice_alibi alibi;             /* its offsets: of the keys in hand (ice_tile_alibi_from) */

    /* by rows */
    float *query_rows;      /* lanes x dim, times scale */
    uint16_t *rounded_rows; /* lanes x dim as bfloat16, not scaled; NULL: everything in float32 */
    ice_state state[ICE_PANEL];
    float *state_accumulators; /* lanes x value_dim */

    /* by panel; spare lanes are as the last row */
    int has_panel;
    float *queries;         /* dim x ICE_PANEL, times scale */
    uint16_t *query_pairs;  /* for the bfloat16 kernels; NULL: everything in float32 */
    uint16_t *query_thirds; /* for those of thirds; NULL: as float32 */
    uint16_t *thirds_room;
    float *maximum, *sum, *correction; /* ICE_PANEL each */
    float *accumulator;                /* value_dim x ICE_PANEL */
    float *scores, *bias;              /* ICE_KEY_BLOCK x ICE_PANEL */
    float *keys, *values;    /* ICE_KEY_BLOCK rows each: widened to float32, cleaned of NaN and inf, or side by side */
    uint16_t *packed_values; /* as the bfloat16 kernels want a block's values */
    ice_packed_head packed;  /* the key head, where a call has packed it once */
    ice_key_block pending;
} ice_tile;

/* The problem's soft cap, on whole scores to which no mask has been added yet: count x ICE_PANEL, or of one row. */
static inline void ice_tile_cap(const ice_tile *tile, float *scores, int64_t count) {
    if (tile->cap > 0.0f) tile->kernels->softcap(scores, count, tile->lanes, tile->cap);
}
static inline void ice_tile_cap_row(const ice_tile *tile, float *scores, int64_t count) {
    if (tile->cap > 0.0f) tile->kernels->softcap(scores, 1, count, tile->cap);
}

/* ALiBi of the panel's scores for keys `first`.. of the problem, which are the call's keys 0..; NULL: the problem has
 * none. */
const ice_alibi *ice_tile_alibi_from(ice_tile *tile, int64_t first);
/* What it takes off a lane's scores of keys first .. first + count - 1. */
void ice_tile_alibi_row(const ice_tile *tile, int lane, int64_t first, int64_t count, float *scores);

/* Scratch of a tile, whatever the type of its keys. */
size_t ice_tile_bytes(const icecore_attention *problem);

/* Loads a key head's rows from first_row on: `rows` of them, or as many as a panel holds.  Their states start with the
 * problem's sink logits. */
void ice_tile_begin(ice_tile *tile, const icecore_attention *problem, const ice_kernels *kernels, int64_t batch,
                    int64_t key_head, int64_t first_row, int64_t rows, void *scratch);

/* Before the first key: the problem's queries stand at other positions than at its last keys. */
void ice_tile_place(ice_tile *tile, const int64_t *position);

/* All lanes of the tile. */
static inline uint64_t ice_tile_lanes(const ice_tile *tile) { return ((uint64_t)1 << tile->lanes) - 1; }

/* Where a lane's row stands in the problem. */
static inline ice_row ice_tile_row(const ice_tile *tile, int lane) {
    return ice_row_at(tile->problem, tile->batch, tile->key_head, tile->first_row + lane);
}

/* What holds all keys that a row of the tile may see: [0, sink_end) and [begin, end). */
ice_visible ice_tile_visible(const ice_tile *tile);

/* Sets up what the panel kernels read and write, if nobody has. */
void ice_tile_begin_panel(ice_tile *tile);

/* What the rows' states hold is added to the panel's, and they start anew; not while short runs wait. */
void ice_tile_move_to_panel(ice_tile *tile);

/* *lse grows by the score of `centre`, which was taken off all keys, with a lane's query. */
void ice_add_centre(const ice_tile *tile, int lane, const float *centre, float *lse);

/* ---- Runs ---- */

/* Neighbouring keys for some rows of a tile. */
typedef struct {
    uint64_t lanes; /* the rows that attend */
    icecore_dtype dtype;
    const void *keys, *values;                   /* must stay until the tile is finished */
    const uint16_t *second_keys, *second_values; /* of float32 rows in halves (kernels.h), whose first ones are `keys`
                                                    and `values`, of bfloat16; NULL: what is rounded there is taken */
    int64_t key_stride, value_stride;
    int64_t count;
    int64_t first;     /* the first key's place in the problem; ALiBi alone asks for it */
    const float *bias; /* of each key, added to its scores (log2 units); NULL: 0 */
    const float *base; /* dim numbers that all keys lack; NULL: 0 */
    int unchecked;     /* may hold NaN or inf and rows that must not see them */
} ice_run;

/* Rows without gaps. */
static inline ice_run ice_run_of(const ice_tile *tile, icecore_dtype dtype, const void *keys, const void *values,
                                 int64_t count, uint64_t lanes) {
    return (ice_run){.lanes = lanes,
                     .dtype = dtype,
                     .keys = keys,
                     .values = values,
                     .key_stride = ice_row_stride(dtype, tile->problem->dim),
                     .value_stride = ice_row_stride(dtype, tile->problem->value_dim),
                     .count = count};
}

/* Keys first .. end - 1 of `source` (see ice_tile_attend_keys). */
static inline ice_run ice_run_of_keys(const ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end,
                                      uint64_t lanes) {
    return (ice_run){.lanes = lanes,
                     .dtype = source->key_dtype,
                     .keys = ice_address(&source->key, source->key_dtype, tile->batch, tile->key_head, first),
                     .values = ice_address(&source->value, source->key_dtype, tile->batch, tile->key_head, first),
                     .key_stride = source->key.row_stride,
                     .value_stride = source->value.row_stride,
                     .count = end - first,
                     .first = first};
}

#endif
