/* Forks: a child process has all memory of its parent, but of its threads only the one that forked. */
#ifndef ICE_FORK_H
#define ICE_FORK_H

/* Whether this process was forked, since the library was loaded or before, and has started no other program since.
 * Libraries may then count on threads that are not there: OpenMP's runtime, which others of the process share, waits
 * for them for ever. */
int ice_is_forked(void);

#endif
