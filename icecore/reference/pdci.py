"""The published method, IceFormer (arXiv 2405.02842): of the keys that P-DCI visits those with the largest scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from icecore.reference.cells import cluster
from icecore.reference.dense import add_sink, capped, per_query_head, softmax_sum, visible_count
from icecore.reference.random import random_directions, segment_seed
from icecore.reference.search import dot, lift_keys, lift_query

#: Composite indices and the simple ones of each, as published.
COMPOSITES, SIMPLES = 2, 7
#: Parents are opened until the keys below them come to so many times the keys to visit.
FIELD_OF_VIEW = 4
#: Keys of a block when causal; the newest, fewer ones, are compared exactly.
BLOCK = 512
#: Rows that a centre is found from, and how many times the median a component of them may be.
SAMPLE, OUTLYING = 512, 16


class PdciTree(NamedTuple):
    """Keys first .. first + n - 1 in two levels: promoted keys, moved to the means of the keys next to them, and the keys."""

    first: int
    members: list  # of each parent, (n_c,) int
    means: np.ndarray  # (parents, d)
    projected: np.ndarray  # (n, COMPOSITES, SIMPLES), of the lifted keys


def seen_ranges(blocks):
    """The ranges (first, end) of blocks that cover the first `blocks` ones in a Fenwick tree, the last first."""
    ranges = []
    while blocks:
        size = blocks & -blocks
        ranges.append((blocks - size, blocks))
        blocks -= size
    return ranges


def sampled_centre(key):
    """(n, d) -> (d,): the mean of up to 512 rows, without those whose largest component is above 16 times the median."""
    rows = key[np.arange(min(len(key), SAMPLE)) * len(key) // min(len(key), SAMPLE)]
    size = np.abs(rows).max(axis=1)
    return rows[size / OUTLYING <= np.sort(size)[len(size) // 2]].mean(axis=0)


def lifted(key):
    """(n, d) -> (n, d + 1), for inner products: less their centre where that makes the longest of them shorter."""
    centred = key - sampled_centre(key)
    longest = [np.linalg.norm(rows, axis=1).max() for rows in (key, centred)]
    return lift_keys(key if longest[0] <= longest[1] else centred)


def build_pdci_tree(key, first, directions, seed):
    """The tree of key (n, d), n^(1/2) of which are promoted; None where a key is not finite."""
    if not np.isfinite(key).all():
        return None
    parents = int(np.sqrt(len(key)) + 0.5)
    members = cluster(key, parents, segment_seed(seed, first, len(key)), 1)
    means = np.array([key[m].mean(axis=0) for m in members])
    return PdciTree(first, members, means, np.einsum("nd,lmd->nlm", lifted(key), directions))


def visited_keys(query, tree, directions, visit):
    """The keys of a tree that its composite indices yield, and how clearly they differ from the others.

    Parents rank by q . mean. Each composite yields `visit` of the keys below opened parents, in order of the largest difference
    of projections.
    """
    score = dot(tree.means, query)
    order = np.argsort(-score, kind="stable")
    held = np.cumsum([len(tree.members[i]) for i in order])
    opened = int(np.searchsorted(held, min(FIELD_OF_VIEW * visit, held[-1]))) + 1
    margin = score[order[opened - 1]] - score[order[opened]] if opened < len(order) else np.inf
    below = np.sort(np.concatenate([tree.members[i] for i in order[:opened]]))
    radius = np.abs(tree.projected[below] - directions @ lift_query(query)).max(axis=-1)  # (n, COMPOSITES)
    nearest = np.argsort(radius, axis=0, kind="stable")
    if visit < len(below):
        edge = np.take_along_axis(radius, nearest[visit - 1 : visit + 1], axis=0)  # (2, COMPOSITES)
        margin = min(margin, (edge[1] - edge[0]).min())
    return tree.first + np.unique(below[nearest[:visit]]), margin


def choose_nearest(query, key, k, visit, directions, seed, causal=False):
    """(L, S) bool: the keys that each query attends to; (L,): how clearly they differ from the others."""
    queries, keys = len(query), len(key)
    chosen, margin = np.zeros((queries, keys), bool), np.full(queries, np.inf)
    block, planted = BLOCK if causal or not keys else keys, {}
    for row, end in enumerate(visible_count(queries, keys, causal).tolist()):
        sealed = end // block * block
        found = [np.arange(end)]
        if visit < end and np.isfinite(query[row]).all():
            found = [np.arange(sealed, end)]
            for first, last in (np.multiply(each, block).tolist() for each in seen_ranges(end // block)):
                if (first, last) not in planted:
                    planted[first, last] = build_pdci_tree(key[first:last], first, directions, seed)
                tree, own = planted[first, last], (np.arange(first, last), np.inf)
                if tree is not None:
                    own = visited_keys(query[row], tree, directions, -(-visit * (last - first) // sealed))
                found.append(own[0])
                margin[row] = min(margin[row], own[1])
        found = np.sort(np.concatenate(found))
        with np.errstate(invalid="ignore", over="ignore"):
            score = dot(key[found], query[row])
        score = np.where(np.isnan(score), np.inf, score)
        order = np.argsort(-score, kind="stable")
        chosen[row, found[order[:k]]] = True
        if k < len(order) and score[order[k - 1]] < np.inf:
            margin[row] = min(margin[row], score[order[k - 1]] - score[order[k]])
    return chosen, margin


def pdci_attention(query, key, value, *, k, visit, causal=False, scale=None, softcap=None, sink_logits=None, seed=0,
                   return_margin=False):
    """Attention to the k keys with the largest scores among those that P-DCI visits, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    k, visit, causal, scale, softcap, sink_logits, seed
        As in `icecore.attention` with ``selector="pdci"``.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64
    near_keys : (B, H, L) int, the keys attended to
    margin : (B, H, L) float64, only with return_margin
        The least difference of scores or projections by which a key or a parent was chosen; where it is tiny, rounding may
        choose another.
    """
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    key, value = per_query_head(key, query.shape[1]), per_query_head(value, query.shape[1])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    directions = random_directions(seed, COMPOSITES * SIMPLES, query.shape[-1] + 1).astype(np.float64)
    directions = directions.reshape(COMPOSITES, SIMPLES, -1)
    chosen, margin = np.zeros((*query.shape[:3], key.shape[2]), bool), np.full(query.shape[:3], np.inf)
    for b, h in np.ndindex(*query.shape[:2]):
        chosen[b, h], margin[b, h] = choose_nearest(scale * query[b, h], key[b, h], k, visit, directions, seed, causal)
    with np.errstate(invalid="ignore", over="ignore"):
        out, lse = softmax_sum(np.where(chosen, capped(scale * query @ key.swapaxes(-1, -2), softcap), -np.inf), value)
    if sink_logits is not None:
        out, lse = add_sink(out, lse, np.asarray(sink_logits, np.float64)[:, None])
    returned = (out, lse, chosen.sum(axis=-1))
    return (*returned, margin) if return_margin else returned
