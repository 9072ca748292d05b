"""Exact top-k attention."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import Choice, attend_chosen
from icecore.reference.dense import per_query_head, visible_keys


def largest(scores, k):
    """(..., S) -> (..., S) bool: the k largest scores, the first among equals; a NaN counts as infinite."""
    order = np.argsort(-np.where(np.isnan(scores), np.inf, scores), axis=-1, kind="stable")
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, order[..., :k], True, axis=-1)
    return chosen


def top_k_attention(query, key, value, *, k, causal=False, scale=None, softcap=None, sink_logits=None):
    """Exact top-k attention in float64: the k visible keys with the largest scores, the first among equals; the rest dropped.

    The ceiling of every method that keeps k keys and drops the others.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    k, causal, scale, softcap, sink_logits
        As in `icecore.attention` with `icecore.selectors.TopK`.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with np.errstate(invalid="ignore", over="ignore"):
        scores = scale * (query @ per_query_head(key, query.shape[1]).swapaxes(-1, -2))  # (B, H, L, S)
    visible = visible_keys(query.shape[2], key.shape[2], causal)  # (L, S), from the first key on
    chosen = visible & largest(np.where(visible, scores, -np.inf), k)
    out, lse, _, near = attend_chosen(query, key, value, lambda *row: Choice(np.flatnonzero(chosen[row])), scale=scale,
                                      softcap=softcap, sink_logits=sink_logits)
    return out, lse, near
