#include "simd/avx512.h"

#define KERNEL_ISA "avx512_bf16"
#define KERNEL_TABLE ice_kernels_avx512_bf16
#define KERNEL_OWN "isa/bf16_dot.inc.h"
#define KERNEL_BF16_ROWS "isa/bf16_rows_dot.inc.h"
#define KERNEL_BF16 &bf16_dot
#include "kernels/table.inc.h"
