/* The arrays of a segment, named once for all that writes, maps and copies an index. */
#ifndef ICE_FIELDS_H
#define ICE_FIELDS_H

#include "index/index.h"
#include "base/arrays.h"

#define ICE_MAX_FIELDS (3 + 5 * ICE_MAX_LAYERS + 3)
/* Numbers of the array "header": used, removed, next_id, seals, open_count, slots. */
#define ICE_HEADER 6

/* The arrays of a segment whose counts, layers and lists' sizes are known; returns how many. */
int64_t ice_fields_of(ice_tree *segment, const icecore_index_options *options, ice_field *fields);

#endif
