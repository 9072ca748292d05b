/* Matrix tiles: eight of up to 16 rows of 64 bytes, and c += a b on bfloat16 pairs.
 *
 *   tile_float_product(c, a, b):  c[m][n] += sum_k a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1],  m, n, k < 16
 *
 * a: 16 rows of 32 bfloat16; b: 16 rows of 16 pairs; c: 16 rows of 16 floats.  All tiles here are full: 16 rows of 64
 * bytes. Tile numbers are constants.  Strides are in bytes.
 *
 * With ICE_EMULATE_TILES the same operations run in plain C, so that kernels over tiles are tested on machines without
 * AMX. */
#ifndef ICE_SIMD_TILES_H
#define ICE_SIMD_TILES_H

#include <stdint.h>
#include <string.h>

#ifndef ICE_EMULATE_TILES

#include <immintrin.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_configuration;

/* Constant data: compilers may take the instruction to read no more than its first bytes, and drop stores behind them.
 */
#define EACH_TILE(x) {x, x, x, x, x, x, x, x}
static const tile_configuration full_tiles
    __attribute__((aligned(64))) = {.palette = 1, .row_bytes = EACH_TILE(64), .rows = EACH_TILE(16)};
#undef EACH_TILE

/* Before the first and after the last tile operation of a kernel, on each thread. */
#define tiles_begin() _tile_loadconfig(&full_tiles)
#define tiles_end() _tile_release()
#define tile_zero(tile) _tile_zero(tile)
/* Some compilers' headers do not tell them that the instruction reads memory: what it reads must have been stored. */
#define tile_load(tile, address, stride)    \
    do {                                    \
        __asm__ volatile("" ::: "memory");  \
        _tile_loadd(tile, address, stride); \
    } while (0)
#define tile_store(tile, address, stride) _tile_stored(tile, address, stride)
#define tile_float_product(c, a, b) _tile_dpbf16ps(c, a, b)

#else

#include "base/half.h"

static _Thread_local uint8_t emulated_tiles[8][16][64];

static inline void tiles_begin(void) { memset(emulated_tiles, 0, sizeof emulated_tiles); }
static inline void tiles_end(void) {}
static inline void tile_zero(int tile) { memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile]); }
static inline void tile_load(int tile, const void *address, int64_t stride) {
    for (int m = 0; m < 16; m++) memcpy(emulated_tiles[tile][m], (const char *)address + m * stride, 64);
}
static inline void tile_store(int tile, void *address, int64_t stride) {
    for (int m = 0; m < 16; m++) memcpy((char *)address + m * stride, emulated_tiles[tile][m], 64);
}
static inline float emulated_product(const uint16_t *a, const uint16_t *b) {
    return ice_bfloat16_to_float(a[0]) * ice_bfloat16_to_float(b[0]) +
           ice_bfloat16_to_float(a[1]) * ice_bfloat16_to_float(b[1]);
}
static inline void tile_float_product(int c, int a, int b) {
    float sum[16][16];
    uint16_t left[16][32], right[16][32];
    memcpy(sum, emulated_tiles[c], sizeof sum);
    memcpy(left, emulated_tiles[a], sizeof left);
    memcpy(right, emulated_tiles[b], sizeof right);
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++) sum[m][n] += emulated_product(&left[m][2 * k], &right[k][2 * n]);
    memcpy(emulated_tiles[c], sum, sizeof sum);
}

#endif
#endif
