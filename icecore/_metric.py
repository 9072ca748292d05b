"""The metric in which keys are near one another as the queries see them: second moments of queries."""

from __future__ import annotations

import base64

import numpy as np

from icecore._arrays import NATIVE_DTYPES, integer, plain, widened

#: Queries that are looked at, of each head.
SAMPLE = 1024
#: So many at a time: more of them widened would be a twentieth of the memory that a call needs.
PIECE = 256
#: Fewer rows, of all query heads of a key head together, say too little.
MIN_ROWS = 64


def query_metric(query, num_kv_heads):
    """Second moments of queries, for ``metric=`` of `attention` and `KVCache`.

    Parameters
    ----------
    query : array_like, (..., H, L, d)
        float32, float16, bfloat16 (or its bits as uint16) or float64; H a multiple of num_kv_heads.
    num_kv_heads : int

    Returns
    -------
    ndarray of float32, (num_kv_heads, d, d)
        ``E[q q^T]`` over the queries of each key head. The identity where there are fewer than 64 rows, nothing but zeros, or
        a NaN or inf. At most 1024 queries per head are looked at, spread evenly.

    Raises
    ------
    TypeError
        A dtype that is none of these, such as complex numbers.
    ValueError
        Shapes that do not fit.

    Notes
    -----
    The mean of a cell of keys is wrong for a query q by ``q . (key - mean)``, on average over queries by ``delta^T M delta``
    with delta the difference and M these moments. Cells are therefore found among keys that are near one another in this
    metric. It is not in the paper (IceFormer, arXiv 2405.02842).

    O(1024 H d^2) time. Thread safe.
    """
    query = plain(query, "query")
    if query.dtype.kind not in "fiu" and query.dtype.name not in NATIVE_DTYPES:
        expected = "float32, float16, bfloat16 (or its bits as uint16) or float64"
        raise TypeError(f"query has dtype {query.dtype}; expected {expected}")
    num_kv_heads = integer(num_kv_heads, "num_kv_heads", 1)
    if query.ndim < 3 or query.shape[-3] % num_kv_heads:
        expected = f"(..., heads, length, dim), heads a multiple of {num_kv_heads}"
        raise ValueError(f"query has shape {query.shape}; expected {expected}")
    *_, heads, length, dim = query.shape
    identity = np.broadcast_to(np.eye(dim, dtype=np.float32), (num_kv_heads, dim, dim)).copy()
    if not query.size:
        return identity
    step, group = max(1, -(-length // SAMPLE)), heads // num_kv_heads
    rows = query.size // (heads * length * dim) * group * -(-length // step)  # of a key head
    if rows < MIN_ROWS:
        return identity
    moments = np.zeros((num_kv_heads, dim, dim))
    with np.errstate(over="ignore", invalid="ignore"):
        for head in range(heads):
            sampled = query[..., head, ::step, :]
            for first in range(0, sampled.shape[-2], PIECE):
                own = widened(sampled[..., first : first + PIECE, :]).reshape(-1, dim).astype(np.float64)
                moments[head // group] += own.T @ own / rows
        result = moments.astype(np.float32)
    trace = np.trace(result, axis1=1, axis2=2)
    usable = np.isfinite(result).all(axis=(1, 2)) & (trace > 0)
    return np.where(usable[:, None, None], result, identity)


def to_text(metric):
    """Second moments (or None) for a file's header."""
    return None if metric is None else base64.b64encode(metric.tobytes()).decode("ascii")


def from_text(text, num_kv_heads, dim):
    """What `to_text` was given; ValueError where that cannot be."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError("its metric is not a text")
    data = base64.b64decode(text, validate=True)
    if len(data) != 4 * num_kv_heads * dim * dim:
        raise ValueError(f"its metric has {len(data)} bytes; expected {4 * num_kv_heads * dim * dim}")
    return np.frombuffer(data, np.float32).reshape(num_kv_heads, dim, dim)


def check_metric(metric, num_kv_heads, dim):
    """`metric` as C-contiguous float32 second moments (num_kv_heads, dim, dim), or None; a diagonal is filled up."""
    if metric is None:
        return None
    try:
        given = np.asarray(metric)
        if given.dtype.kind == "c":
            raise TypeError
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(given, np.float32)
    except (TypeError, ValueError):
        raise TypeError(f"metric must be an array of numbers, got {_described(metric)}") from None
    expected = (num_kv_heads, dim, dim)
    if array.shape not in (expected, expected[:2]):
        raise ValueError(f"metric has shape {array.shape}; expected {expected}, second moments of the queries of each key "
                         f"head, or {expected[:2]}, their diagonals")
    if not np.isfinite(array).all():
        raise ValueError(f"metric must be finite, got {array[~np.isfinite(array)][0]}")
    if array.ndim == 2:
        array = array[:, :, None] * np.eye(dim, dtype=np.float32)
    diagonal = np.diagonal(array, axis1=1, axis2=2)
    if (diagonal < 0).any() or not (diagonal > 0).any(axis=1).all():
        raise ValueError(f"metric must have diagonals of at least 0, not all 0 in a head, got {diagonal.min()}")
    if not np.allclose(array, array.swapaxes(1, 2), rtol=1e-3, atol=1e-3 * float(diagonal.max())):
        raise ValueError("metric must be symmetric: second moments E[q q^T] of queries")
    return array


def _described(metric):
    return f"an array of {metric.dtype}" if isinstance(metric, np.ndarray) else type(metric).__name__
