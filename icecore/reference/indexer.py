"""The lightning indexer of DeepSeek-V3.2 (arXiv 2512.02556): which keys a query attends to, by scores of low width."""

from __future__ import annotations

import numpy as np

from icecore.reference.dense import visible_count


def indexer_scores(query, key, weights):
    """(B, H, L, d), (B, S, d), (B, L, H) -> (B, L, S): sum_h weights[i, h] max(0, query[h, i] . key[j])."""
    products = query @ key[:, None].swapaxes(-1, -2)  # (B, H, L, S)
    return np.einsum("blh,bhls->bls", weights, np.maximum(products, 0.0))


def indexer_top_k(query, key, weights, k, *, causal=False, return_scores=False):
    """The keys with the k largest scores, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, S, d); weights : (B, L, H)
    k, causal
        As in `icecore.indexer_top_k`.
    return_scores : bool
        Also return the scores (B, L, S), -inf where a key is not visible.

    Returns
    -------
    indices : (B, 1, L, min(k, S)) int32
        Ascending, then -1.
    """
    query, key, weights = (np.asarray(a).astype(np.float64) for a in (query, key, weights))
    keys = key.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):
        scores = indexer_scores(query, key, weights)
    scores = np.where(np.isnan(scores), np.inf, scores)
    hidden = np.arange(keys) >= visible_count(query.shape[2], keys, causal)[:, None]  # (L, S)
    order = np.where(hidden, np.inf, -scores).argsort(axis=-1, kind="stable")[..., :k]  # (B, L, k)
    chosen = np.sort(np.where(np.take_along_axis(np.broadcast_to(hidden, scores.shape), order, -1), keys, order), axis=-1)
    indices = np.where(chosen == keys, -1, chosen).astype(np.int32)[:, None]
    return (indices, np.where(hidden, -np.inf, scores)) if return_scores else indices
