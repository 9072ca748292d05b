#include "base/memory.h"

#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* From here on arrays lie in huge pages where the system gives them, whole ones, so that nothing behind the array is
 * held: a merge that fills one, and queries that read here and there in it, wait less for the page table. */
#define HUGE_PAGE ((size_t)2 << 20)

static void want_huge_pages(void *memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    if (bytes >= HUGE_PAGE)
        (void)madvise(memory, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* a wish; small pages serve too */
#else
    (void)memory, (void)bytes;
#endif
}

void *ice_alloc(int64_t count, size_t size) {
    if (count < 0 || (size != 0 && (uint64_t)count > (SIZE_MAX - HUGE_PAGE) / size)) return NULL;
    size_t bytes = ice_round_up((size_t)count * size);
    void *memory = NULL;
    if (posix_memalign(&memory, bytes >= HUGE_PAGE ? HUGE_PAGE : ICE_ALIGNMENT, bytes ? bytes : ICE_ALIGNMENT))
        return NULL;
    want_huge_pages(memory, bytes);
    return memory;
}

void ice_free(void *memory) { free(memory); }

/* What lies in front of a kept array. */
typedef struct {
    void *start;   /* of the allocation */
    size_t mapped; /* its bytes, where it is a mapping of its own */
} header;

static header *header_of(void *memory) { return (header *)((char *)memory - ICE_ALIGNMENT); }

/* Kept arrays from here on are mappings of their own: a call in bfloat16 then needs 1.5 times its keys and values and
 * not 1.7 (bench_near_far.py --memory), for two or three hundredths of its time. */
#define MIN_MAPPED ((size_t)128 << 10)

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) /* which watches the ends of what malloc gives */
static void *map(size_t bytes) {
    const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : ICE_ALIGNMENT, length = bytes + alignment + ICE_ALIGNMENT;
    char *start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return NULL;
    char *memory = (char *)(((uintptr_t)start + ICE_ALIGNMENT + alignment - 1) & ~(uintptr_t)(alignment - 1));
    want_huge_pages(memory, bytes);
    *header_of(memory) = (header){start, length};
    return memory;
}
static void unmap(const header *h) { munmap(h->start, h->mapped); }
#else
static void *map(size_t bytes) { return (void)bytes, NULL; }
static void unmap(const header *h) { (void)h; }
#endif

void *ice_alloc_kept(int64_t count, size_t size) {
    if (count < 0 || (size != 0 && (uint64_t)count > (SIZE_MAX - 2 * HUGE_PAGE) / size)) return NULL;
    const size_t bytes = ice_round_up((size_t)count * size);
    void *memory = bytes >= MIN_MAPPED ? map(bytes) : NULL;
    if (memory) return memory;
    char *start = ice_alloc((int64_t)(bytes + ICE_ALIGNMENT), 1);
    if (!start) return NULL;
    memory = start + ICE_ALIGNMENT;
    *header_of(memory) = (header){start, 0};
    return memory;
}

void ice_free_kept(void *memory) {
    if (!memory) return;
    const header h = *header_of(memory);
    if (h.mapped) unmap(&h);
    else ice_free(h.start);
}
