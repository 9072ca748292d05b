#include "base/cpu.h"

int ice_cpu_any(void) { return 1; }

#if defined(__x86_64__) || defined(__i386__)

/* The compiler's run-time library checks the operating system's support for the registers as well. */
int ice_cpu_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

int ice_cpu_avx512(void) {
    return ice_cpu_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

int ice_cpu_avx512_bf16(void) { return ice_cpu_avx512() && __builtin_cpu_supports("avx512bf16"); }

#else

int ice_cpu_avx2(void) { return 0; }
int ice_cpu_avx512(void) { return 0; }
int ice_cpu_avx512_bf16(void) { return 0; }

#endif
