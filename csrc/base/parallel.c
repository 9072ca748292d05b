#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "base/fork.h"
#include "base/memory.h"
#include "base/quota.h"

#ifdef _OPENMP
#include <omp.h>
#endif

int icecore_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int icecore_default_threads(void) {
#ifdef _OPENMP
    int threads = omp_get_max_threads();
    const int processors = omp_get_num_procs(), quota = ice_cpu_quota(); /* processors: respects affinity */
    if (threads > processors) threads = processors;
    if (quota > 0 && threads > quota) threads = quota;
    return threads > 0 ? threads : 1;
#else
    return 1;
#endif
}

void ice_wait(const atomic_int *flag) {
    while (!atomic_load_explicit(flag, memory_order_acquire)) sched_yield();
}

void ice_signal(atomic_int *flag) { atomic_store_explicit(flag, 1, memory_order_release); }

typedef struct {
    int64_t count;
    ice_task task;
    void *context;
    char *scratch; /* a block of `stride` bytes for each thread */
    size_t stride;
    atomic_int threads; /* that have begun */
    atomic_llong next;
    atomic_int stop;
} task_list;

/* What this thread is at. */
static _Thread_local struct {
    task_list *list; /* NULL: no loop */
    int is_caller;
} here = {NULL, 1};

/* ---- Interrupts ---- */

/* Seconds between two calls of the interrupt check. */
#define CHECK_INTERVAL 0.05

static int (*interrupt_check)(void) = NULL;
/* Outlives loops and calls: many short ones that follow one another ask as often as a long one. */
static _Thread_local double next_check;

void icecore_set_interrupt_check(int (*check)(void)) { interrupt_check = check; }

double ice_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int is_stopped(void) { return here.list && atomic_load(&here.list->stop); }

int ice_interrupted_now(void) {
    if (is_stopped() || !here.is_caller || !interrupt_check) return is_stopped();
    next_check = ice_seconds() + CHECK_INTERVAL; /* before: what it calls does not ask at once again */
    const int stop = interrupt_check();
    if (stop && here.list) atomic_store(&here.list->stop, 1);
    return stop;
}

int ice_interrupted(void) {
    return here.is_caller && interrupt_check && ice_seconds() >= next_check ? ice_interrupted_now() : is_stopped();
}

/* ---- Threads ---- */

/* Takes tasks until there are none.  Thread 0 is the caller's. */
static void work(task_list *list, int thread) {
    task_list *outer = here.list; /* a signal handler computes while another call waits */
    const int was_caller = here.is_caller;
    here.list = list;
    here.is_caller = thread == 0;
    for (;;) {
        const int64_t i = atomic_fetch_add(&list->next, 1);
        if (i >= list->count) break;
        list->task(list->context, i, atomic_load(&list->stop) ? NULL : list->scratch + list->stride * (size_t)thread);
        (void)ice_interrupted();
    }
    here.list = outer;
    here.is_caller = was_caller;
}

/* More are not started for one loop. */
#define MAX_NEW_THREADS 256

static void *begin_work(void *list) {
    work(list, 1 + atomic_fetch_add(&((task_list *)list)->threads, 1));
    return NULL;
}

/* On threads of its own, or fewer where the system gives no more. */
static void work_on_new_threads(task_list *list, int threads) {
    pthread_t thread[MAX_NEW_THREADS];
    int started = 0;
    while (started < threads - 1 && started < MAX_NEW_THREADS &&
           !pthread_create(&thread[started], NULL, begin_work, list))
        started++;
    work(list, 0);
    while (started > 0) pthread_join(thread[--started], NULL);
}

static void work_on_threads(task_list *list, int threads) {
#ifdef _OPENMP
    if (!ice_is_forked()) {
#pragma omp parallel num_threads(threads)
        work(list, omp_get_thread_num());
        return;
    }
#endif
    work_on_new_threads(list, threads);
}

/* ---- Scratch ---- */

/* Short calls that follow one another, as decode steps do, spend a fifth of their time on getting the same fresh pages
 * from the system again (measured at 128k), so one block of a moderate size is kept from call to call. */
#define LARGEST_KEPT ((size_t)32 << 20)

typedef struct {
    size_t bytes; /* behind the first ICE_ALIGNMENT ones */
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

/* The interrupts of the loop around it are its own. */
static icecore_status run_within_task(int64_t count, size_t scratch_bytes, ice_task task, void *context) {
    void *scratch = ice_alloc(1, scratch_bytes ? scratch_bytes : 1);
    if (!scratch) return ICECORE_ERROR_MEMORY;
    int stopped = 0;
    for (int64_t i = 0; i < count && !stopped; i++) {
        task(context, i, scratch);
        stopped = ice_interrupted();
    }
    ice_free(scratch);
    return stopped ? ICECORE_INTERRUPTED : ICECORE_OK;
}

icecore_status ice_parallel_for(int64_t count, int threads, size_t scratch_bytes, ice_task task, void *context) {
    if (threads == ICE_WITHIN_TASK) return run_within_task(count, scratch_bytes, task, context);
    if (threads <= 0) threads = icecore_default_threads();
    if (threads > count) threads = (int)count;
    if (threads < 1) threads = 1;
    task_list list = {
        .count = count, .task = task, .context = context, .stride = ice_round_up(scratch_bytes ? scratch_bytes : 1)};
    if (list.stride <= SIZE_MAX / (size_t)threads) list.scratch = take_scratch(list.stride * (size_t)threads);
    if (!list.scratch) return ICECORE_ERROR_MEMORY;
    if (threads == 1) work(&list, 0);
    else work_on_threads(&list, threads);
    give_scratch_back(list.scratch);
    return atomic_load(&list.stop) ? ICECORE_INTERRUPTED : ICECORE_OK;
}
