#include "base/lock.h"

#include <errno.h>
#include <time.h>

#include "base/parallel.h"

/* ---- Forks ---- */

/* All locks there are, so that a forked process can free those whose holders it lacks. */
static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static ice_lock *first;

/* What this thread reads, the last one last.  A thread reads few at a time: those of one call, and of calls in handlers
 * that interrupt it. */
#define MAX_READ 64
static _Thread_local ice_lock *read_here[MAX_READ];
static _Thread_local int read_count;

static int times_read(const ice_lock *lock) {
    int times = 0;
    for (int i = 0; i < read_count; i++) times += read_here[i] == lock;
    return times;
}

static int is_written_here(const ice_lock *lock) {
    return lock->writing && pthread_equal(lock->writer, pthread_self());
}

static void make(ice_lock *lock) {
    pthread_mutex_init(&lock->mutex, NULL);
    pthread_cond_init(&lock->released, NULL);
}

static void before_fork(void) { pthread_mutex_lock(&registry); }
static void in_parent(void) { pthread_mutex_unlock(&registry); }

/* The only thread is the one that forked: others have left their locks as they were. */
static void in_child(void) {
    for (ice_lock *lock = first; lock; lock = lock->next) {
        make(lock);
        lock->is_lost |= lock->writing && !is_written_here(lock);
        if (!lock->writing) lock->readers = times_read(lock); /* reading leaves nothing half done */
        lock->waiting = 0;
    }
    pthread_mutex_init(&registry, NULL);
}

__attribute__((constructor)) static void begin(void) { pthread_atfork(before_fork, in_parent, in_child); }

/* ---- Life ---- */

void ice_lock_begin(ice_lock *lock) {
    *lock = (ice_lock){0};
    make(lock);
    pthread_mutex_lock(&registry);
    lock->next = first;
    if (first) first->previous = lock;
    first = lock;
    pthread_mutex_unlock(&registry);
}

void ice_lock_end(ice_lock *lock) {
    pthread_mutex_lock(&registry);
    if (lock->next) lock->next->previous = lock->previous;
    if (lock->previous) lock->previous->next = lock->next;
    else first = lock->next;
    pthread_mutex_unlock(&registry);
    pthread_mutex_destroy(&lock->mutex);
    pthread_cond_destroy(&lock->released);
}

/* ---- Taking and releasing ---- */

/* Seconds after which a thread that waits asks whether it shall go on: nanoseconds. */
#define PATIENCE 50000000

static int is_free(const ice_lock *lock, int writes) {
    return !lock->writing && (writes ? !lock->readers : !lock->waiting);
}

/* Waits a while.  The mutex is held before and after, not while a signal handler runs, which may want the lock itself.
 */
static icecore_status wait_a_while(ice_lock *lock, int writes) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += PATIENCE;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    lock->waiting += writes;
    const int timed_out = pthread_cond_timedwait(&lock->released, &lock->mutex, &until) == ETIMEDOUT;
    lock->waiting -= writes;
    if (!timed_out) return ICECORE_OK;
    pthread_mutex_unlock(&lock->mutex);
    const int interrupted = ice_interrupted();
    pthread_mutex_lock(&lock->mutex);
    return interrupted ? ICECORE_INTERRUPTED : ICECORE_OK;
}

static icecore_status take(ice_lock *lock, int writes, int waits) {
    const int times = times_read(lock);
    icecore_status status = ICECORE_OK;
    pthread_mutex_lock(&lock->mutex);
    if (lock->is_lost) status = ICECORE_ERROR_FORKED;
    else if (is_written_here(lock) || (writes ? times > 0 : read_count == MAX_READ)) status = ICECORE_ERROR_BUSY;
    while (status == ICECORE_OK && !times && !is_free(lock, writes))
        status = waits ? wait_a_while(lock, writes) : ICECORE_ERROR_BUSY;
    if (status == ICECORE_OK && writes) {
        lock->writing = 1;
        lock->writer = pthread_self();
    } else if (status == ICECORE_OK) {
        lock->readers++;
        read_here[read_count++] = lock;
    }
    pthread_mutex_unlock(&lock->mutex);
    return status;
}

icecore_status ice_lock_read(ice_lock *lock) { return take(lock, 0, 1); }
icecore_status ice_lock_write(ice_lock *lock) { return take(lock, 1, 1); }
icecore_status ice_lock_try(ice_lock *lock) { return take(lock, 1, 0); }

void ice_unlock(ice_lock *lock) {
    pthread_mutex_lock(&lock->mutex);
    if (lock->writing) {
        lock->writing = 0;
    } else {
        int i = read_count - 1;
        while (read_here[i] != lock) i--;
        for (read_count--; i < read_count; i++) read_here[i] = read_here[i + 1];
        lock->readers--;
    }
    pthread_cond_broadcast(&lock->released);
    pthread_mutex_unlock(&lock->mutex);
}
