/* Which kernels run: the best usable table, or the one that was asked for. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/kernels.h"

extern const ice_kernels ice_kernels_scalar;
#ifdef ICE_BUILD_AVX2
extern const ice_kernels ice_kernels_avx2;
#endif
#ifdef ICE_BUILD_AVX512
extern const ice_kernels ice_kernels_avx512;
#endif
#ifdef ICE_BUILD_AVX512_BF16
extern const ice_kernels ice_kernels_avx512_bf16;
#endif
#ifdef ICE_BUILD_AMX
extern const ice_kernels ice_kernels_amx;
#endif
#ifdef ICE_BUILD_NEON
extern const ice_kernels ice_kernels_neon;
#endif

/* Worst first. */
static const struct {
    const ice_kernels *kernels;
    int (*usable)(void);
} levels[] = {
    {&ice_kernels_scalar, ice_cpu_any},
#ifdef ICE_BUILD_NEON
    {&ice_kernels_neon, ice_cpu_any},
#endif
#ifdef ICE_BUILD_AVX2
    {&ice_kernels_avx2, ice_cpu_avx2},
#endif
#ifdef ICE_BUILD_AVX512
    {&ice_kernels_avx512, ice_cpu_avx512},
#endif
#ifdef ICE_BUILD_AVX512_BF16
    {&ice_kernels_avx512_bf16, ice_cpu_avx512_bf16},
#endif
#ifdef ICE_BUILD_AMX
    {&ice_kernels_amx, ice_cpu_amx},
#endif
};
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
