/* The arrays of a segment, named once for all that writes, maps and copies an index. */
#ifndef ICE_FIELDS_H
#define ICE_FIELDS_H

#include "index/index.h"

typedef struct {
    char part[20];
    char type;
    int64_t count;
    void **data;               /* where the segment keeps it */
} ice_field;

#define ICE_MOST_FIELDS (1 + 5 * ICE_MOST_LAYERS + 3)
/* Numbers of the array "header": used, removed, next_id, seals, open_count, slots. */
#define ICE_HEADER 6

/* Bytes of an element of an icecore_array's type. */
static inline size_t ice_size_of(char type) { return type == 'l' ? 8 : type == 'b' ? 1 : type == 'h' ? 2 : 4; }

/* The arrays of a segment whose counts, layers and lists' sizes are known; returns how many. */
int64_t ice_fields_of(icecore_segment *segment, const icecore_index_options *options, ice_field *fields);

#endif
