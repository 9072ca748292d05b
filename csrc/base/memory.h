/* Aligned memory. */
#ifndef ICE_MEMORY_H
#define ICE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* A vector register and a cache line. */
#define ICE_ALIGNMENT 64

/* `bytes` rounded up to whole cache lines, so that neighbours in one allocation never share one. */
static inline size_t ice_round_up(size_t bytes) { return (bytes + (ICE_ALIGNMENT - 1)) & ~(size_t)(ICE_ALIGNMENT - 1); }

/* count * size bytes aligned to ICE_ALIGNMENT; NULL on failure or overflow.  Free with ice_free. */
void *ice_alloc(int64_t count, size_t size);
void ice_free(void *memory);

/* The next `bytes` of scratch, which moves on by as much, rounded up.  With NULL nothing moves: for code that only
 * measures. */
static inline void *ice_take(char **scratch, size_t bytes) {
    void *taken = *scratch;
    if (*scratch) *scratch += ice_round_up(bytes);
    return taken;
}

/* As ice_alloc, for arrays that others replace: large ones go back to the system as soon as they are freed, where
 * malloc would keep a good part of them.  Free with ice_free_kept. */
void *ice_alloc_kept(int64_t count, size_t size);
void ice_free_kept(void *memory);

#endif
