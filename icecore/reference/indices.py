"""Attention to the keys that each query lists."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import Choice, attend_chosen
from icecore.reference.dense import visible_count


def keys_of(indices, block_size):
    """(..., K) blocks -> (..., K block_size) keys; -1 stays."""
    keys = indices[..., None] * block_size + np.arange(block_size)
    return np.where(indices[..., None] < 0, -1, keys).reshape(*indices.shape[:-1], indices.shape[-1] * block_size)


def attend_indices(query, key, value, indices, *, block_size=1, causal=False, scale=None, softcap=None, sink_logits=None):
    """Softmax attention of each query over the keys it lists, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    indices : (B, H, L, K) integers
        -1 is ignored; an index that is listed twice counts twice.
    block_size, causal, scale, softcap, sink_logits
        As in `icecore.attend_indices`.

    Returns
    -------
    out : (B, H, L, dv) float64; lse : (B, H, L) float64
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    end = visible_count(query.shape[2], key.shape[2], causal)[:, None]  # (L, 1)
    indices = keys_of(indices, block_size)
    seen = (indices >= 0) & (indices < end)  # (B, H, L, K)
    return attend_chosen(query, key, value, lambda *row: Choice(indices[row][seen[row]]), scale=scale,
                         softcap=softcap, sink_logits=sink_logits)[:2]
