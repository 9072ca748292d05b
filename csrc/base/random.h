/* SplitMix64: a seeded stream that Python reproduces in three lines (icecore/reference/random.py). */
#ifndef ICE_RANDOM_H
#define ICE_RANDOM_H

#include <stdint.h>

/* The next 64 bits of the stream; `state` advances. */
static inline uint64_t ice_random(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Uniform in [0, bound), bound >= 1.  Modulo: the bias is below bound / 2^64. */
static inline uint64_t ice_random_below(uint64_t *state, uint64_t bound) { return ice_random(state) % bound; }

/* The seed of what is built of keys first .. first + count - 1: it depends on where they lie and not on how they came,
 * so that prefill, chunks and single steps build the same cells. */
static inline uint64_t ice_range_seed(uint64_t seed, int64_t first, int64_t count) {
    uint64_t state = seed ^ ((uint64_t)first * 0x9E3779B97F4A7C15u) ^ ((uint64_t)count << 32);
    return ice_random(&state);
}

#endif
