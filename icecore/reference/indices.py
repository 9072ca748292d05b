"""Attention to the keys that each query lists."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import Choice, attend_chosen


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
    queries, keys = query.shape[2], key.shape[2]

    def choose(b, h, i):
        last = keys - queries + i if causal else keys - 1  # the last key that the query may see
        listed = indices[b, h, i]
        return Choice(listed[(listed >= 0) & (listed <= last)])

    return attend_chosen(query, key, value, choose, scale=scale)[:2]
