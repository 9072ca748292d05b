/* Parallel for, and interrupts: the only place that knows about threads. */
#ifndef ICE_PARALLEL_H
#define ICE_PARALLEL_H

#include <limits.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "icecore.h"

/* One task.  `scratch` is this thread's own block, aligned, not cleared between tasks; NULL when the call has been
 * interrupted: then the task must do no work but still tell those who wait for it. */
typedef void (*ice_task)(void *context, int64_t index, void *scratch);

/* Runs task(context, i, scratch) once for every i in [0, count) on up to `threads` threads (0: the default).  Tasks are
 * handed out one by one in ascending order, so a task may wait (ice_wait) for one with a smaller index; where nobody
 * waits, put the long ones first.  A task's result must depend on its index alone. Returns ICECORE_ERROR_MEMORY before
 * any task starts, ICECORE_INTERRUPTED when the interrupt check said stop, else ICECORE_OK. In a forked process, and
 * without OpenMP, it starts threads of its own each time: OpenMP's do not survive a fork.  threads = ICE_WITHIN_TASK:
 * serial, for callers that are tasks themselves. */
#define ICE_WITHIN_TASK INT_MIN
icecore_status ice_parallel_for(int64_t count, int threads, size_t scratch_bytes, ice_task task, void *context);

/* Whether the call shall end: asks the interrupt check when it has not been asked for a while, on the caller's thread;
 * other threads learn it from that one.  For long tasks and for long work outside of loops.  A task ends early then,
 * still telling those who wait for it; elsewhere the call must end with ICECORE_INTERRUPTED. */
int ice_interrupted(void);
/* Rows of moderate work between two such questions. */
#define ICE_UNASKED 1024
/* The same, asking in any case: before what was done is put in force, so that a call which has succeeded is not
 * interrupted afterwards. */
int ice_interrupted_now(void);

/* Of a clock that never goes back. */
double ice_seconds(void);

/* Returns when *flag is not 0.  Set it with ice_signal: what was written before is then visible here. */
void ice_wait(const atomic_int *flag);
void ice_signal(atomic_int *flag);

#endif
