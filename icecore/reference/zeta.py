"""Neighbours on a Z-order curve: ZETA (arXiv 2501.14577), with a random projection in place of the trained one."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import Choice, attend_chosen
from icecore.reference.dense import visible_count
from icecore.reference.random import random_directions

#: Dimensions that vectors are projected to, bits of a coordinate, and the standard deviations that its cells cover.
AXES, AXIS_BITS, DEVIATIONS = 3, 10, 8


def morton_codes(vectors, directions):
    """(n, d), (AXES, d) -> (n,) int64: the interleaved bits of the coordinates of the vectors at length 1.

    A coordinate has a standard deviation of d^(-1/2) where directions are random. NaN is in the first cell.
    """
    length = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    x = (vectors @ directions.T / length * np.sqrt(vectors.shape[1]) / DEVIATIONS + 0.5) * 2**AXIS_BITS
    cells = np.clip(np.nan_to_num(x, nan=0.0), 0, 2**AXIS_BITS - 1).astype(np.int64)  # (n, AXES)
    bits = cells[:, None] >> np.arange(AXIS_BITS)[:, None] & 1  # (n, AXIS_BITS, AXES)
    return (bits.reshape(len(vectors), -1) << np.arange(AXIS_BITS * AXES)).sum(axis=1)


def neighbours(code, codes, k):
    """The k entries of `codes` (n,) next to `code` in sorted order, as many on either side as there are; the odd one before."""
    order = np.argsort(codes, kind="stable")
    place = np.searchsorted(codes[order], code)
    begin = np.clip(place - (k + 1) // 2, 0, max(len(codes) - k, 0))
    return order[begin : begin + k]


def zeta_attention(query, key, value, *, k, causal=False, scale=None, softcap=None, sink_logits=None, seed=0):
    """Attention of each query to the k keys next to it on the curve, of those that it sees, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    k, causal, scale, softcap, sink_logits, seed
        As in `icecore.attention` with `icecore.selectors.Zeta`.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group, end = query.shape[1] // key.shape[1], visible_count(query.shape[2], key.shape[2], causal)
    directions = random_directions(seed, AXES, query.shape[-1]).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        own, codes = ([[morton_codes(rows, directions) for rows in heads] for heads in array]
                      for array in (-query if scale < 0 else query, key))

    def choose(b, h, i):
        return Choice(neighbours(own[b][h][i], codes[b][h // group][: end[i]], k))

    out, lse, _, near = attend_chosen(query, key, value, choose, scale=scale, softcap=softcap, sink_logits=sink_logits)
    return out, lse, near
