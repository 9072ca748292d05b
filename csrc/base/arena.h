/* Memory laid out and measured by the same code: a function takes its arrays from an arena, and with an arena of no
 * memory it only finds out how many bytes they need. */
#ifndef ICE_ARENA_H
#define ICE_ARENA_H

#include "base/memory.h"

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

#endif
