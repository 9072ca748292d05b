"""Keys that share a large offset, such as a projection's bias, and how a cache of a short dtype holds them."""

import numpy as np

from icecore.reference.codes import quantized, round_to_bfloat16

#: A component's root mean square by what components vary from token to token.
LARGE = 24.0


def has_offset(keys):
    """Whether a component of keys (n, d), n >= 2, is so large that rounding would take too much of what tells keys apart.

    So it is when its root mean square is 24 times what it, and what half of the components, vary from one token to the next. A
    bias that rotary embedding turns slowly counts as much as one that stays.
    """
    keys = np.asarray(keys, np.float64)
    squared = (keys**2).mean(axis=0)
    varied = (np.diff(keys, axis=0) ** 2).mean(axis=0) / 2
    exceeds = squared[:, None] > LARGE**2 * varied  # (d, d): the square of one, the variation of another
    return bool((np.diag(exceeds) & (2 * exceeds.sum(axis=1) >= keys.shape[1])).any())


def rounded(rows, dtype):
    """Rows (n, d) as "bfloat16", "float16", "int8" or "int4" holds them."""
    if dtype in ("int8", "int4"):
        return quantized(rows, int(dtype[3:]))
    return round_to_bfloat16(rows) if dtype == "bfloat16" else rows.astype(np.float16).astype(np.float64)


def relative_rows(key, members, dtype):
    """Keys of cells, each rounded less the mean of its cell.

    Parameters
    ----------
    key : (n, d) array_like
    members : list of (count,) int arrays
        The rows of each cell.
    dtype : {"float16", "bfloat16", "int8", "int4"}

    Returns
    -------
    mean : (C, d), of each cell
    rows : list of (count, d)
        What is stored: a key is its row plus the mean. So are scores, softmax being blind to what is the same for all keys.
    """
    key = np.asarray(key, np.float64)
    mean = np.stack([key[rows].mean(axis=0) for rows in members])
    return mean, [rounded(key[rows] - own, dtype) for rows, own in zip(members, mean, strict=True)]
