#include "base/cpu.h"

int ice_cpu_scalar(void) { return 1; }
int ice_cpu_neon(void) { return 1; }

#if defined(__x86_64__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CPUID_ECX_F16C (1u << 29)

/* The compiler's run-time library checks the operating system's support for the registers as well. */
int ice_cpu_avx2(void) {
    unsigned a, b, c = 0, d; /* clang's builtin does not know F16C */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & CPUID_ECX_F16C);
}

int ice_cpu_avx512(void) {
    return ice_cpu_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

int ice_cpu_avx512_bf16(void) {
    return ice_cpu_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

#ifdef ICE_EMULATE_TILES

int ice_cpu_amx(void) { return ice_cpu_avx512_bf16(); }

#elif defined(__linux__)

#define CPUID_EDX_AMX_BF16 (1u << 22)
#define CPUID_EDX_AMX_TILE (1u << 24)
#define XCR0_TILES ((1u << 17) | (1u << 18))
/* arch_prctl: tile state is large, so Linux gives it only to processes that ask (5.16 and later). */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

static int ask_for_tiles(void) {
    unsigned a, b, c, d, low, high;
    if (!ice_cpu_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (!(d & CPUID_EDX_AMX_TILE) || !(d & CPUID_EDX_AMX_BF16)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & XCR0_TILES) != XCR0_TILES) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

int ice_cpu_amx(void) {
    static int known = -1; /* a race asks twice and gets the same answer */
    if (known < 0) known = ask_for_tiles();
    return known;
}

#else

int ice_cpu_amx(void) { return 0; }

#endif

#else

int ice_cpu_avx2(void) { return 0; }
int ice_cpu_avx512(void) { return 0; }
int ice_cpu_avx512_bf16(void) { return 0; }
int ice_cpu_amx(void) { return 0; }

#endif
