/* Arrays that have several owners, and are freed together with the last one. */
#ifndef ICE_OWNED_H
#define ICE_OWNED_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Enough for the arrays of a segment, and for those of a search tree of ICECORE_MAX_LEVELS layers. */
#define ICE_MAX_OWNED 64

typedef struct {
    atomic_int owners;
    int64_t bytes; /* of all arrays */
    int count;
    void *array[ICE_MAX_OWNED];
} ice_owned;

/* A struct of `size` bytes that begins with an ice_owned, of one owner and nothing yet, and is 0 otherwise; NULL on
 * failure.  ice_free frees it. */
void *ice_owned_new(size_t size);
/* count * size bytes more; NULL on failure. */
void *ice_owned_alloc(ice_owned *owned, int64_t count, size_t size);
/* Gives up one owner.  Whether it was the last one: then the arrays are freed. */
int ice_owned_release(ice_owned *owned);

#endif
