"""attend_indices(): attention to keys that the caller chose."""

from __future__ import annotations

import numpy as np

from icecore import _native
from icecore._arrays import (
    NO_MASK,
    as_four,
    check_out,
    check_problem,
    check_scores,
    flag,
    integer,
    native_problem,
    native_result,
    plain,
)
from icecore._runtime import threads_for_call


def _as_integers(indices):
    """`indices` as an aligned array of int32 or int64, itself where it is one."""
    given = plain(indices, "indices")
    if given.dtype.kind not in "iu":
        raise TypeError(f"indices has dtype {given.dtype}; expected integers")
    if given.ndim < 1:
        raise ValueError("indices is a number; expected an array whose last axis lists the keys of a query")
    if given.dtype in (np.int32, np.int64) and given.flags.aligned and not any(s % given.itemsize for s in given.strides):
        return given
    if given.dtype.kind == "u" and given.dtype.itemsize == 8:  # what int64 cannot hold names no key, and must not become -1
        given = np.minimum(given, np.iinfo(np.int64).max)
    return given.astype(np.int32 if np.can_cast(given.dtype, np.int32) else np.int64)


def _broadcast_indices(indices, problem):
    """(batch, key_heads, query_heads / key_heads, queries, count), by strides of 0 where lists are shared."""
    batch, heads, queries = problem.shape[:3]
    key_heads, count = problem.key.shape[1], indices.shape[-1]
    group = heads // key_heads if key_heads else 0
    axes = len(problem.out_shape)
    expected = f"{(*problem.out_shape[:-1], count)}" + (f", or with {key_heads} in place of {heads}," if group > 1 else "")
    if indices.ndim > axes:
        raise ValueError(f"indices has shape {indices.shape}; expected one that broadcasts to {expected}")
    four = as_four(indices)
    if four.shape[1] == heads:
        five = four.reshape(four.shape[0], key_heads, group, *four.shape[2:])  # splitting an axis never copies
    else:
        five = four[:, :, None]
    try:
        return np.broadcast_to(five, (batch, key_heads, group, queries, count))
    except ValueError:
        raise ValueError(f"indices has shape {indices.shape}; expected one that broadcasts to {expected}") from None


def _bad_index(given, lists, place, problem, block_size):
    """The error that names the index at `place`, in C order of `lists`, and where in `given` it stands."""
    batch, key_head, member, query, n = (int(i) for i in np.unravel_index(place, lists.shape))
    heads = given.shape[-3] if given.ndim >= 3 else 1
    head = key_head * lists.shape[2] + member if heads == problem.shape[1] else key_head
    where = (batch, head, query, n)[4 - given.ndim :]
    where = tuple(min(i, size - 1) for i, size in zip(where, given.shape, strict=True))  # 0 along axes that were broadcast
    limit = -(-problem.key.shape[2] // block_size)
    at = ", ".join(map(str, where))
    what = "a key" if block_size == 1 else f"a block of {block_size} keys"
    expected = f" or {what}, from 0 to {limit - 1}" if limit else ", as there are no keys"
    return ValueError(f"indices[{at}] is {given[where]}; expected -1 (ignored){expected}")


def _reference(problem, lists, block_size, causal, scores, out, lse):
    """The oracle, for float64."""
    from icecore import reference

    bad = np.flatnonzero((lists < -1) | (lists >= -(-problem.key.shape[2] // block_size)))
    if bad.size:
        return int(bad[0])
    four = lists.reshape(*problem.shape[:3], lists.shape[-1])
    options = {"block_size": block_size, "causal": causal, **scores.given()}
    o, s = reference.attend_indices(problem.query, problem.key, problem.value, four, **options)
    out[...] = o.reshape(problem.out_shape)
    if lse is not None:
        lse[...] = s
    return None


def attend_indices(query, key, value, indices, /, *, block_size=1, causal=False, scale=None, softcap=None, sink_logits=None,
                   return_lse=False, out=None, num_threads=None):
    """Softmax attention of each query over the keys that the caller chose for it, on the CPU.

    ``out[i] = sum_n softmax_n(scale * query[i] . key[indices[i, n]]) value[indices[i, n]]``: for the choices
    of trained sparse indexers (`indexer_top_k`), or of any index.

    Parameters
    ----------
    query : array_like, shape (B, H, L, d), (H, L, d) or (L, d)
        float32, float16, bfloat16 (``ml_dtypes.bfloat16``, or its bits as uint16). float64 is computed by the slow oracle
        in ``icecore.reference``. Any strides; copied if the last axis is not contiguous.
    key : array_like, shape (B, H_k, S, d), (H_k, S, d) or (S, d)
        Same dtype and number of dimensions; H must be a multiple of H_k (grouped-query attention: query head h reads key
        head ``h // (H // H_k)``). 1 <= d <= 576.
    value : array_like, shape (B, H_k, S, d_v), (H_k, S, d_v) or (S, d_v)
        1 <= d_v <= 576; it may be a view of `key`, as ``key[..., :512]`` of a shared latent.
    indices : array_like of integers
        The keys of each query. Broadcasts to (..., H, L, K); an axis of H_k in place of H gives all query heads of a key head
        the same lists. Shared lists are faster: their keys are fetched once. -1 is ignored (padding). An index that is
        listed twice counts twice, as if its key were there twice. int32 and int64 are read as they lie, others converted.
    block_size : int, default 1
        Index b stands for so many neighbouring keys, from ``b * block_size`` on; the last block may be shorter. Blocks are read
        where they lie.
    causal : bool, default False
        Listed keys later than S - L + i are ignored for query i.
    scale : float, optional
        Default ``1 / sqrt(d)``.
    softcap, sink_logits
        As in `attention`.
    return_lse : bool, default False
        Also return the natural logarithm of the sum of exponentials, float32, shape (..., L).
    out : ndarray, optional
        Result array: shape (..., L, d_v), query's dtype, writable, sharing no memory with the inputs.
    num_threads : int, optional
        For this call; default as in `get_num_threads`.

    Returns
    -------
    out : ndarray, shape (..., L, d_v), query's dtype
    lse : ndarray of float32, shape (..., L)
        Only with return_lse. With it, results over disjoint keys merge by `merge_states`.

    Raises
    ------
    TypeError
        A dtype that is not supported, arrays of different dtypes, an argument that is not of its type.
    ValueError
        Shapes that do not fit, numbers out of range, `out` read-only or overlapping an input; an index that is neither -1 nor
        of a key (0 to S - 1) or a block of keys: the message names the first and its place. `out` is as it was then.
    MemoryError
        Nothing was written then.

    Notes
    -----
    A query that sees no key gives 0 and lse -inf (its sink logit if it has one), never NaN. A key that is not listed, or is
    later than causality allows, contributes nothing, whatever it holds. NaN and inf in listed visible keys propagate as IEEE
    arithmetic has it.

    O(L K block_size (d + d_v)) time, whatever S; extra memory under 2 MB a thread.

    Thread safe: calls may run at once, on separate `out`. The GIL is released. Ctrl-C interrupts long calls.
    """
    threads = threads_for_call(num_threads) or 0
    problem, causal = check_problem(query, key, value), flag(causal, "causal")
    scores = check_scores(scale, softcap, sink_logits, problem.query.shape[1], problem.query.shape[-1])
    block_size = integer(block_size, "block_size", 1)
    given = plain(indices, "indices")
    indices = _as_integers(given)
    lists = _broadcast_indices(indices, problem)
    if out is not None:
        inputs = {"query": problem.query, "key": problem.key, "value": problem.value, "indices": given}
        check_out(out, problem, inputs)

    result = native_result(out, problem)
    lse = np.empty(problem.shape[:3], np.float32) if return_lse else None
    if problem.is_double:
        bad = _reference(problem, lists, block_size, causal, scores, result, lse)
    else:
        own = native_problem(problem, as_four(result), lse, scores, NO_MASK, causal=causal, threads=threads)
        bad = _native.attend_indices(own, lists, 0 if block_size == 1 else block_size)
    if bad is not None:
        raise _bad_index(given, lists, bad, problem, block_size)
    if out is not None and result is not out:
        out[...] = result
    returned = out if out is not None else result
    return (returned, lse.reshape(problem.out_shape[:-1])) if return_lse else returned
