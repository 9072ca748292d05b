#include "simd/avx512.h"
#include "simd/tiles.h"

#define KERNEL_ISA "amx"
#define KERNEL_TABLE ice_kernels_amx
#define KERNEL_OWN "isa/thirds_tiles.inc.h"
#define KERNEL_BF16_ROWS "isa/bf16_rows_fma.inc.h"
#define KERNEL_BF16 &bf16_tiles
#define KERNEL_THIRDS &thirds_tiles
#include "kernels/table.inc.h"
