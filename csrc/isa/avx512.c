#include "simd/avx512.h"

#define KERNEL_ISA "avx512"
#define KERNEL_TABLE ice_kernels_avx512
#include "kernels/table.inc.h"
