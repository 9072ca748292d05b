"""indexer_top_k(): the keys that a trained indexer chooses."""

from __future__ import annotations

import numpy as np

from icecore import _native
from icecore._arrays import FLOAT64, MAX_DIM, check_array, flag, integer, native_dtype, native_view, plain, widened
from icecore._runtime import threads_for_call
from icecore._settings import MAX_KEYS


def indexer_top_k(query, key, weights, k, /, *, causal=False, num_threads=None):
    """The keys of each query that have the largest scores of a lightning indexer (DeepSeek-V3.2 [1]_).

    ``score[i, j] = sum_h weights[i, h] * max(0, query[h, i] . key[j])``: heads of low width over one key for each token.
    `attend_indices` takes what it returns.

    Parameters
    ----------
    query : array_like, shape (B, H, L, d) or (H, L, d)
        float32, float16, bfloat16 (``ml_dtypes.bfloat16``, or its bits as uint16). float64 is computed by the slow oracle in
        ``icecore.reference``. Any strides; copied if the last axis is not contiguous. Any scale is in the weights.
    key : array_like, shape (B, S, d) or (S, d)
        Same dtype; 1 <= d <= 576.
    weights : array_like of float, shape (B, L, H) or (L, H)
        Of each query's heads, of any sign; used as float32.
    k : int
        Keys per query, at least 1.
    causal : bool, default False
        Query i chooses from the keys up to S - L + i.
    num_threads : int, optional
        For this call; default as in `get_num_threads`.

    Returns
    -------
    indices : ndarray of int32, shape (B, 1, L, min(k, S)) or (1, L, min(k, S))
        Ascending; then -1 where a query sees fewer keys. Of equal scores the first keys; a NaN counts as the largest score.

    Raises
    ------
    TypeError
        A dtype that is not supported, arrays of different dtypes, an argument that is not of its type.
    ValueError
        Shapes that do not fit, numbers out of range.
    MemoryError

    Notes
    -----
    Sums are in float32, in the same order for any number of threads; bfloat16 is multiplied natively where the machine does.

    O(L S H d) time; memory of 64 MB, 64 S bytes, 4 S for each thread, and the result.

    References
    ----------
    .. [1] arXiv 2512.02556, section 2.1.

    Examples
    --------
    >>> chosen = icecore.indexer_top_k(index_query, index_key, weights, 2048, causal=True)
    >>> out = icecore.attend_indices(query, latent, latent[..., :512], chosen, causal=True)
    """
    threads = threads_for_call(num_threads) or 0
    query = check_array(query, "query")
    key = check_array(key, "key", query.dtype)
    if query.ndim < 3:
        raise ValueError(f"query has shape {query.shape}; expected (B, H, L, d) or (H, L, d)")
    if key.dtype != query.dtype:
        raise TypeError(f"key has dtype {key.dtype}, but query has {query.dtype}; expected one dtype")
    *batch, heads, queries, dim = query.shape
    causal = flag(causal, "causal")
    if heads < 1:
        raise ValueError(f"query has shape {query.shape}; expected at least one head")
    if key.ndim != query.ndim - 1 or key.shape[:-2] != tuple(batch) or key.shape[-1] != dim:
        raise ValueError(f"key has shape {key.shape}; expected ({''.join(f'{b}, ' for b in batch)}S, {dim}), one head for all")
    if not 1 <= dim <= MAX_DIM:
        raise ValueError(f"query has a last axis of {dim}; expected 1 to {MAX_DIM}")
    weights, k, keys = _check_weights(weights, (*batch, queries, heads)), integer(k, "k", 1), key.shape[-2]
    if keys > MAX_KEYS:
        raise ValueError(f"key has {keys} rows; expected at most {MAX_KEYS}")
    four, three = (None,) * (4 - query.ndim), (None,) * (3 - key.ndim)
    query, key, weights = query[four], key[three], weights[three]
    count = min(k, keys)
    if query.dtype == FLOAT64:
        from icecore import reference

        indices = reference.indexer_top_k(query, key, widened(weights), k, causal=causal)
    else:
        indices = np.full((len(query), 1, queries, count), -1, np.int32)
        if indices.size:
            rows = native_view(query), native_view(key[:, None])
            _native.indexer_top_k(native_dtype(query.dtype), *rows, weights, causal, indices[:, 0], threads)
    return indices if batch else indices[0]


def _check_weights(weights, shape):
    """`weights` as contiguous float32 of this shape."""
    weights = plain(weights, "weights")
    if weights.dtype.kind != "f" and weights.dtype.name != "bfloat16":
        raise TypeError(f"weights has dtype {weights.dtype}; expected floats")
    if weights.shape != shape:
        raise ValueError(f"weights has shape {weights.shape}; expected {shape}, (..., L, H)")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(weights, np.float32)
