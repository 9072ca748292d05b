#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* Seconds between two calls of the interrupt check. */
#define CHECK_INTERVAL 0.05

static int (*interrupt_check)(void) = NULL;

#ifdef _OPENMP
/* Set when threads were started in this process, and when this process is a fork of such a one. */
static volatile int threads_started = 0;
static volatile int forked_after_threads = 0;
static pthread_once_t fork_handler_once = PTHREAD_ONCE_INIT;

static void in_forked_child(void) { forked_after_threads |= threads_started; }
static void install_fork_handler(void) { pthread_atfork(NULL, NULL, in_forked_child); }
#endif

void icecore_set_interrupt_check(int (*check)(void)) { interrupt_check = check; }

int icecore_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* CPUs' worth of time the control group grants, rounded up; 0 where there is no quota. */
static int cgroup_quota(void) {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file) return 0;
    char quota[32];
    long period;
    int fields = fscanf(file, "%31s %ld", quota, &period);
    fclose(file);
    if (fields != 2 || strcmp(quota, "max") == 0 || period <= 0) return 0;
    long microseconds;
    if (sscanf(quota, "%ld", &microseconds) != 1 || microseconds <= 0) return 0;
    return (int)((microseconds + period - 1) / period);
}

int icecore_default_threads(void) {
#ifdef _OPENMP
    int threads = omp_get_max_threads();
    int processors = omp_get_num_procs();   /* respects affinity */
    if (threads > processors) threads = processors;
    static int quota = -1;                  /* a race writes the same value twice */
    if (quota < 0) quota = cgroup_quota();
    if (quota > 0 && threads > quota) threads = quota;
    return threads > 0 ? threads : 1;
#else
    (void)cgroup_quota;
    return 1;
#endif
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Asks the interrupt check, at most every CHECK_INTERVAL.  Called by the calling thread only. */
static int interrupted(double *next_check) {
    if (!interrupt_check) return 0;
    double now = seconds_now();
    if (now < *next_check) return 0;
    *next_check = now + CHECK_INTERVAL;
    return interrupt_check();
}

void ice_wait(const atomic_int *flag) {
    while (!atomic_load_explicit(flag, memory_order_acquire)) sched_yield();
}

void ice_signal(atomic_int *flag) { atomic_store_explicit(flag, 1, memory_order_release); }

typedef struct {
    int64_t count;
    ice_task task;
    void *context;
    atomic_llong next;
    atomic_int stop;
} task_list;

/* Takes tasks until there are none.  Only the calling thread asks the interrupt check. */
static void work(task_list *list, void *scratch, int is_caller) {
    double next_check = seconds_now() + CHECK_INTERVAL;
    for (;;) {
        int64_t i = atomic_fetch_add(&list->next, 1);
        if (i >= list->count) return;
        list->task(list->context, i, atomic_load(&list->stop) ? NULL : scratch);
        if (is_caller && interrupted(&next_check)) atomic_store(&list->stop, 1);
    }
}

/* ---- Scratch ---- */

/* Short calls that follow one another, as decode steps do, spend a fifth of their time on getting the same fresh pages from the system again
 * (measured at 128k), so one block of a moderate size is kept from call to call. */
#define LARGEST_KEPT ((size_t)32 << 20)

typedef struct {
    size_t bytes;              /* behind the first ICE_ALIGNMENT ones */
} scratch_block;

static _Atomic(scratch_block *) kept;

static char *take_scratch(size_t bytes) {
    scratch_block *block = atomic_exchange(&kept, NULL);
    if (block && block->bytes < bytes) {
        ice_free(block);
        block = NULL;
    }
    if (!block) {
        block = bytes > SIZE_MAX / 2 ? NULL : ice_alloc(1, bytes + ICE_ALIGNMENT);
        if (!block) return NULL;
        block->bytes = bytes;
    }
    return (char *)block + ICE_ALIGNMENT;
}

static void give_scratch_back(char *scratch) {
    scratch_block *block = (scratch_block *)(void *)(scratch - ICE_ALIGNMENT);
    if (block->bytes <= LARGEST_KEPT) block = atomic_exchange(&kept, block);
    ice_free(block);
}

icecore_status ice_parallel_for(int64_t count, int threads, size_t scratch_bytes, ice_task task, void *context) {
    if (threads <= 0) threads = icecore_default_threads();
    if (threads > count) threads = (int)count;
#ifdef _OPENMP
    if (threads < 1 || forked_after_threads) threads = 1;
#else
    threads = 1;
#endif
    size_t stride = ice_round_up(scratch_bytes ? scratch_bytes : 1);
    char *scratch = stride > SIZE_MAX / (size_t)threads ? NULL : take_scratch(stride * (size_t)threads);
    if (!scratch) return ICECORE_ERROR_MEMORY;
    task_list list = {.count = count, .task = task, .context = context};
    if (threads == 1) {
        work(&list, scratch, 1);
    }
#ifdef _OPENMP
    else {
        pthread_once(&fork_handler_once, install_fork_handler);
        threads_started = 1;
#pragma omp parallel num_threads(threads)
        work(&list, scratch + stride * (size_t)omp_get_thread_num(), omp_get_thread_num() == 0);
    }
#endif
    give_scratch_back(scratch);
    return atomic_load(&list.stop) ? ICECORE_INTERRUPTED : ICECORE_OK;
}
