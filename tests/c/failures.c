#include "failures.h"

#include <stdlib.h>
#include <time.h>

#include "arrays.h"

/* The core calls these in place of the functions whose names they bear (see the Makefile). */
int counted_posix_memalign(void **memory, size_t alignment, size_t size);
int skipping_clock_gettime(clockid_t clock, struct timespec *now);

static long allocations = -1, questions = -1; /* that still succeed; negative: all */
static int only_once, failed, stopped;

int counted_posix_memalign(void **memory, size_t alignment, size_t size) {
    if (allocations == 0) {
        failed = 1;
        if (only_once) allocations = -1;
        return 12;
    }
    if (allocations > 0) allocations--;
    return posix_memalign(memory, alignment, size);
}

/* While interrupts are counted a second passes from one look at the clock to the next. */
int skipping_clock_gettime(clockid_t clock, struct timespec *now) {
    static time_t skipped;
    const int result = clock_gettime(clock, now);
    if (questions >= 0) skipped++;
    now->tv_sec += skipped;
    return result;
}

static int stop_after_questions(void) {
    if (stopped || questions-- > 0) return 0;
    questions = 0;
    return stopped = 1;
}

void fail_allocation(long enough, int once) {
    fail_nothing();
    allocations = enough;
    only_once = once;
}

void interrupt_after(long after) {
    fail_nothing();
    questions = after;
    icecore_set_interrupt_check(stop_after_questions);
}

int fail_nothing(void) {
    const int was = failed || stopped;
    if (questions >= 0) icecore_set_interrupt_check(NULL);
    allocations = questions = -1;
    failed = stopped = 0;
    return was;
}

void fail_at_random(void) {
    const long after = (long)draw(1u << draw(9));
    switch (draw(4)) {
    case 0: fail_allocation(after, (int)draw(2)); break;
    case 1: interrupt_after(after); break;
    default: fail_nothing();
    }
}

int is_as_expected(icecore_status status, icecore_status expected) {
    const int lacked = failed, asked_to_stop = stopped;
    fail_nothing();
    if (asked_to_stop) return status == ICECORE_INTERRUPTED;
    return status == expected || (lacked && status == ICECORE_ERROR_MEMORY);
}

long test_factor(void) {
    const char *factor = getenv("ICECORE_TEST_FACTOR");
    return factor && atol(factor) > 0 ? atol(factor) : 1;
}
