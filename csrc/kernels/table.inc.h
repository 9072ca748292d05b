/* Included once by each file of isa/, after one header of simd/ and with KERNEL_ISA (a string) and KERNEL_TABLE (a
 * name) defined: compiles every kernel for that instruction set and exports one table. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "base/order.h"
#include "kernels/kernels.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if ICE_PANEL % (QUERY_VECTORS * VF_WIDTH) != 0
#error "a panel is a whole number of register tiles"
#endif

#include "kernels/quantized.inc.h"
#include "kernels/convert.inc.h"
#include "kernels/softcap.inc.h"
#include "kernels/alibi.inc.h"
#include "kernels/panel.inc.h"
#include "kernels/rows.inc.h"
#include "kernels/gather.inc.h"
#include "kernels/cells.inc.h"
#include "kernels/codes.inc.h"

/* kernels of this set alone, by its intrinsics */
#ifdef KERNEL_OWN
#include KERNEL_OWN
#endif
#ifndef KERNEL_BF16
#define KERNEL_BF16 NULL
#endif
#ifndef KERNEL_THIRDS
#define KERNEL_THIRDS NULL
#endif

const ice_kernels KERNEL_TABLE = {
    .isa = KERNEL_ISA,
    .width = VF_WIDTH,
    .bf16 = KERNEL_BF16,
    .thirds = KERNEL_THIRDS,
    .to_float32 = to_float32,
    .from_float32 = from_float32,
    .split = split,
    .join = join,
    .multiply = multiply,
    .softcap = softcap,
    .alibi = alibi,
    .row_alibi = row_alibi,
    .to_panel = to_panel,
    .from_panel = from_panel,
    .scores = scores,
    .mask_range = mask_range,
    .softmax = softmax,
    .weighted_sum = weighted_sum,
    .relu_sum = relu_sum,
    .row_scores = row_scores,
    .row_softmax = row_softmax,
    .row_weighted_sum = row_weighted_sum,
    .gathered_scores = gathered_scores,
    .gathered_weighted_sum = gathered_weighted_sum,
    .nearest = nearest,
    .cell_risk = cell_risk,
    .count_at_least = count_at_least,
    .open_cells = open_cells,
    .row_open_cells = row_open_cells,
    .code_scores = code_scores,
    .find_at_least = find_at_least,
    .nth_largest = nth_largest,
    .keep_reaching = keep_reaching,
    .keep_largest = keep_largest,
    .rank = rank,
    .encode = encode,
    .encode_lane = encode_lane,
    .squared_distances = squared_distances,
    .chebyshev = chebyshev,
};
