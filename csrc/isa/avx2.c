#include "simd/avx2.h"

#define KERNEL_ISA "avx2"
#define KERNEL_TABLE ice_kernels_avx2
#include "kernels/table.inc.h"
