"""float32 in halves, as a cache with a tolerance holds sealed rows: the first ones are read alone where they suffice."""

import numpy as np


def split_halves(rows):
    """The halves of float32 numbers.

    Returns
    -------
    first, second : uint16, like `rows`
        `first`: the bits of the number rounded to bfloat16, ties away from 0; of a NaN those of some NaN. `second`: the lower
        16 bits of the number, of a NaN 0.
    """
    bits = np.asarray(rows, np.float32).view(np.uint32).astype(np.int64)
    nan = np.isnan(rows)
    return (np.where(nan, bits >> 16 | 0x40, bits + 0x8000 >> 16).astype(np.uint16),
            np.where(nan, 0, bits & 0xFFFF).astype(np.uint16))


def join_halves(first, second):
    """What `split_halves` has split: the second half counts as a number from -2**15 on."""
    bits = (first.astype(np.int64) << 16) + second.view(np.int16)
    return bits.astype(np.uint32).view(np.float32)


def rounded_by_halves(first):
    """What first halves are by themselves, float32."""
    return (first.astype(np.uint32) << 16).view(np.float32)
