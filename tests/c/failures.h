/* Failures on demand: of allocations, and interrupts.  Those of the calling thread: calls that shall fail use no other.
 */
#ifndef FAILURES_H
#define FAILURES_H

#include "icecore.h"

/* The core gets memory `enough` times more; then never, or, `once`, just the next time not. */
void fail_allocation(long enough, int once);
/* The interrupt check is asked each time that it may be, says go on so many times, and then stop, once. */
void interrupt_after(long questions);
/* Nothing fails any more.  Whether something did since the last call of these. */
int fail_nothing(void);

/* One of these, or nothing, at random. */
void fail_at_random(void);
/* Whether the status is `expected`, or says the failure that there was; nothing fails any more. */
int is_as_expected(icecore_status status, icecore_status expected);

/* How many times more than usual is tried: ICECORE_TEST_FACTOR in the environment. */
long test_factor(void);

#endif
