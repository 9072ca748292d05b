/* Built once for each instruction set, with its flags: peaks_of_NAME. */
#include "peaks.h"

#if defined PEAKS_SCALAR
#include "simd/scalar.h"
#elif defined __AVX512F__
#include "simd/avx512.h"
#elif defined __AVX2__
#include "simd/avx2.h"
#else
#include "simd/neon.h"
#endif

#ifdef __AMX_BF16__
#include "simd/tiles.h"
#endif

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define CHAINS 12 /* in flight at once: no operation waits for another */
#define TURNS 200000
#define TRIES 7

/* Keeps what nothing reads. */
static void keep(const vf *x) {
    volatile float kept[VF_WIDTH];
    float lanes[VF_WIDTH];
    for (int i = 0; i < CHAINS; i++) {
        vf_store(lanes, x[i]);
        for (int lane = 0; lane < VF_WIDTH; lane++) kept[lane] = lanes[lane];
    }
    (void)kept;
}

static double float32_turns(void) {
    volatile float factor = 1.0f, addend = 1e-9f; /* which no compiler knows */
    vf sum[CHAINS], a = vf_set1(factor), b = vf_set1(addend);
    for (int i = 0; i < CHAINS; i++) sum[i] = vf_set1((float)i);
    const double begin = seconds_now();
    for (int turn = 0; turn < TURNS; turn++) UNROLL
        for (int i = 0; i < CHAINS; i++) sum[i] = vf_fma(sum[i], a, b);
    const double seconds = seconds_now() - begin;
    keep(sum);
    return 2.0 * CHAINS * VF_WIDTH * TURNS / seconds;
}

/* Of numbers that a level-1 cache holds. */
static double exponential_turns(void) {
    float x[8 * CHAINS * VF_WIDTH] __attribute__((aligned(64)));
    vf sum[CHAINS];
    for (int i = 0; i < 8 * CHAINS * VF_WIDTH; i++) x[i] = -0.01f * (float)i;
    for (int i = 0; i < CHAINS; i++) sum[i] = vf_zero();
    const double begin = seconds_now();
    for (int turn = 0; turn < TURNS / 8; turn++)
        for (int at = 0; at < 8 * CHAINS * VF_WIDTH; at += CHAINS * VF_WIDTH) UNROLL
            for (int i = 0; i < CHAINS; i++) sum[i] = vf_add(sum[i], vf_exp2(vf_load(x + at + i * VF_WIDTH)));
    const double seconds = seconds_now() - begin;
    keep(sum);
    return (double)CHAINS * VF_WIDTH * TURNS / seconds;
}

static double bfloat16_turns(void) {
#if defined __AMX_BF16__
    uint16_t zeros[16 * 32] = {0};
    tiles_begin();
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    tile_load(4, zeros, 64);
    tile_load(5, zeros, 64);
    tile_load(6, zeros, 64);
    tile_load(7, zeros, 64);
    const double begin = seconds_now();
    for (int turn = 0; turn < TURNS; turn++) {
        tile_float_product(0, 4, 6);
        tile_float_product(1, 4, 7);
        tile_float_product(2, 5, 6);
        tile_float_product(3, 5, 7);
    }
    float out[16 * 16];
    tile_store(0, out, 64); /* waits for the products */
    const double seconds = seconds_now() - begin;
    tiles_end();
    return 4.0 * 2 * 16 * 16 * 32 * TURNS / seconds;
#elif defined __AVX512BF16__
    __m512 sum[CHAINS];
    volatile short one = 0x3f80;
    const __m512bh a = (__m512bh)_mm512_set1_epi16(one), b = a;
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    const double begin = seconds_now();
    for (int turn = 0; turn < TURNS; turn++) UNROLL
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    const double seconds = seconds_now() - begin;
    keep(sum);
    return 4.0 * CHAINS * 16 * TURNS / seconds;
#else
    return 0.0;
#endif
}

/* Numbers in so many pieces, each read `turns` times, a piece for each try. */
static double most_read(const float *numbers, int64_t count, int pieces, int turns) {
    const int64_t step = CHAINS * VF_WIDTH, length = count / pieces / step * step;
    double most = 0.0;
    for (int piece = 0; piece < pieces || piece < TRIES; piece++) {
        const float *own = numbers + piece % pieces * length;
        vf sum[CHAINS];
        for (int i = 0; i < CHAINS; i++) sum[i] = vf_zero();
        const double begin = seconds_now();
        for (int turn = 0; turn < turns; turn++)
            for (int64_t at = 0; at < length; at += step) UNROLL
                for (int i = 0; i < CHAINS; i++) sum[i] = vf_add(sum[i], vf_load(own + at + i * VF_WIDTH));
        const double now = 4.0 * (double)length * turns / (seconds_now() - begin);
        keep(sum);
        if (now > most) most = now;
    }
    return most;
}

static double best(double (*turns)(void)) {
    double most = 0.0;
    for (int i = 0; i < TRIES; i++) {
        const double now = turns();
        if (now > most) most = now;
    }
    return most;
}

peaks PEAKS_NAME(const float *numbers, int64_t near, int64_t far) {
#ifdef __AMX_BF16__
    const int apart = 1;
#else
    const int apart = 0;
#endif
    return (peaks){best(float32_turns),
                   best(bfloat16_turns),
                   best(exponential_turns),
                   apart,
                   {0.0, most_read(numbers, near, 1, 500), most_read(numbers, far, 64, 1)}};
}
