"""Blocks of keys by antidiagonals of scores until they hold a share of the mass: XAttention (arXiv 2503.16428)."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import attend_by_heads
from icecore.reference.dense import capped, softmax_sum, visible_count, visible_keys

#: Rows of a block, and keys of one.
ROWS, BLOCK = 48, 128


def antidiagonal_scores(query, key, end, stride, softcap=None):
    """(L, d), (S, d), (L,) -> (groups of rows, groups of keys): the mean of q_i . k_j over the antidiagonals, capped.

    Groups are of `stride` rows and keys; the pairs of an antidiagonal are those with i + j = stride - 1 in their groups and
    j < end_i, and where there is none the score is -inf.
    """
    i, j = np.arange(len(query))[:, None], np.arange(len(key))
    on = (i % stride + j % stride == stride - 1) & (j < end[:, None])  # (L, S)
    padding = [(0, -n % stride) for n in on.shape]
    tiles = [np.pad(each, padding).reshape(-(-len(query) // stride), stride, -(-len(key) // stride), stride)
             for each in (np.where(on, query @ key.T, 0.0), on)]
    total, pairs = (each.sum(axis=(1, 3)) for each in tiles)
    return np.where(pairs, capped(total / np.maximum(pairs, 1), softcap), -np.inf)


def choose_blocks(query, key, stride, threshold, softcap=None):
    """(L, S) bool: the keys that each query of a head attends to; (L,): how clearly their blocks differ from the others.

    query (L, d) is scaled. Each group of rows weighs all groups of keys by a softmax. The rows of a block attend to the blocks
    of keys with the most weight, of those that all of them see whole, until they hold `threshold` of it; the first of these
    blocks, and the keys behind them, are always among what they attend to.
    """
    queries, keys = len(query), len(key)
    chosen, margin = np.zeros((queries, keys), bool), np.full(queries, np.inf)
    end = visible_count(queries, keys, causal=True)
    for first in range(0, queries, ROWS):
        rows, blocks = slice(first, first + ROWS), end[first] // BLOCK
        own = key[: end[rows][-1]]
        scores = antidiagonal_scores(query[rows], own, end[rows], stride, softcap)
        weights, _ = softmax_sum(scores, np.eye(scores.shape[1]))  # (groups of rows, groups of keys)
        weight = weights.sum(axis=0)
        opened = np.ones(blocks, bool)
        if np.isfinite(weight).all() and blocks:
            mass = weight[: blocks * BLOCK // stride].reshape(blocks, -1).sum(axis=1)
            order = np.r_[0, 1 + np.argsort(-mass[1:], kind="stable")]
            held = weight[blocks * BLOCK // stride :].sum() + np.cumsum(mass[order])  # by the first block, two blocks, ...
            wanted = threshold * weight.sum()
            taken = 1 + np.count_nonzero(held[:-1] < wanted)
            opened = np.isin(np.arange(blocks), order[:taken])
            margin[rows] = np.abs(held - wanted).min()
            if 1 < taken < blocks:
                margin[rows] = min(margin[first], mass[order[taken - 1]] - mass[order[taken]])
        chosen[rows] = np.r_[np.repeat(opened, BLOCK), np.ones(keys - blocks * BLOCK, bool)]
    return chosen & visible_keys(queries, keys, causal=True), margin


def xattention_attention(query, key, value, *, stride, threshold, causal=True, scale=None, softcap=None,
                         sink_logits=None, return_margin=False):
    """Causal attention to the blocks that hold most of the mass on antidiagonals, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    stride, threshold
        As of `icecore.selectors.XAttention`.
    causal : True
    scale, softcap, sink_logits
        As in `icecore.attention`.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to
    margin : (B, H, L) float64, only with return_margin
        The least difference of mass by which the last block was chosen; where it is tiny, rounding may choose another.
    """

    def choose(query, key, scale):
        return choose_blocks(scale * query, key, stride, threshold, softcap)

    out, lse, near, margins = attend_by_heads(query, key, value, choose, scale=scale, softcap=softcap, sink_logits=sink_logits)
    return (out, lse, near, np.reshape(margins, near.shape)) if return_margin else (out, lse, near)
