#include "base/memory.h"

#include <stdlib.h>

void *ice_alloc(int64_t count, size_t size) {
    if (count < 0 || (size != 0 && (uint64_t)count > (SIZE_MAX - ICE_ALIGNMENT) / size)) return NULL;
    size_t bytes = ice_round_up((size_t)count * size);
    void *memory = NULL;
    return posix_memalign(&memory, ICE_ALIGNMENT, bytes ? bytes : ICE_ALIGNMENT) == 0 ? memory : NULL;
}

void ice_free(void *memory) { free(memory); }
