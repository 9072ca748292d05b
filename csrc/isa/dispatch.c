/* Which kernels run: the best usable table, or the one that was asked for. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/kernels.h"

/* X(name) for each instruction set that is built besides the scalar one, worst first (sets.txt). */
#ifndef ICE_BUILT_SETS
#define ICE_BUILT_SETS(X)
#endif

#define DECLARE(name) extern const ice_kernels ice_kernels_##name;
#define LEVEL(name) {&ice_kernels_##name, ice_cpu_##name},

DECLARE(scalar)
ICE_BUILT_SETS(DECLARE)

/* Worst first. */
static const struct {
    const ice_kernels *kernels;
    int (*usable)(void);
} levels[] = {LEVEL(scalar) ICE_BUILT_SETS(LEVEL)};
#define LEVELS ((int)(sizeof levels / sizeof *levels))

static int list_isas(int only_usable, const char **names, int capacity) {
    int found = 0;
    for (int i = 0; i < LEVELS; i++)
        if (!only_usable || levels[i].usable()) {
            if (found < capacity) names[found] = levels[i].kernels->isa;
            found++;
        }
    return found;
}

int icecore_built_isas(const char **names, int capacity) { return list_isas(0, names, capacity); }
int icecore_usable_isas(const char **names, int capacity) { return list_isas(1, names, capacity); }

const ice_kernels *ice_find_kernels(const char *isa) {
    for (int i = 0; i < LEVELS; i++)
        if (strcmp(levels[i].kernels->isa, isa) == 0 && levels[i].usable()) return levels[i].kernels;
    return NULL;
}

static const ice_kernels *best_kernels(void) {
    const ice_kernels *best = &ice_kernels_scalar;
    for (int i = 0; i < LEVELS; i++)
        if (levels[i].usable()) best = levels[i].kernels;
    return best;
}

/* NULL until first use, and for as long as ICECORE_ISA names what is not usable. */
static _Atomic(const ice_kernels *) active = NULL;

const ice_kernels *ice_active_kernels(void) {
    const ice_kernels *kernels = atomic_load_explicit(&active, memory_order_acquire);
    if (kernels) return kernels;
    const char *wanted = getenv("ICECORE_ISA");
    kernels = wanted && *wanted ? ice_find_kernels(wanted) : best_kernels();
    atomic_store_explicit(&active, kernels, memory_order_release);
    return kernels;
}

const char *icecore_isa(void) {
    const ice_kernels *kernels = ice_active_kernels();
    return kernels ? kernels->isa : "none";
}

icecore_status icecore_isa_status(void) { return ice_active_kernels() ? ICECORE_OK : ICECORE_ERROR_ISA; }

icecore_status icecore_set_isa(const char *name) {
    const ice_kernels *kernels = name ? ice_find_kernels(name) : best_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    atomic_store_explicit(&active, kernels, memory_order_release);
    return ICECORE_OK;
}
