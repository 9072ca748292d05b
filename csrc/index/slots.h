/* Where an index keeps its vectors: numbered slots, in chunks that never move. */
#ifndef ICE_SLOTS_H
#define ICE_SLOTS_H

#include <stddef.h>
#include <stdint.h>

#include "icecore.h"
#include "cluster/rows.h"

#define ICE_SLOT_CHUNK 1024

enum { ICE_SLOT_FREE, ICE_SLOT_USED, ICE_SLOT_REMOVED };
/* `home` of a slot in the open block. */
#define ICE_HOME_OPEN 255
/* And of one that is being added. */
#define ICE_HOME_NEW 254

typedef struct {
    char *rows; /* ICE_SLOT_CHUNK x dim of the dtype */
    int64_t *id;
    int32_t *cell; /* which cell of its segment holds the slot; NULL in a mapped index until ids are looked up */
    uint8_t *state;
    uint8_t *home; /* number of the segment that holds the slot, or ICE_HOME_OPEN */
} ice_slot_chunk;

typedef struct {
    int64_t dim;
    icecore_dtype dtype;
    size_t row_bytes;
    int64_t count;            /* slots that have ever been used: the rest of the last chunk is not */
    int64_t chunks, capacity; /* chunks there are; places in `chunk` */
    ice_slot_chunk *chunk;
    int32_t free; /* one above a slot below `count` that is free, whose id names the next in the same way; 0: none */
    int owned;    /* 0: the chunks' arrays belong to somebody else */
} ice_slots;

/* Chunks for `count` slots in all. */
icecore_status ice_slots_reserve(ice_slots *slots, int64_t count);
void ice_slots_end(ice_slots *slots);
int64_t ice_slots_bytes(const ice_slots *slots);
/* Leaves the first `count` slots, all of them used: the others' memory is wiped out or freed. */
void ice_slots_cut(ice_slots *slots, int64_t count);
/* Gives slots that belong to somebody else their `cell`. */
icecore_status ice_slots_reserve_cells(ice_slots *slots);
/* Takes a free slot; there must be one (ice_slots_reserve). */
int32_t ice_slots_take(ice_slots *slots);
/* Gives a slot back; its vector is wiped out. */
void ice_slots_give(ice_slots *slots, int32_t slot);

static inline ice_slot_chunk *ice_chunk_of(const ice_slots *slots, int64_t slot) {
    return &slots->chunk[slot / ICE_SLOT_CHUNK];
}
static inline void *ice_slot_row(const ice_slots *slots, int64_t slot) {
    return ice_chunk_of(slots, slot)->rows + (size_t)(slot % ICE_SLOT_CHUNK) * slots->row_bytes;
}
static inline int64_t *ice_slot_id(const ice_slots *slots, int64_t slot) {
    return &ice_chunk_of(slots, slot)->id[slot % ICE_SLOT_CHUNK];
}
static inline int32_t *ice_slot_cell(const ice_slots *slots, int64_t slot) {
    return &ice_chunk_of(slots, slot)->cell[slot % ICE_SLOT_CHUNK];
}
static inline uint8_t *ice_slot_state(const ice_slots *slots, int64_t slot) {
    return &ice_chunk_of(slots, slot)->state[slot % ICE_SLOT_CHUNK];
}
static inline uint8_t *ice_slot_home(const ice_slots *slots, int64_t slot) {
    return &ice_chunk_of(slots, slot)->home[slot % ICE_SLOT_CHUNK];
}

/* Some slots' vectors as rows. */
typedef struct {
    const ice_kernels *kernels;
    const ice_slots *slots;
    const int32_t *slot; /* NULL: slot = row */
} ice_slot_rows;
const float *ice_read_slot_row(const void *slot_rows, int64_t row, float *buffer);

#endif
