#include "simd/scalar.h"

#define KERNEL_ISA "scalar"
#define KERNEL_TABLE ice_kernels_scalar
#include "kernels/table.inc.h"
