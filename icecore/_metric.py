"""The metric in which keys are near one another as the queries see them."""

from __future__ import annotations

import numpy as np

from icecore._arrays import integer, widened

#: Queries that are looked at, of each head.
SAMPLE = 1024
#: So many at a time: more of them widened would be a twentieth of the memory that a call needs.
PIECE = 256
#: Fewer rows, of all query heads of a key head together, say too little.
LEAST_ROWS = 64
#: Exponents of two are multiples of this, so that queries of the same kind give the same metric ...
STEP = 0.5
#: ... and lie within this of 0.
LARGEST_EXPONENT = 6


def query_metric(query, num_kv_heads):
    """The metric of queries: what `attention` takes from those of a call that is not causal; for other calls and caches.

    Parameters
    ----------
    query : array_like, (..., H, L, d)
        float32, float16, bfloat16 (or its bits as uint16) or float64; H a multiple of num_kv_heads.
    num_kv_heads : int

    Returns
    -------
    ndarray of float32, (num_kv_heads, d)
        For each key head the root mean square of its queries' components, relative to their geometric mean and rounded to a
        power of the square root of two, within 2**-6 and 2**6. 1 throughout where there are fewer than 64 rows, nothing but
        zeros, or a NaN or inf. At most 1024 queries of a head are looked at, spread evenly.

    Raises
    ------
    ValueError
        Shapes that do not fit.

    Notes
    -----
    Near/far attention groups keys that are near one another, as if queries pointed in all directions alike. Real ones do not.
    Multiplying keys' and dividing queries' components by the metric changes no score, and makes it so. It is not in the paper
    (IceFormer, arXiv 2405.02842).

    With causality a segment's metric is by default that of its own keys, whose root mean square goes where that of the
    queries goes, so that rows do not depend on one another. With a tolerance the error at equal time is then the same at 8k
    tokens; from 32k on, and with a number of near keys, that of the queries is a little better.

    O(1024 H d) time. Thread safe.
    """
    query = np.asarray(query)
    num_kv_heads = integer(num_kv_heads, "num_kv_heads", 1)
    if query.ndim < 3 or query.shape[-3] % num_kv_heads:
        expected = f"(..., heads, length, dim), heads a multiple of {num_kv_heads}"
        raise ValueError(f"query has shape {query.shape}; expected {expected}")
    *_, heads, length, dim = query.shape
    if not query.size:
        return np.ones((num_kv_heads, dim), np.float32)
    step, group = max(1, -(-length // SAMPLE)), heads // num_kv_heads
    rows = query.size // (heads * length * dim) * group * -(-length // step)  # of a key head
    if rows < LEAST_ROWS:
        return np.ones((num_kv_heads, dim), np.float32)
    squares = np.zeros((num_kv_heads, dim))
    for head in range(heads):
        sampled = query[..., head, ::step, :]
        for first in range(0, sampled.shape[-2], PIECE):
            own = widened(sampled[..., first : first + PIECE, :]).reshape(-1, dim)
            squares[head // group] += np.einsum("ld,ld->d", own, own) / rows
    least = squares.max(axis=1, keepdims=True) * 4.0**-LARGEST_EXPONENT
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = 0.5 * np.log2(np.maximum(squares, least))
        exponents -= exponents.mean(axis=1, keepdims=True)
        rounded = np.round(exponents / STEP) * STEP
    rounded[~np.isfinite(exponents).all(axis=1)] = 0  # no queries but zeros, or NaN or inf among them
    return np.exp2(np.clip(rounded, -LARGEST_EXPONENT, LARGEST_EXPONENT)).astype(np.float32)


def check_metric(metric, num_kv_heads, dim):
    """`metric` as a C-contiguous float32 array, or None."""
    if metric is None:
        return None
    try:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(metric, np.float32)
    except (TypeError, ValueError):
        raise TypeError(f"metric must be an array of numbers, got {type(metric).__name__}") from None
    if array.shape != (num_kv_heads, dim):
        raise ValueError(f"metric has shape {array.shape}; expected {(num_kv_heads, dim)}: key heads, dim")
    wrong = ~((array > 0) & (array < np.inf))
    if wrong.any():
        raise ValueError(f"metric must be finite and above 0, got {array[wrong][0]}")
    return array
