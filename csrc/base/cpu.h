/* What this processor and operating system can run of the instruction sets that the build is for. */
#ifndef ICE_CPU_H
#define ICE_CPU_H

int ice_cpu_scalar(void);
int ice_cpu_neon(void);        /* part of every AArch64 processor */
int ice_cpu_avx2(void);        /* AVX2, FMA, F16C */
int ice_cpu_avx512(void);      /* AVX-512 F, BW, DQ, VL */
int ice_cpu_avx512_bf16(void); /* and VNNI: every processor that has the one has the other */
/* AMX tiles with bfloat16, and the operating system's leave to use them, which this asks for on first call.
 * Always AVX512_BF16 as well. */
int ice_cpu_amx(void);

#endif
