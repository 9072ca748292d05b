"""Pages of keys by the largest score that a page could hold: Quest (arXiv 2406.10774)."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import Choice, attend_chosen
from icecore.reference.dense import visible_count

#: Keys of a page.
PAGE = 16


def page_bounds(query, key):
    """(d,), (S, d) -> (S // PAGE,): no key of a page has a larger product with the query."""
    pages = key[: len(key) // PAGE * PAGE].reshape(-1, PAGE, key.shape[1])  # (P, PAGE, d)
    return pages.max(axis=1) @ np.maximum(query, 0) + pages.min(axis=1) @ np.minimum(query, 0)


def choose_pages(query, key, k):
    """The keys that a query (d,) attends to among those that it sees, (S, d): int.

    The pages that it sees whole, by descending bounds until they hold k keys, equal bounds together; and what it sees of the
    page after them.
    """
    bounds, wanted = page_bounds(query, key), -(-k // PAGE)
    minimum = np.sort(bounds)[-wanted] if wanted < len(bounds) else -np.inf
    opened = np.repeat(~(bounds < minimum), PAGE)  # a NaN is opened
    return np.flatnonzero(np.r_[opened, np.ones(len(key) - len(opened), bool)])


def pages_attention(query, key, value, *, k, causal=False, scale=None, softcap=None, sink_logits=None):
    """Attention to the pages with the largest bounds, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    k, causal, scale, softcap, sink_logits
        As in `icecore.attention` with ``selector="pages"``.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to
    """
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group, end = query.shape[1] // key.shape[1], visible_count(query.shape[2], key.shape[2], causal)

    def choose(b, h, i):
        return Choice(choose_pages(scale * query[b, h, i], key[b, h // group, : end[i]], k))

    out, lse, _, near = attend_chosen(query, key, value, choose, scale=scale, softcap=softcap, sink_logits=sink_logits)
    return out, lse, near
