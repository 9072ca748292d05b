/* The dynamic index's memory; its meaning is in icecore.h. */
#ifndef ICE_INDEX_H
#define ICE_INDEX_H

#include "base/lock.h"
#include "index/id_map.h"
#include "index/slots.h"
#include "tree/build.h"

/* Vectors that are compared exactly before they are sealed. */
#define ICE_OPEN_BLOCK 1024
/* Numbers of segments fit a byte.  Two or three of each size class exist at a time; more where there is no memory to
 * merge, or in a file that somebody else made: one may hold half of the numbers, so that there is room to go on from
 * it. */
#define ICE_MAX_SEGMENTS 200
#define ICE_MAX_SAVED_SEGMENTS (ICE_MAX_SEGMENTS / 2)
#define ICE_MAX_MERGES 48

typedef struct {
    ice_tree *segment; /* NULL: the number is free.  Its order holds slots */
    int64_t removed;   /* of its slots */
    int merging;       /* a merge reads it */
} ice_sealed;

/* Segments on their way to become one.  They serve until it is done. */
typedef struct {
    ice_tree_builder *builder; /* NULL: free */
    ice_slot_rows rows;
    int32_t *slot;       /* what was not removed when it began; NULL once the builder knows the rows as slots */
    int64_t count, work; /* slots; row visits in all */
    int64_t owed;        /* visits not yet made, or made ahead (negative) */
    uint8_t from[ICE_MAX_SEGMENTS];
    int from_count;
} ice_merge;

struct icecore_index {
    ice_lock lock;
    icecore_index_options options;
    float *directions; /* of the P-DCI lists; NULL without */
    ice_slots slots;
    ice_id_map map;  /* of a mapped index: empty until first needed */
    int64_t used;    /* vectors in the index */
    int64_t removed; /* slots that a segment still names */
    int64_t next_id;
    uint64_t seals; /* segments ever built: part of each one's seed */
    int32_t open[ICE_OPEN_BLOCK];
    int64_t open_count;
    ice_sealed sealed[ICE_MAX_SEGMENTS];
    ice_merge merge[ICE_MAX_MERGES];
    int read_only;
};

/* Vectors of a segment that are not removed. */
static inline int64_t ice_used_in(const ice_sealed *sealed) {
    return sealed->segment ? sealed->segment->count - sealed->removed : 0;
}

/* ---- index.c ---- */

/* A segment over these slots, whose count is at least 1; its order holds slots. */
icecore_status ice_index_seal(icecore_index *index, const int32_t *slot, int64_t count, int threads,
                              icecore_progress progress, void *context, ice_tree **segment);
/* All that clear takes out. */
void ice_index_drop_contents(icecore_index *index);

/* ---- merge.c ---- */

/* Begins the merges that the sizes of the segments ask for.  One for which there is no memory is left for later. */
void ice_merge_begin_due(icecore_index *index);
/* Goes on with each merge by `shares`, the work of so many of its vectors; ICECORE_INTERRUPTED, or a merge that failed
 * goes on later.  No segment changes. */
icecore_status ice_merge_step(icecore_index *index, int64_t shares, int threads);
/* Puts what is merged in force, moves the last vectors of a worn segment to the open block, drops segments without
 * vectors, begins what is due. */
void ice_merge_settle(icecore_index *index);
/* Shares for a vector that comes, and for one that goes.  A segment is built anew when a third of it is removed; a
 * sixth later that is done: half of the vectors in a segment are there at any time. */
#define ICE_SHARES_TO_ADD 2
#define ICE_SHARES_TO_REMOVE 4
/* Ends all merges without a result. */
void ice_merge_drop_all(icecore_index *index);
/* The plan of a segment over rows of this index, seeded by their number. */
ice_tree_plan ice_index_plan(const icecore_index *index, const ice_kernels *kernels, const ice_slot_rows *rows,
                             int64_t count);
/* Whether one more segment may be sealed: a number stays free for what a merge leads to, which is adopted before its
 * parts are dropped. */
int ice_index_has_room(const icecore_index *index);
/* Puts a built segment in force: the slots in its order learn where they are.  There must be a free number. */
void ice_index_adopt(icecore_index *index, ice_tree *segment);
/* Tells the slots of segment `number` their cells. */
void ice_index_enter_cells(icecore_index *index, int number);
/* Counts the vectors of a segment's cells that are not removed; returns how many are. */
int64_t ice_index_count_used(const icecore_index *index, ice_tree *segment);
/* Takes segment `number` out of force; removed slots that only it names are given back. */
void ice_index_drop(icecore_index *index, int number);

/* ---- remove.c ---- */

/* A slot of a segment is marked as removed (change = 1), or no longer (-1). */
void ice_index_count_removed(icecore_index *index, int32_t slot, int change);

/* ---- copy.c ---- */

/* New numbers for the used slots, in their order; -1 for others.  NULL when out of memory. */
int32_t *ice_index_names(const icecore_index *index);
/* A copy of a segment without removed vectors and the cells that held nothing else; its order holds names. */
icecore_status ice_index_copy_used(const icecore_index *index, const ice_sealed *sealed, const int32_t *name,
                                   ice_tree **copy);

/* ---- validate.c ---- */

/* What searching and changing rely on: every vector in one place, every place on a vector.  O(slots); no lock. */
icecore_status ice_index_check_structure(const icecore_index *index, char *reason, int64_t reason_size);

/* The lock for reading, with the ids in the map: a mapped index enters them when they are first needed. */
icecore_status ice_index_lookup_lock(icecore_index *index);
/* The lock for writing: a mapped index does not change. */
icecore_status ice_index_write_lock(icecore_index *index);

#endif
