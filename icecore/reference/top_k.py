"""Exact top-k attention."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import Choice, attend_chosen
from icecore.reference.dense import per_query_head, visible_keys


def top_k_attention(query, key, value, *, k, causal=False, window=0, sinks=0, scale=None):
    """Exact top-k attention: the k visible keys with the largest scores besides sinks and window, the rest dropped.

    The ceiling of every method that keeps k keys and drops the others. Equal scores stay together. Shapes as in `attention`.
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    queries, keys = query.shape[2], key.shape[2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    always = visible_keys(queries, keys, causal, window, sinks)  # (L, S)
    others = visible_keys(queries, keys, causal) & ~always
    scores = scale * (query @ per_query_head(key, query.shape[1]).swapaxes(-1, -2))  # (B, H, L, S)
    scores = np.where(others, scores, -np.inf)
    minimum = np.partition(scores, -k, axis=-1)[..., -k, None] if k < keys else -np.inf  # the k-th largest
    chosen = always | (others & (scores >= minimum))
    return attend_chosen(query, key, value, lambda *row: Choice(np.flatnonzero(chosen[row])), scale=scale)[:2]
