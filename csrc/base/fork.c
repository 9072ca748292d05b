#include "base/fork.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static atomic_int forked;

static void in_child(void) { atomic_store(&forked, 1); }

/* Linux's flag of a process that was forked and has started no program since (PF_FORKNOEXEC); 0 elsewhere. */
#define FORKED_FLAG 0x40ul

static int was_forked_before(void) {
    char line[1024];
    unsigned long flags = 0;
    FILE *file = fopen("/proc/self/stat", "r");
    if (!file) return 0;
    const size_t length = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[length] = '\0';
    /* pid (name) state parent group session terminal group flags: the name may hold anything */
    const char *rest = strrchr(line, ')');
    return rest && sscanf(rest, ") %*c %*d %*d %*d %*d %*d %lu", &flags) == 1 && (flags & FORKED_FLAG);
}

/* When the library is loaded: whoever forks later need not have used it. */
__attribute__((constructor)) static void begin(void) {
    atomic_store(&forked, was_forked_before());
    pthread_atfork(NULL, NULL, in_child);
}

int ice_is_forked(void) { return atomic_load(&forked); }
