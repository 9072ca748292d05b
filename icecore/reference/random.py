"""The seeded stream of the C core (csrc/base/random.h): SplitMix64 (Steele, Lea & Flood, 2014)."""

import numpy as np

MASK = 2**64 - 1


def split_mix(state):
    """Generate 64-bit integers from `state`."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def sample_without_replacement(count, chosen, seed):
    """The first `chosen` entries of a Fisher-Yates shuffle of range(count)."""
    stream, items = split_mix(seed & MASK), list(range(count))
    for i in range(chosen):
        j = i + next(stream) % (count - i)
        items[i], items[j] = items[j], items[i]
    return items[:chosen]


def segment_seed(seed, first, count):
    """The seed of the segment over keys first .. first + count - 1."""
    return next(split_mix((seed ^ (first * 0x9E3779B97F4A7C15) ^ (count << 32)) & MASK))


def random_directions(seed, rows, width):
    """(rows, width) float32: unit vectors uniform on the sphere, normal numbers by Box and Muller, normalized."""
    stream = split_mix(seed & MASK)
    uniform = np.array([next(stream) >> 11 for _ in range(2 * rows * width)], np.float64).reshape(rows, width, 2)
    a, b = (uniform[..., 0] + 1) * 2.0**-53, uniform[..., 1] * 2.0**-53
    numbers = np.sqrt(-2 * np.log(a)) * np.cos(2 * np.pi * b)
    length = np.sqrt((numbers**2).sum(axis=1, keepdims=True))
    return (numbers.astype(np.float32) / length).astype(np.float32)
