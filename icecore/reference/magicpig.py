"""Keys sampled by collisions of hashes and weighted by their probabilities: MagicPIG (arXiv 2410.16179)."""

from __future__ import annotations

import numpy as np

from icecore.reference.dense import add_sink, capped, per_query_head, softmax_sum, visible_count
from icecore.reference.random import random_directions

#: Keys that have a centre in common when causal; probabilities of equal signs that are smaller count as this.
BLOCK, SMALLEST = 64, 2.0**-10


def centred(key, causal):
    """(S, d) -> (S, d): keys less the mean of all; causal: less that of the blocks before their own, the first as they are.

    Keys that are not finite have no part in means.
    """
    finite = np.isfinite(key).all(axis=1, keepdims=True)
    block = BLOCK if causal else max(len(key), 1)
    total, count = np.cumsum(np.where(finite, key, 0.0), axis=0), np.cumsum(finite, axis=0)
    centre = np.zeros_like(key)
    for first in range(block if causal else 0, len(key), block):
        last = (first if causal else len(key)) - 1
        centre[first : first + block] = total[last] / max(count[last, 0], 1)
    return key - centre


def codes(rows, directions):
    """(N, d), (tables, bits, d) -> (N, tables) int: signs of projections, the first the highest; and the smallest of them all.

    Projections are relative to the rows' lengths.
    """
    projected = np.einsum("nd,tbd->ntb", rows, directions)
    length = np.linalg.norm(rows, axis=1)
    with np.errstate(divide="ignore"):
        smallest = np.abs(projected).min(axis=(1, 2)) / length
    return (projected >= 0) @ (1 << np.arange(directions.shape[1])[::-1]), smallest


def sampling_probability(cosine, bits, tables):
    """The probability that two vectors at that cosine collide in two tables or more."""
    same = np.maximum(1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi, SMALLEST) ** bits  # in one table
    few = tables * same < 1e-4  # where the formula cancels
    exact = 1 - (1 - same) ** tables - tables * same * (1 - same) ** (tables - 1)
    return np.where(few, tables * (tables - 1) / 2 * same**2 * (1 - 2 * (tables - 2) / 3 * same), exact)


def sample(query, key, directions, sinks, local, causal):
    """(L, S): the weights of a head's keys, 0 for those left out; (L,): how clearly the signs of projections are told.

    query (L, d) is scaled. A key that collides with the query in two tables has the weight 1 / probability; sinks, the last
    keys that a query sees, and keys that are not finite have the weight 1.
    """
    tables, bits = directions.shape[:2]
    end, shifted = visible_count(len(query), len(key), causal), centred(key, causal)
    (query_codes, clear), (key_codes, key_clear) = codes(query, directions), codes(shifted, directions)
    finite, length = np.isfinite(key).all(axis=1), np.linalg.norm(shifted, axis=1)
    weights, margin = np.zeros((len(query), len(key))), np.full(len(query), np.inf)
    place = np.arange(len(key))
    for i, row in enumerate(query):
        collisions = (key_codes == query_codes[i]).sum(axis=1)
        norms = length * np.linalg.norm(row)
        cosine = np.where(norms > 0, shifted @ row / np.where(norms > 0, norms, 1.0), 0.0)
        weights[i] = (collisions >= 2) / sampling_probability(cosine, bits, tables)
        weights[i, (place < sinks) | (place >= end[i] - local) | ~finite] = 1.0
        weights[i, end[i] :] = 0.0
        hashed = np.minimum(key_clear, clear[i])[: end[i]][finite[: end[i]] & (length > 0)[: end[i]]]
        margin[i] = hashed.min(initial=np.inf)
    return weights, margin


def magicpig_attention(query, key, value, *, bits, tables, sinks, local, causal=False, scale=None, softcap=None,
                       sink_logits=None, seed=0, return_margin=False):
    """Attention to keys that are sampled by collisions, weighted by 1 / probability, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    bits, tables, sinks, local
        As of `icecore.selectors.MagicPIG`.
    causal, scale, softcap, sink_logits, seed
        As in `icecore.attention`.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64: an estimate, of which exp(lse) is right on average over seeds
    near_keys : (B, H, L) int, the keys attended to
    margin : (B, H, L) float64, only with return_margin
        The smallest projection of a query or key by its length; where it is tiny, rounding may change a sign.
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    key, value = per_query_head(key, query.shape[1]), per_query_head(value, query.shape[1])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    directions = random_directions(seed, tables * bits, query.shape[-1]).astype(np.float64).reshape(tables, bits, -1)
    weights, margin = np.zeros((*query.shape[:3], key.shape[2])), np.full(query.shape[:3], np.inf)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for b, h in np.ndindex(*query.shape[:2]):
            weights[b, h], margin[b, h] = sample(scale * query[b, h], key[b, h], directions, sinks, local, causal)
        scores = capped(scale * query @ key.swapaxes(-1, -2), softcap) + np.log(weights)
        out, lse = softmax_sum(np.where(weights > 0, scores, -np.inf), value)
    if sink_logits is not None:
        out, lse = add_sink(out, lse, np.asarray(sink_logits, np.float64)[:, None])
    near = (weights > 0).sum(axis=-1)
    return (out, lse, near, margin) if return_margin else (out, lse, near)
