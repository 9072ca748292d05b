#include "base/memory.h"

#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* From here on arrays lie in huge pages where the system gives them: a merge that fills one, and queries that read here and there in it,
 * wait less for the page table. */
#define HUGE_PAGE ((size_t)2 << 20)
#define LEAST_HUGE (4 * HUGE_PAGE)

void *ice_alloc(int64_t count, size_t size) {
    if (count < 0 || (size != 0 && (uint64_t)count > (SIZE_MAX - HUGE_PAGE) / size)) return NULL;
    size_t bytes = ice_round_up((size_t)count * size);
    void *memory = NULL;
    if (posix_memalign(&memory, bytes >= LEAST_HUGE ? HUGE_PAGE : ICE_ALIGNMENT, bytes ? bytes : ICE_ALIGNMENT)) return NULL;
#ifdef MADV_HUGEPAGE
    if (bytes >= LEAST_HUGE) (void)madvise(memory, bytes, MADV_HUGEPAGE);   /* a wish; small pages serve too */
#endif
    return memory;
}

void ice_free(void *memory) { free(memory); }
