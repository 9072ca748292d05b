"""Vertical and slash lines that the last queries vote for: MInference (arXiv 2407.02490)."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import attend_by_heads
from icecore.reference.dense import capped, softmax_sum, visible_keys

#: Queries that vote; rows of a block, which share the squares along their diagonals.
VOTERS, BLOCK = 64, 48
#: The first columns and diagonals, which are always among the elected.
FIRST_COLUMNS, FIRST_DIAGONALS = 30, 100


def vote(query, key, scale, softcap=None):
    """(L, d), (S, d) -> (S,), (S,): the weights of the last queries, summed by key and by distance from query to key.

    A query whose weights are not finite does not vote.
    """
    visible = visible_keys(len(query), len(key), causal=True)[-VOTERS:]  # (voters, S)
    columns, diagonals = np.zeros((2, len(key)))
    for own, row in zip(visible, query[-VOTERS:], strict=True):
        score = capped(scale * key[own] @ row, softcap)
        weights, _ = softmax_sum(score[None], np.eye(len(score)))
        if np.isfinite(weights).all():
            columns[own] += weights[0]
            diagonals[: len(score)] += weights[0, ::-1]
    return columns, diagonals


def elect(votes, first, wanted):
    """(S,) -> (S,) bool: the `first` lines and those with the most votes, the first among equals; and how clearly they won."""
    votes = np.where(np.arange(len(votes)) < first, np.inf, votes)
    order, elected = np.argsort(-votes, kind="stable"), np.zeros(len(votes), bool)
    elected[order[:wanted]] = True
    if wanted >= len(votes) or first >= wanted:
        return elected, np.inf
    last, best = votes[order[wanted]], votes[order[wanted - 1]]
    return elected, 1 - last / best if best else 0.0


def choose_lines(query, key, vertical, slash, scale, softcap=None):
    """(L, S) bool: the keys that each query of a head attends to; and how clearly the lines were elected."""
    queries, keys = len(query), len(key)
    votes = vote(query, key, scale, softcap)
    columns, margin = elect(votes[0], FIRST_COLUMNS, vertical)
    diagonals, own_margin = elect(votes[1], FIRST_DIAGONALS, slash)
    chosen = np.tile(columns, (queries, 1))
    for first in range(0, queries, BLOCK):
        for distance in np.flatnonzero(diagonals):
            begin = keys - queries + first - distance
            chosen[first : first + BLOCK, max(begin, 0) : max(begin + BLOCK, 0)] = True
    return chosen & visible_keys(queries, keys, causal=True), min(margin, own_margin)


def minference_attention(query, key, value, *, vertical, slash, causal=True, scale=None, softcap=None, sink_logits=None,
                         return_margin=False):
    """Causal attention to the vertical and slash lines with the most votes, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    vertical, slash
        As of `icecore.selectors.MInference`.
    causal : True
    scale, softcap, sink_logits
        As in `icecore.attention`.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to
    margin : (B, H) float64, only with return_margin
        By what share of its votes the last elected line was ahead of the next; where it is tiny, rounding may elect another.
    """

    def choose(query, key, scale):
        return choose_lines(query, key, vertical, slash, scale, softcap)

    out, lse, near, margins = attend_by_heads(query, key, value, choose, scale=scale, softcap=softcap, sink_logits=sink_logits)
    return (out, lse, near, np.reshape(margins, near.shape[:2])) if return_margin else (out, lse, near)
