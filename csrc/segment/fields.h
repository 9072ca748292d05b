/* The arrays of a segment for attention, named once for all that allocates, writes and maps them. */
#ifndef ICE_SEGMENT_FIELDS_H
#define ICE_SEGMENT_FIELDS_H

#include "base/arrays.h"
#include "segment/segment.h"

#define ICE_MAX_ATTENTION_FIELDS 24

/* The arrays of a segment whose counts, widths and dtypes are known; returns how many, always the same. */
int64_t ice_attention_fields(icecore_segment *segment, ice_field *fields);
/* Memory for all of them; 0 when there is not enough. */
int ice_attention_alloc(icecore_segment *segment);

#endif
