/* Aligned memory, and memory laid out and measured by the same code. */
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

/* As ice_alloc, for arrays that others replace: large ones go back to the system as soon as they are freed, where
 * malloc would keep a good part of them.  Free with ice_free_kept. */
void *ice_alloc_kept(int64_t count, size_t size);
void ice_free_kept(void *memory);

/* Memory laid out and measured by the same code: a function takes its arrays from an arena, and with an arena of no
 * memory it only finds out how many bytes they need. */
typedef struct {
    char *memory; /* aligned to ICE_ALIGNMENT; NULL: only measured */
    size_t used;
} ice_arena;

/* count * size bytes on cache lines of their own; NULL where the arena only measures. */
static inline void *ice_arena_take(ice_arena *arena, int64_t count, size_t size) {
    void *taken = arena->memory ? arena->memory + arena->used : NULL;
    arena->used += ice_round_up((size_t)count * size);
    return taken;
}

/* So much of what is long: the processor sees the rest coming. */
#define ICE_PREFETCHED 8192

/* On its way from memory while something else is done. */
static inline void ice_prefetch(const char *rows, const char *end) {
    if (end - rows > ICE_PREFETCHED) end = rows + ICE_PREFETCHED;
    for (; rows < end; rows += 64) __builtin_prefetch(rows);
}

#endif
