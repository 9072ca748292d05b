"""Keys by approximate scores and one mean for the rest: SparQ (arXiv 2312.04985)."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import Choice, attend_chosen, scores_of
from icecore.reference.dense import capped, visible_count
from icecore.reference.top_k import largest


def approximate_scores(query, key, components):
    """(d,) scaled, (S, d) -> (S,): scores from the largest components of the query; and how clearly these are the largest.

    The temperature is that of the paper: as if the other components had the same share in scores as in sum |q|.
    """
    size = np.abs(query)
    taken = largest(size, components)
    share = size[taken].sum() / size.sum() if size.sum() else 1.0
    margin = size[taken].min() - size[~taken].max() if components < len(query) else np.inf
    return key[:, taken] @ (query[taken] / np.sqrt(share)), margin


def choose_largest(scores, k, local):
    """(S,) bool: the last `local` keys, and of the others those with the largest scores, k keys in all; and how clearly."""
    local = min(local, len(scores))
    others = np.where(np.isnan(scores), np.inf, scores)[: len(scores) - local]
    chosen, ranked = largest(others, k - local), -np.sort(-others)
    with np.errstate(invalid="ignore"):
        margin = ranked[k - local - 1] - ranked[k - local] if 0 < k - local < len(ranked) else np.inf
    return np.r_[chosen, np.ones(local, bool)], margin


def choose(query, key, value, k, components, local, scale, softcap):
    """The Choice of a query (d,) among the keys that it sees, (S, d); and how clearly its keys differ from the others.

    The rest has the share 1 - alpha in the approximate softmax, so that its mean weighs (1 - alpha) / alpha times the keys.
    """
    scores, margin = approximate_scores(scale * query, key, components)
    chosen, own_margin = choose_largest(scores, k, local)
    keys = np.flatnonzero(chosen)
    if len(keys) == len(key):
        return Choice(keys), np.inf
    scores = capped(scores, softcap)
    log_alpha = np.logaddexp.reduce(scores[keys]) - np.logaddexp.reduce(scores)
    mass = np.logaddexp.reduce(scores_of(query, key, keys, scale, softcap=softcap))
    with np.errstate(divide="ignore"):
        rest = mass + np.log(-np.expm1(log_alpha)) - log_alpha
    return Choice(keys, np.array([rest]), value.mean(axis=0)[None]), min(margin, own_margin)


def sparq_attention(query, key, value, *, k, components, local, causal=False, scale=None, softcap=None, sink_logits=None,
                    return_margin=False):
    """Attention to the keys with the largest approximate scores, and to the mean value for the rest, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    k, components, local
        As of `icecore.selectors.SparQ`.
    causal, scale, softcap, sink_logits
        As in `icecore.attention`.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64, that of the keys less log(alpha)
    near_keys : (B, H, L) int, the keys attended to
    margin : (B, H, L) float64, only with return_margin
        The difference by which the last key or component was chosen; where it is tiny, rounding may choose another.
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group, end = query.shape[1] // key.shape[1], visible_count(query.shape[2], key.shape[2], causal)
    margin = np.full(query.shape[:3], np.inf)

    def choice(b, h, i):
        seen = key[b, h // group, : end[i]], value[b, h // group, : end[i]]
        own, margin[b, h, i] = choose(query[b, h, i], *seen, k, components, local, scale, softcap)
        return own

    out, lse, _, near = attend_chosen(query, key, value, choice, scale=scale, softcap=softcap, sink_logits=sink_logits)
    return (out, lse, near, margin) if return_margin else (out, lse, near)
