#include "base/owned.h"

#include <string.h>

#include "base/memory.h"

void *ice_owned_new(size_t size) {
    ice_owned *owned = ice_alloc(1, size);
    if (!owned) return NULL;
    memset(owned, 0, size);
    owned->owners = 1;
    return owned;
}

void *ice_owned_alloc(ice_owned *owned, int64_t count, size_t size) {
    if (owned->count == ICE_MAX_OWNED) return NULL;
    void *array = ice_alloc_kept(count, size);
    if (!array) return NULL;
    owned->array[owned->count++] = array;
    owned->bytes += count * (int64_t)size;
    return array;
}

int ice_owned_release(ice_owned *owned) {
    if (atomic_fetch_sub(&owned->owners, 1) > 1) return 0;
    for (int i = 0; i < owned->count; i++) ice_free_kept(owned->array[i]);
    return 1;
}
