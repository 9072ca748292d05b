/* Locks for many readers or one writer, which refuse where others would wait for ever. */
#ifndef ICE_LOCK_H
#define ICE_LOCK_H

#include <pthread.h>

#include "icecore.h"

typedef struct ice_lock {
    pthread_mutex_t mutex; /* of what follows */
    pthread_cond_t released;
    int readers, writing, waiting; /* threads; waiting: to write */
    pthread_t writer;              /* where one is writing */
    int is_lost; /* in a forked process: a thread that is not there was writing; what it wrote is in no known state */
    struct ice_lock *next, *previous; /* all locks there are */
} ice_lock;

void ice_lock_begin(ice_lock *lock);
void ice_lock_end(ice_lock *lock);

/* Take the lock, readers after writers who wait.  ICECORE_ERROR_BUSY: this thread holds it already, and was interrupted
 * by who asks now (a signal handler, a callback); but who reads may read again.  ICECORE_ERROR_FORKED: it is lost.
 * ICECORE_INTERRUPTED: while waiting. */
icecore_status ice_lock_read(ice_lock *lock);
icecore_status ice_lock_write(ice_lock *lock);
/* As ice_lock_write, with ICECORE_ERROR_BUSY instead of waiting. */
icecore_status ice_lock_try(ice_lock *lock);
void ice_unlock(ice_lock *lock);

#endif
