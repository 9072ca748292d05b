/* The dynamic index's memory; its meaning is in icecore.h. */
#ifndef ICE_INDEX_H
#define ICE_INDEX_H

#include "base/lock.h"
#include "index/id_map.h"
#include "index/slots.h"
#include "segment/segment.h"
#include "segment/tree.h"

/* Vectors that are compared exactly before they are sealed. */
#define ICE_OPEN_BLOCK 1024
/* Numbers of segments fit a byte.  Two or three of each size class exist at a time; more where there is no memory to merge, or in a file that
 * somebody else made: one may hold half of the numbers, so that there is room to go on from it. */
#define ICE_MOST_SEGMENTS 200
#define ICE_MOST_SAVED_SEGMENTS (ICE_MOST_SEGMENTS / 2)
#define ICE_MOST_MERGES 48

typedef struct {
    icecore_segment *segment;  /* NULL: the number is free.  Its order holds slots */
    int64_t removed;           /* of its slots */
    int merging;               /* a merge reads it */
} ice_sealed;

/* Segments on their way to become one.  They serve until it is done. */
typedef struct {
    ice_tree_builder *builder; /* NULL: free */
    ice_slot_rows rows;
    int32_t *slot;             /* what was not removed when it began; NULL once the builder knows the rows as slots */
    int64_t count, work;       /* slots; row visits in all */
    int64_t owed;              /* visits not yet made, or made ahead (negative) */
    uint8_t from[ICE_MOST_SEGMENTS];
    int from_count;
} ice_merge;

struct icecore_index {
    ice_lock lock;
    icecore_index_options options;
    float *directions;         /* of the P-DCI lists; NULL without */
    ice_slots slots;
    ice_id_map map;            /* of a mapped index: empty until first needed */
    int64_t used;              /* vectors in the index */
    int64_t removed;           /* slots that a segment still names */
    int64_t next_id;
    uint64_t seals;            /* segments ever built: part of each one's seed */
    int32_t open[ICE_OPEN_BLOCK];
    int64_t open_count;
    ice_sealed sealed[ICE_MOST_SEGMENTS];
    ice_merge merge[ICE_MOST_MERGES];
    int read_only;
};

/* Vectors of a segment that are not removed. */
static inline int64_t ice_used_in(const ice_sealed *sealed) { return sealed->segment ? sealed->segment->count - sealed->removed : 0; }

/* ---- merge.c ---- */

/* Begins the merges that the sizes of the segments ask for.  One for which there is no memory is left for later. */
void ice_merge_begin_due(icecore_index *index);
/* Goes on with each merge by `shares`: the work of so many of its vectors.  Two for an insertion, one for a removal. */
icecore_status ice_merge_advance(icecore_index *index, int64_t shares, int threads);
/* Ends all merges without a result. */
void ice_merge_drop_all(icecore_index *index);
/* The plan of a segment over rows of this index, seeded by their number. */
ice_tree_plan ice_index_plan(const icecore_index *index, const ice_kernels *kernels, const ice_slot_rows *rows, int64_t count);
/* Whether one more segment may be sealed: a number stays free for what a merge leads to, which is adopted before its parts are dropped. */
int ice_index_has_room(const icecore_index *index);
/* Puts a built segment in force: the slots in its order learn where they are.  There must be a free number. */
void ice_index_adopt(icecore_index *index, icecore_segment *segment);
/* Tells the slots of segment `number` their cells. */
void ice_index_enter_cells(icecore_index *index, int number);
/* Counts the vectors of a segment's cells that are not removed; returns how many are. */
int64_t ice_index_count_used(const icecore_index *index, icecore_segment *segment);
/* Takes segment `number` out of force; removed slots that only it names are given back. */
void ice_index_drop(icecore_index *index, int number);

/* ---- validate.c ---- */

/* What searching and changing rely on: every vector in one place, every place on a vector.  O(slots); no lock. */
icecore_status ice_index_check_structure(const icecore_index *index, char *reason, int64_t reason_size);

/* The lock for reading, with the ids in the map: a mapped index enters them when they are first needed. */
icecore_status ice_index_lookup_lock(icecore_index *index);

#endif
