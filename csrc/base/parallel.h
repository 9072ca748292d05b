/* Parallel for: the only place that knows about threads. */
#ifndef ICE_PARALLEL_H
#define ICE_PARALLEL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "icecore.h"

/* One task.  `scratch` is this thread's own block, aligned, not cleared between tasks; NULL when the call has been interrupted: then
 * the task must do no work but still tell those who wait for it. */
typedef void (*ice_task)(void *context, int64_t index, void *scratch);

/* Runs task(context, i, scratch) once for every i in [0, count) on up to `threads` threads (0: the default).  Tasks are handed out one by
 * one in ascending order, so a task may wait (ice_wait) for one with a smaller index; where nobody waits, put the long ones
 * first.  A task's result must depend on its index alone.
 * Returns ICECORE_ERROR_MEMORY before any task starts, ICECORE_INTERRUPTED when the interrupt check said stop, else ICECORE_OK.
 * In a child process forked after threads were used it runs serially: OpenMP does not survive fork. */
icecore_status ice_parallel_for(int64_t count, int threads, size_t scratch_bytes, ice_task task, void *context);

/* Returns when *flag is not 0.  Set it with ice_signal: what was written before is then visible here. */
void ice_wait(const atomic_int *flag);
void ice_signal(atomic_int *flag);

#endif
