"""Nearest-neighbour search: Prioritized DCI (Li & Malik, 2017), brute force, and search down a tree of means."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

# ---- Lifting: maximum inner product as nearest neighbour ----


def dot(rows, vector):
    """(n, d), (d,) -> (n,): sums row by row, so that equal rows give equal bits wherever they stand."""
    return (np.asarray(rows).astype(np.float64, order="C") * vector).sum(axis=1)


def lift_keys(keys, scale=None):
    """(n, d) -> (n, d + 1): [k/c ; sqrt(1 - |k|^2/c^2)], unit vectors, for a scale c no less than the largest norm.

    scale : float, optional
        c; default the largest norm, or 1 where all keys are zero.
    """
    keys = np.asarray(keys).astype(np.float64, order="C")
    scale = (np.linalg.norm(keys, axis=1).max(initial=0.0) or 1.0) if scale is None else scale
    keys = keys / scale
    rest = np.sqrt(np.maximum(0.0, 1.0 - (keys**2).sum(axis=1)))  # (n,)
    return np.column_stack([keys, rest])


def lift_query(query):
    """(d,) -> (d + 1,): [q/|q| ; 0]; a zero query stays zero."""
    query = np.asarray(query).astype(np.float64)
    norm = np.linalg.norm(query)
    return np.append(query / norm if norm else query, 0.0)


# ---- One composite index ----


def closest_first(projection, query):
    """The points of one simple index, its sorted list (n,) walked outwards from `query`: yields (|difference|, point)."""
    order = np.argsort(projection, kind="stable")
    right = np.searchsorted(projection[order], query)
    left = right - 1
    while left >= 0 or right < len(order):
        below = query - projection[order[left]] if left >= 0 else np.inf
        above = projection[order[right]] - query if right < len(order) else np.inf
        if right == len(order) or (left >= 0 and below <= above):
            yield below, order[left]
            left -= 1
        else:
            yield above, order[right]
            right += 1


def pdci_candidates(projected_points, projected_query, *, visit, retrieve):
    """Candidates of one composite index, by the published queue over its sorted lists.

    The list whose next point has the smallest |difference| of projections is popped and moves on to its next-closest
    point; a point popped from all m lists is a candidate; the search ends after `visit` pops or `retrieve` candidates.
    One rule is added: pops at exactly the distance of the last one are made too. The candidates then do not depend on how
    a queue orders equal distances, and both budgets may be exceeded by ties.

    Parameters
    ----------
    projected_points : (n, m); projected_query : (m,), m >= 1
    visit, retrieve : int
        At least 1.

    Returns
    -------
    (candidates,) int array, in the order found: ascending in r (see `pdci_candidates_by_radius`), ties in any order
    """
    projected_points = np.asarray(projected_points).astype(np.float64)
    projected_query = np.asarray(projected_query).astype(np.float64)
    points, simple = projected_points.shape
    lists = [closest_first(projected_points[:, j], projected_query[j]) for j in range(simple)]
    queue, popped, found = [], np.zeros(points, int), []
    pops, last = 0, -np.inf

    def advance(j):
        entry = next(lists[j], None)
        if entry is not None:
            difference, point = entry
            heapq.heappush(queue, (difference, j, point))

    for j in range(simple):
        advance(j)
    while queue and ((pops < visit and len(found) < retrieve) or queue[0][0] == last):
        last, j, point = heapq.heappop(queue)
        advance(j)
        pops += 1
        popped[point] += 1
        if popped[point] == simple:
            found.append(point)
    return np.array(found, int)


def pdci_candidates_by_radius(projected_points, projected_query, *, visit, retrieve):
    """The set of `pdci_candidates` in closed form, in ascending r and, among equals, by index.

    A queue pops the n m differences |x_j - q_j| in ascending order, so it completes points in ascending order of the
    Chebyshev distance r(x) = max_j |x_j - q_j|. With ties popped too, it ends when all differences up to some distance are
    popped: the visit-th smallest difference or the retrieve-th smallest r, whichever is less.
    """
    projected_points = np.asarray(projected_points).astype(np.float64)
    difference = np.abs(projected_points - np.asarray(projected_query).astype(np.float64))  # (n, m)
    radius = difference.max(axis=1)  # (n,)

    def smallest(values, rank):
        return np.sort(values, axis=None)[rank - 1] if rank <= values.size else np.inf

    end = min(smallest(difference, visit), smallest(radius, retrieve))
    order = np.argsort(radius, kind="stable")
    return order[radius[order] <= end]


# ---- Search ----


def true_scores(points, query, metric):
    """(n, d), (d,) -> (n,): squared distances ('l2', the less the better) or inner products ('ip', the more the better)."""
    if metric == "l2":
        return ((np.asarray(points).astype(np.float64, order="C") - query) ** 2).sum(axis=1)
    if metric == "ip":
        return dot(points, query)
    raise ValueError(f"metric {metric!r} is neither 'l2' nor 'ip'")


def best_of(candidates, points, query, k, metric):
    """The k best of `candidates` (ascending indices) by true score, the smaller index among equals: indices, scores."""
    query = np.asarray(query).astype(np.float64)
    scores = true_scores(np.asarray(points)[candidates], query, metric)
    best = np.argsort(scores if metric == "l2" else -scores, kind="stable")[:k]
    return candidates[best], scores[best]


def search_exact(points, query, k, metric):
    """Brute force: indices and scores of the k best of all points (n, d), the best first, the smaller index among equals."""
    return best_of(np.arange(len(points)), points, query, k, metric)


def pdci_search(points, query, k, projections, *, metric, visit, retrieve, scale=None):
    """Prioritized DCI: the k best, by true score, among the candidates of all composite indices.

    Parameters
    ----------
    points : (n, d); query : (d,)
    projections : (num_composite, num_simple, width)
        Unit directions; the width is d for 'l2' and d + 1, the lifted one, for 'ip'.
    metric : 'l2' or 'ip'
        Scores: squared distance, ascending, or inner product, descending.
    visit, retrieve : int
        Budgets of each composite index, as in `pdci_candidates`.
    scale : float, optional
        As in `lift_keys`, for 'ip'.

    Returns
    -------
    indices, scores : (k,), fewer where there are fewer candidates; the smaller index among equals
    candidates : the union of all candidates, ascending
    """
    lifted = metric == "ip"
    placed = lift_keys(points, scale) if lifted else points  # (n, width)
    sought = lift_query(query) if lifted else np.asarray(query).astype(np.float64)  # (width,)
    candidates = np.zeros(0, int)
    for directions in np.asarray(projections).astype(np.float64):  # (num_simple, width)
        projected_points = np.column_stack([dot(placed, u) for u in directions])  # (n, num_simple)
        found = pdci_candidates_by_radius(projected_points, dot(directions, sought), visit=visit, retrieve=retrieve)
        candidates = np.union1d(candidates, found)
    return *best_of(candidates, points, query, k, metric), candidates


# ---- Trees ----


class Level(NamedTuple):
    """The nodes of one level of a tree: the children of node i are offset[i] .. offset[i + 1] - 1 of the level below."""

    means: np.ndarray  # (nodes, d)
    offset: np.ndarray  # (nodes + 1,) int


def tree_search(levels, points, query, k, *, metric, field_of_view, extend=False):
    """Search down a given tree, keeping the best `field_of_view` of the nodes reached at each level.

    Nodes rank by q.mean ('ip') or q.mean - |mean|^2/2 ('l2', as the distance from the mean), the smaller index first
    among equals. The points below the nodes kept last are scored exactly.

    Parameters
    ----------
    levels : list of Level
        From the top, all of whose nodes are reached, to the level whose children are points; without levels, all points.
    points : (n, d) in the order of the tree; query : (d,)
    k, metric
        As in `search_exact`.
    extend : bool
        Of one level: then the points of other nodes are scored as well, if by `reach` one may be among the k best. Where the
        metric is 'ip', so are, half as many as `field_of_view`, the nodes of largest reach at the root mean square distance.

    Returns
    -------
    indices, scores : (k,), fewer where fewer points are reached
    visited : int, the points scored exactly
    """
    query = np.asarray(query).astype(np.float64)
    reached = np.arange(len(levels[0].means) if levels else len(points))
    if extend:
        return _extended_search(*levels, points, query, k, metric, field_of_view)
    for level in levels:
        means = np.asarray(level.means).astype(np.float64)[reached]
        rank = dot(means, query) - (0.5 * (means**2).sum(axis=1) if metric == "l2" else 0.0)
        kept = np.sort(reached[np.argsort(-rank, kind="stable")[:field_of_view]])
        children = [np.arange(level.offset[i], level.offset[i + 1]) for i in kept]
        reached = np.concatenate([np.zeros(0, int), *children])
    return *best_of(reached, points, query, k, metric), len(reached)


def reach(level, points, query, k, metric):
    """What the best points below each of N nodes may score, (N,), if their directions from the mean are random.

    Points x = m + r score s + w.r ('ip': w = q, and s the mean's score) or s + w.r - |r|^2/2 ('l2': w = q - m, in scores of
    -|q - x|^2/2). Of random directions, w.r exceeds z |w| |r| / sqrt(d) with a probability of about exp(-z^2/2) / 2 at most. z
    is such that N nodes of n points each hold fewer than k points beyond it: exp(-z^2/2) / 2 = k / (n N). Distances |r| are
    taken as all equal to their root mean square, or as either the largest one or 0, whichever may score more.
    """
    typical, farthest = _reach(level, points, query, k, metric)
    return np.maximum(typical, farthest)


def _reach(level, points, query, k, metric):
    """`reach` of all points at the root mean square distance, and of as many as can be at the largest one."""
    means = np.asarray(level.means).astype(np.float64)
    count = np.diff(level.offset)
    squared = ((points - np.repeat(means, count, axis=0)) ** 2).sum(axis=1)
    groups = np.split(squared, level.offset[1:-1])
    distance = np.sqrt(((query - means) ** 2).sum(axis=1))
    score, length = (-(distance**2) / 2, distance) if metric == "l2" else (dot(means, query), np.linalg.norm(query))

    def at(lengths, points_there):
        z = np.sqrt(2 * np.log(np.maximum(points_there * len(means) / (2 * k), 1)))
        gain = np.minimum(1, z / np.sqrt(len(query))) * length * lengths
        return gain - lengths**2 / 2 if metric == "l2" else gain

    spread = np.sqrt([group.mean() if len(group) else 0 for group in groups])
    radius = np.sqrt([group.max(initial=0) for group in groups])
    at_radius = count * (spread / np.where(radius, radius, 1)) ** 2  # so many, if all others are at the mean
    return score + at(spread, count), score + at(radius, at_radius)


def _extended_search(level, points, query, k, metric, field_of_view):
    """`tree_search` in one level, with `extend`."""
    means = np.asarray(level.means).astype(np.float64)
    node = np.repeat(np.arange(len(means)), np.diff(level.offset))  # (n,)
    typical, farthest = _reach(level, points, query, k, metric)
    rank = dot(means, query) if metric == "ip" else -((query - means) ** 2).sum(axis=1)
    opened = np.isin(np.arange(len(means)), np.argsort(-rank, kind="stable")[:field_of_view])
    if metric == "ip":
        opened[np.argsort(-typical, kind="stable")[: (field_of_view + 1) // 2]] = True
    scores = best_of(np.flatnonzero(opened[node]), points, query, k, metric)[1]
    kth = (scores[-1] if metric == "ip" else -scores[-1] / 2) if len(scores) == k else -np.inf
    opened |= np.maximum(typical, farthest) >= kth
    reached = np.flatnonzero(opened[node])
    return *best_of(reached, points, query, k, metric), len(reached)
