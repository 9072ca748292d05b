/* Parallel for: the only place that knows about threads. */
#ifndef ICE_PARALLEL_H
#define ICE_PARALLEL_H

#include <stddef.h>
#include <stdint.h>

#include "icecore.h"

/* One task.  `scratch` is this thread's own block, aligned, not cleared between tasks. */
typedef void (*ice_task)(void *context, int64_t index, void *scratch);

/* Runs task(context, i, scratch) for every i in [0, count), in any order, on up to `threads` threads (0: the default).  Tasks
 * are handed out one by one in ascending order: put the long ones first.  A task's result must depend on its index alone.
 * Returns ICECORE_ERROR_MEMORY before any task starts, ICECORE_INTERRUPTED when the interrupt check said stop (some tasks then
 * never ran), else ICECORE_OK.  In a child process forked after threads were used it runs serially: OpenMP does not survive fork. */
icecore_status ice_parallel_for(int64_t count, int threads, size_t scratch_bytes, ice_task task, void *context);

#endif
