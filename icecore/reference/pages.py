"""Pages of keys by the largest score in a box about them: Quest (arXiv 2406.10774) and ArkVale (NeurIPS 2024)."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import Choice, attend_chosen
from icecore.reference.dense import visible_count

#: Keys of a page of Quest's; pages that ArkVale always chooses, the first ones and the newest that a query sees whole.
PAGE, OLDEST, NEWEST = 16, 2, 1


def whole_box(pages):
    """(P, page, d) -> low, high (P, d): a box that holds all keys of a page. Quest's."""
    return pages.min(axis=1), pages.max(axis=1)


def mean_box(pages):
    """(P, page, d) -> low, high (P, d): of the same centre, as wide as keys are far from it on average. ArkVale's."""
    low, high = whole_box(pages)
    centre = (low + high) / 2
    reach = np.abs(pages - centre[:, None]).mean(axis=1)
    return centre - reach, centre + reach


def page_bounds(query, key, page=PAGE, box=whole_box):
    """(d,), (S, d) -> (S // page,): the largest product with the query in the box of a page."""
    low, high = box(key[: len(key) // page * page].reshape(-1, page, key.shape[1]))
    return high @ np.maximum(query, 0) + low @ np.minimum(query, 0)


def arkvale_bounds(query, key, page):
    """As `page_bounds`; infinite for pages that are always chosen."""
    bounds = page_bounds(query, key, page, mean_box)
    bounds[:OLDEST] = bounds[max(len(bounds) - NEWEST, 0) :] = np.inf
    return bounds


def choose_pages(bounds, seen, k, page):
    """The keys that a query attends to of the `seen` ones that it sees: int.

    The pages that it sees whole, by descending bounds until they hold k keys, equal bounds together; and what it sees of the
    page after them.
    """
    wanted = -(-k // page)
    minimum = np.sort(bounds)[-wanted] if wanted < len(bounds) else -np.inf
    opened = np.repeat(~(bounds < minimum), page)  # a NaN is opened
    return np.flatnonzero(np.r_[opened, np.ones(seen - len(opened), bool)])


def pages_attention(query, key, value, *, k, causal=False, scale=None, softcap=None, sink_logits=None):
    """Attention to Quest's pages with the largest bounds, in float64.

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
    return _attend(query, key, value, page_bounds, k, PAGE, causal, scale, softcap=softcap, sink_logits=sink_logits)


def arkvale_attention(query, key, value, *, k, page, causal=False, scale=None, softcap=None, sink_logits=None):
    """Attention to ArkVale's pages with the largest scores, in float64: as `pages_attention`, `page` as of `ArkVale`."""
    return _attend(query, key, value, arkvale_bounds, k, page, causal, scale, softcap=softcap, sink_logits=sink_logits)


def _attend(query, key, value, bounds, k, page, causal, scale, **options):
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group, end = query.shape[1] // key.shape[1], visible_count(query.shape[2], key.shape[2], causal)

    def choose(b, h, i):
        found = bounds(scale * query[b, h, i], key[b, h // group, : end[i]], page)
        return Choice(choose_pages(found, end[i], k, page))

    out, lse, _, near = attend_chosen(query, key, value, choose, scale=scale, **options)
    return out, lse, near
