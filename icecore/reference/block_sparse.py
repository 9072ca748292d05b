"""Blocks of keys by the scores of mean queries with mean keys: MInference's block-sparse pattern (arXiv 2407.02490)."""

from __future__ import annotations

import numpy as np

from icecore.reference.combine import attend_by_heads
from icecore.reference.dense import visible_count, visible_keys
from icecore.reference.top_k import largest

#: Rows of a block, and keys of one.
ROWS, BLOCK = 48, 64


def choose_blocks(query, key, k, causal=False):
    """(L, S) bool: the keys that each query of a head attends to; (L,): how clearly their blocks differ from the others.

    query (L, d) is scaled. The rows of a block attend to the blocks of keys with the largest scores, of those that all of them
    see whole, until these hold k keys; and to the keys behind these.
    """
    queries, keys = len(query), len(key)
    chosen, margin = np.zeros((queries, keys), bool), np.full(queries, np.inf)
    end, wanted = visible_count(queries, keys, causal), -(-k // BLOCK)
    for first in range(0, queries, ROWS):
        rows, seen = slice(first, first + ROWS), end[first] // BLOCK
        means = key[: seen * BLOCK].reshape(seen, BLOCK, key.shape[1]).mean(axis=1)
        scores = means @ query[rows].mean(axis=0)  # (blocks,)
        chosen[rows] = np.r_[np.repeat(largest(scores, wanted), BLOCK), np.ones(keys - seen * BLOCK, bool)]
        if wanted < seen:
            ranked = np.sort(np.where(np.isnan(scores), -np.inf, -scores))
            margin[rows] = ranked[wanted] - ranked[wanted - 1]
    return chosen & visible_keys(queries, keys, causal), margin


def block_sparse_attention(query, key, value, *, k, causal=False, scale=None, softcap=None, sink_logits=None,
                           return_margin=False):
    """Attention to the blocks with the largest scores of means, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    k
        As of `icecore.selectors.BlockSparse`.
    causal, scale, softcap, sink_logits
        As in `icecore.attention`.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to
    margin : (B, H, L) float64, only with return_margin
        The difference of scores by which the last block was chosen; where it is tiny, rounding may choose another.
    """

    def choose(query, key, scale):
        return choose_blocks(scale * query, key, k, causal)

    out, lse, near, margins = attend_by_heads(query, key, value, choose, scale=scale, softcap=softcap, sink_logits=sink_logits)
    return (out, lse, near, np.reshape(margins, near.shape)) if return_margin else (out, lse, near)
