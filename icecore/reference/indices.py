"""Attention to the keys that each query lists."""

from __future__ import annotations

import numpy as np

from icecore.reference.dense import softmax_sum


def attend_indices(query, key, value, indices, *, causal=False, scale=None):
    """Softmax attention of each query over the keys it lists, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    indices : (B, H, L, K) integers
        -1 is ignored; an index that is listed twice counts twice.
    causal, scale
        As in `icecore.attend_indices`.

    Returns
    -------
    out : (B, H, L, dv) float64; lse : (B, H, L) float64
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    batch, heads, queries, dim = query.shape
    keys, group = key.shape[2], heads // key.shape[1] if heads else 1
    scale = 1.0 / np.sqrt(dim) if scale is None else scale
    out, lse = np.zeros((*query.shape[:3], value.shape[-1])), np.full(query.shape[:3], -np.inf)
    for b, h, i in np.ndindex(batch, heads, queries):
        last = keys - queries + i if causal else keys - 1  # the last key that the query may see
        chosen = indices[b, h, i]
        chosen = chosen[(chosen >= 0) & (chosen <= last)]
        with np.errstate(invalid="ignore", over="ignore"):
            scores = scale * (key[b, h // group, chosen] @ query[b, h, i])  # (chosen,)
            o, s = softmax_sum(scores[None], value[b, h // group, chosen])
        out[b, h, i], lse[b, h, i] = o[0], s[0]
    return out, lse
