"""The seeded stream of the C core (csrc/base/random.h): SplitMix64 (Steele, Lea & Flood, 2014)."""

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
