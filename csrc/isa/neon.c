#include "simd/neon.h"

#define KERNEL_ISA "neon"
#define KERNEL_TABLE ice_kernels_neon
#include "kernels/table.inc.h"
