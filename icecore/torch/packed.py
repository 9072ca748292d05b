"""Sequences that are packed one after another in tensors."""

import numpy as np
import torch
from torch import Tensor

import icecore

from .tensors import as_array, attention


def varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k, /, *, causal=False, window=None, out=None, return_lse=False,
                     **options):
    """Attention of sequences that are packed one after another, each to its own keys; as flash-attention's varlen functions.

    Parameters
    ----------
    query : Tensor, shape (total_q, H, d)
        float32, float16 or bfloat16, any strides.
    key : Tensor, shape (total_k, H_k, d)
    value : Tensor, shape (total_k, H_k, d_v)
    cu_seqlens_q, cu_seqlens_k : Tensor or array_like of integers, shape (sequences + 1,)
        Where sequences begin, and last where they end: from 0, not falling, to total_q and total_k.
    causal : bool
        In each sequence, aligned bottom-right: its last query sees all of its keys.
    window : int or (int, int), optional
        As in `icecore.attention`; a pair is flash-attention's ``window_size``. Exact attention only.
    out : Tensor, optional
        Result: shape (total_q, H, d_v), query's dtype, sharing no memory with the inputs.
    return_lse : bool
        Also return the logarithms of the sums of exponentials.
    **options
        `k`, `tolerance`, `scale`, `softcap`, `sink_logits`, `num_threads` and `seed`, as in `icecore.attention`.

    Returns
    -------
    out : Tensor, shape (total_q, H, d_v), query's dtype
    lse : Tensor of float32, shape (H, total_q)
        Only with return_lse.

    Raises
    ------
    TypeError, ValueError
        As `attention`; and for sequences that do not fit.

    Notes
    -----
    Exact: one call, whose `key_ranges` say what a query sees; its cost is that of the visible keys, its memory 16 bytes for
    each query besides `out`. With k or a tolerance each sequence is a call of its own, with cells of its own.
    """
    for tensor, name in ((query, "query"), (key, "key"), (value, "value")):
        if as_array(tensor, name).ndim != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected three axes: (total, heads, dim)")
    known = {"k", "tolerance", "scale", "softcap", "sink_logits", "num_threads", "seed"}
    if unknown := options.keys() - known:
        raise TypeError(f"varlen_attention() got an unexpected keyword argument {min(unknown)!r}")
    starts = _check_starts(cu_seqlens_q, len(query), "q"), _check_starts(cu_seqlens_k, len(key), "k")
    if len(starts[0]) != len(starts[1]):
        raise ValueError(f"cu_seqlens_q is of {len(starts[0]) - 1} sequences and cu_seqlens_k of {len(starts[1]) - 1}")
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(f"value has shape {tuple(value.shape)} and key {tuple(key.shape)}; expected equal totals and heads")
    if out is None:
        out = query.new_empty(*query.shape[:2], value.shape[-1])
    else:
        _check_out(out, query, key, value)
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    lse = query.new_empty(query.shape[:2], dtype=torch.float32) if return_lse else None
    result = out.transpose(0, 1)
    if options.get("k") is None and options.get("tolerance") is None:
        parts = [(slice(None), slice(None), {"key_ranges": _ranges_of(*starts, causal, window)})]
    elif window is not None:
        raise ValueError(f"window={window} with k or tolerance; expected None, as windows are exact")
    else:
        parts = [(slice(*q), slice(*k), {"causal": causal}) for q, k in zip(*map(_pairs, starts), strict=True)]
    for own, keys, how in parts:
        returned = attention(query[:, own], key[:, keys], value[:, keys], out=result[:, own], return_lse=return_lse, **how,
                             **options)
        if return_lse:
            lse[:, own] = returned[1]
    return (out, lse) if return_lse else out


def _check_out(out, query, key, value):
    """Of all sequences, before the first is written; each call checks the rest."""
    own, expected = as_array(out, "out"), (*query.shape[:2], value.shape[-1])
    if out.shape != expected:
        raise ValueError(f"out has shape {tuple(out.shape)}; expected {expected}")
    for tensor, name in ((query, "query"), (key, "key"), (value, "value")):
        if np.shares_memory(own, as_array(tensor, name)):
            raise ValueError(f"out overlaps {name}; expected memory of its own")


def _check_starts(given, total, name):
    """cu_seqlens as an array of int64, of sequences that fill `total` rows."""
    starts = as_array(given, f"cu_seqlens_{name}") if isinstance(given, Tensor) else np.asarray(given)
    if starts.dtype.kind not in "iu":
        raise TypeError(f"cu_seqlens_{name} has dtype {starts.dtype}; expected integers")
    if starts.ndim != 1 or len(starts) < 1:
        raise ValueError(f"cu_seqlens_{name} has shape {starts.shape}; expected (sequences + 1,)")
    starts = starts.astype(np.int64)
    if starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        raise ValueError(f"cu_seqlens_{name} must go from 0 to {total}, the rows of its tensor, without falling")
    return starts


def _pairs(starts):
    return zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)


def _ranges_of(queries, keys, causal, window):
    """(total_q, 2): what each query may see of the keys of its sequence; both cu_seqlens."""
    counts = np.diff(queries)
    first, end = np.repeat(keys[:-1], counts), np.repeat(keys[1:], counts)
    position = end - np.repeat(queries[1:], counts) + np.arange(counts.sum())  # of queries among the keys
    low, high = first, np.minimum(end, position + 1) if causal else end
    if window is not None:
        one = np.zeros((1, 1), np.float32)
        icecore.attention(one, one, one, window=window)  # checks it
        pair = isinstance(window, (tuple, list))
        left, right = window if pair else (window - 1, window - 1)
        low = low if pair and left < 0 else np.maximum(low, position - left)
        high = high if pair and right < 0 else np.minimum(high, position + right + 1)
    low = np.minimum(low, end)
    return np.stack([low, np.maximum(low, high)], axis=-1)
