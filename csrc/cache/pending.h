/* A segment in the making, shared by the caches that will need it: forks of a prompt seal each block once. */
#ifndef ICE_PENDING_H
#define ICE_PENDING_H

#include <stdatomic.h>

#include "base/lock.h"
#include "cache/open_rows.h"
#include "segment/stack.h"

typedef struct {
    atomic_int owners;
    ice_lock lock;      /* of all below */
    int64_t first, end; /* keys */
    int64_t skip;       /* of the source when it began: evicting more makes it useless */
    int64_t total;      /* units of work */
    int64_t begun;    /* token of its block with which it began: later than others in a cache that comes from a file */
    ice_stack *stack; /* what is read: these segments and rows, kept until it is done */
    ice_open_rows *open;
    ice_sealing sealing;
    icecore_segment *segment; /* when it is done */
} ice_pending;

/* Begins keys first .. end - 1 of a source whose arrays are those of `open` and whose segments those of `stack`; some
 * keys are past source->skip. */
icecore_status ice_pending_begin(const ice_source *source, const ice_stack *stack, ice_open_rows *open, int64_t first,
                                 int64_t end, ice_pending **result);
ice_pending *ice_pending_share(ice_pending *pending);
void ice_pending_release(ice_pending *pending); /* NULL: nothing */

/* Goes on until at most `left` units of work are left.  If another thread is at it and there is time, does nothing. */
icecore_status ice_pending_step(ice_pending *pending, int64_t left);
/* Adds the memory of what is being built. */
icecore_status ice_pending_bytes(ice_pending *pending, int64_t *bytes);
/* The finished segment, one more owner of it for the caller; none where a fork left it half built. */
icecore_status ice_pending_finish(ice_pending *pending, icecore_segment **segment);

#endif
