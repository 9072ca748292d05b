"""The largest scores and a sample of the rest whose size keeps a promise: vAttention (arXiv 2510.05688)."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from icecore.reference.combine import Choice, attend_chosen
from icecore.reference.dense import capped, visible_count
from icecore.reference.random import sample_without_replacement, segment_seed
from icecore.reference.top_k import largest

#: The first sample: one key in so many of the rest, and at least so many keys.
BASE_STEP, MIN_BASE = 40, 32


def base_size(rest):
    """Keys of the first sample of so many."""
    return min(max(-(-rest // BASE_STEP), MIN_BASE), rest)


def wanted_size(fixed, first, rest, epsilon, delta):
    """b = (z n s / (epsilon D))^2, not rounded: so many samples keep the sum of weights within epsilon but for a share delta.

    fixed, first: the scores that are always summed, and those of the first sample; rest: n, the keys that it is of. s is the
    standard deviation of the samples' weights, D the estimated sum of all weights, z = -quantile(delta / 2) of the normal
    distribution. 0 where the largest score is not finite: no size keeps a promise.
    """
    top = np.max(np.r_[fixed, first], initial=-np.inf)
    if not np.isfinite(top) or len(first) < 2:
        return 0.0
    weights = np.exp(first - top)
    total = np.exp(fixed - top).sum() + rest * weights.mean()
    return (-NormalDist().inv_cdf(delta / 2) * rest * weights.std(ddof=1) / (epsilon * total)) ** 2


def choose_and_sample(scores, cap, seed, *, k, sinks, window, epsilon, delta):
    """Of the scores (n,) of the keys that a query sees: the keys that are always attended to, the sample, and the margin.

    cap: what a soft cap makes of scores. The margin says how clearly the k largest scores and the size of the sample are what
    they are.
    """
    keys = np.arange(len(scores))
    sink_end = min(sinks, len(keys))
    window_begin = len(keys) - min(window, len(keys) - sink_end)
    middle = scores[sink_end:window_begin]
    is_fixed = (keys < sink_end) | (keys >= window_begin)
    is_fixed[sink_end:window_begin] = largest(middle, k)
    rest, margin = keys[~is_fixed], np.inf
    if k < len(middle):
        ranked = -np.sort(np.where(np.isnan(middle), -np.inf, -middle))
        margin = ranked[k - 1] - ranked[k] if ranked[k - 1] > ranked[k] else 0.0
    base = base_size(len(rest))
    weighed = cap(np.where(np.isnan(scores), np.inf, scores))
    first = rest[sample_without_replacement(len(rest), base, seed)]
    size = wanted_size(weighed[is_fixed], weighed[first], len(rest), epsilon, delta)
    if base < np.ceil(size) < len(rest) or base < len(rest) <= size < len(rest) + 1:
        margin = min(margin, abs(size - np.rint(size)) / size)
    count = int(min(max(np.ceil(min(size, len(rest))), base), len(rest)))
    return keys[is_fixed], rest[sample_without_replacement(len(rest), count, seed)], margin


def vattention_attention(query, key, value, *, k, sinks, window, epsilon, delta, causal=False, scale=None, softcap=None,
                         sink_logits=None, seed=0, return_margin=False):
    """Attention to the largest scores and to a sample of the others, which stands for them, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    k, sinks, window, epsilon, delta
        As of `icecore.selectors.VAttention`.
    causal, scale, softcap, sink_logits, seed
        As in `icecore.attention`. The sample of a query depends on the seed, its position and its head.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to, the sample among them
    margin : (B, H, L) float64, only with return_margin
        How clearly keys and the size of the sample were chosen; where it is tiny, rounding may choose others.
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    queries, keys = query.shape[2], key.shape[2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group, end = query.shape[1] // key.shape[1], visible_count(queries, keys, causal)
    near, margin = np.zeros(query.shape[:3], np.int64), np.full(query.shape[:3], np.inf)

    def choose(b, h, i):
        scores = scale * (key[b, h // group, : end[i]] @ query[b, h, i])
        position = keys - queries + i
        fixed, sample, margin[b, h, i] = choose_and_sample(
            scores, lambda s: capped(s, softcap), segment_seed(seed, position, h), k=k, sinks=sinks, window=window,
            epsilon=epsilon, delta=delta)
        near[b, h, i] = len(fixed) + len(sample)
        stands_for = np.log((end[i] - len(fixed)) / len(sample)) if len(sample) else 0.0
        return Choice(fixed, capped(scores[sample], softcap) + stands_for, value[b, h // group, sample])

    out, lse, _, _ = attend_chosen(query, key, value, choose, scale=scale, softcap=softcap, sink_logits=sink_logits)
    return (out, lse, near, margin) if return_margin else (out, lse, near)
