"""Pages of keys by the largest score that a page could hold: Quest (arXiv 2406.10774)."""

from __future__ import annotations

import numpy as np

from icecore.reference.dense import per_query_head, softmax_sum, visible_count

#: Keys of a page.
PAGE = 16


def page_bounds(query, key):
    """(L, d) queries, (S, d) keys -> (L, S // PAGE): no key of a page has a larger product with the query."""
    pages = key[: len(key) // PAGE * PAGE].reshape(-1, PAGE, key.shape[1])  # (P, PAGE, d)
    high, low = pages.max(axis=1), pages.min(axis=1)  # (P, d)
    return np.maximum(query, 0) @ high.T + np.minimum(query, 0) @ low.T


def choose_pages(query, key, k, causal=False):
    """(L, S) bool: the keys that each query attends to.

    The pages that it sees whole, by descending bounds until they hold k keys, equal bounds together; and what it sees of the
    page after them.
    """
    queries, keys = len(query), len(key)
    chosen = np.zeros((queries, keys), bool)
    bounds = page_bounds(query, key)
    for row, end in enumerate(visible_count(queries, keys, causal)):
        whole = end // PAGE
        wanted = -(-k // PAGE)
        own = bounds[row, :whole]
        opened = np.ones(whole, bool) if wanted >= whole else ~(own < np.sort(own)[whole - wanted])  # a NaN is opened
        chosen[row, : whole * PAGE] = np.repeat(opened, PAGE)
        chosen[row, whole * PAGE : end] = True
    return chosen


def pages_attention(query, key, value, *, k, causal=False, scale=None):
    """Attention to the pages with the largest bounds, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    k, causal, scale
        As in `icecore.attention` with ``selector="pages"``.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to
    """
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    key, value = per_query_head(key, query.shape[1]), per_query_head(value, query.shape[1])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    chosen = np.stack([[choose_pages(scale * q, k_, k, causal) for q, k_ in zip(*pair, strict=True)]
                       for pair in zip(query, key, strict=True)])  # (B, H, L, S)
    out, lse = softmax_sum(np.where(chosen, scale * query @ key.swapaxes(-1, -2), -np.inf), value)
    return out, lse, chosen.sum(axis=-1)
