"""Keys under parents, then in cells: sampled means, the nearest one, one or two Lloyd steps, the nearest one again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icecore.reference.random import sample_without_replacement


@dataclass(frozen=True)
class Cells:
    """A partition of n keys and its summaries, in float64.

    members : list of (n_c,) int arrays; count : (C,); mean_key : (C, d); mean_value : (C, dv);
    variance : (C,), mean squared distance of keys from their mean per dimension; radius : (C,), the largest distance;
    value_variance : (C,), mean squared distance of values from their mean.
    """

    members: list
    count: np.ndarray
    mean_key: np.ndarray
    mean_value: np.ndarray
    variance: np.ndarray
    radius: np.ndarray
    value_variance: np.ndarray


@dataclass(frozen=True)
class Tree:
    """Cells, the parents they lie under (Cells too, with the same keys), and which parent each cell has: (C,) int.

    All of it is of keys multiplied by `metric` (d,). component_variance (d,): the mean squared distance of such keys from
    their cells' means in each component, divided by that of all components, a tenth of it as if all were alike.
    mean_value (dv,): the mean value of the whole segment, by a sample of its rows.
    has_apart: whether the last parent is that of what is apart (`set_apart`), which one mean cannot stand for: it is always
    expanded, and its cells of one key are always opened.
    """

    cells: Cells
    parents: Cells
    parent: np.ndarray
    metric: np.ndarray
    component_variance: np.ndarray
    mean_value: np.ndarray
    has_apart: bool = False


#: Cells under a parent, on average, and Lloyd steps to find them; parents are found in one.
CELLS_PER_PARENT, CELL_STEPS = 16, 2
#: Keys and cells are apart whose squared distance from the mean of their cell, or parent, is above so many times the mean of
#: those of the parent's keys; keys at most one for so many cells. Of projected keys so many components are looked at.
APART, CELLS_PER_APART, APART_WIDTH = 8.0, 4, 8
#: A segment's metric, projection, component_variance and mean_value come from so many rows, up to twice as many, spread evenly.
SAMPLE = 256
#: Sums of squares above this count as not finite.
LARGEST = float(np.finfo(np.float32).max)
#: Exponents of two of a metric are within this of the largest, and so of 0, which is their mean.
LARGEST_EXPONENT = 6
#: So much of the variance counts as if it were alike in all components: a key may stand out in one in which no other differs.
EVEN_SHARE = 0.1
#: Of sampled rows those are left out whose squared norm is above so many times the median: padding may hold anything.
OUTLYING = 100.0
#: A projection may lack this share of the mean squared distance between keys, or more where it has so many rows.
LEFT_OUT, MAX_PROJECTED = 0.02, 64
#: This share of the mean of the moments' diagonal is added to it, for directions in which no sampled query points.
RIDGE = 2.0**-10


def sampled(count):
    """Which of `count` rows are looked at."""
    step = max(1, count // SAMPLE)
    return np.arange(step // 2, count, step)


def trusted(rows):
    """Those of the sampled rows of (n, d) that are finite and whose squared norm is at most 100 times the (upper) median."""
    rows = rows[sampled(len(rows))]
    with np.errstate(invalid="ignore", over="ignore"):
        squared = (rows**2).sum(axis=1)
        usable = squared <= LARGEST
    rows, squared = rows[usable], squared[usable]
    limit = OUTLYING * np.sort(squared)[len(squared) // 2] if len(squared) else 0.0
    return rows if limit == 0 else rows[squared <= limit]


def metric_of(squares):
    """(d,) mean squares of components -> (d,): their roots, relative to the geometric mean; 1 where they say nothing."""
    if not 0 < squares.max() < np.inf:
        return np.ones(len(squares))
    exponents = 0.5 * np.log2(np.maximum(squares, squares.max() * 4.0**-LARGEST_EXPONENT))
    return np.exp2(exponents - exponents.mean())


def key_metric(key):
    """(n, d) -> (d,): the metric of keys whose queries are unknown."""
    return metric_of((key[sampled(len(key))] ** 2).mean(axis=0))


def moments_scale(moments):
    """(d, d), E[q q^T] -> (d,): the metric of these queries."""
    return metric_of(np.asarray(moments, np.float64).diagonal())


def projection(moments, key):
    """(d, d), (n, d) -> P (r, d): mean squared distances between keys k are |P (k - k')|^2 = (k - k')^T M (k - k') within 2 %.

    A = sqrt(v) M sqrt(v), with v (d,) the variance of the keys' components, has the trace E[(k - E k)^T M (k - E k)] where
    components are independent. A = R R^T by Cholesky, pivoted, until all but 2 % of the trace is explained, or by 64
    columns; P = R^T / sqrt(v).
    """
    moments = np.asarray(moments, np.float64)
    rows = trusted(key)
    spread = rows.std(axis=0) if len(rows) else np.zeros(key.shape[1])  # (d,), sqrt(v)
    ridge = np.diag(np.full(len(moments), RIDGE * moments.diagonal().mean()))
    left = spread[:, None] * (moments + ridge) * spread  # (d, d), what the columns of R do not explain of A
    columns, trace = [], left.trace()
    if not 0 < trace <= LARGEST:
        return np.diag(moments_scale(moments))
    while left.trace() > LEFT_OUT * trace and len(columns) < MAX_PROJECTED:
        pivot = left.diagonal().argmax()
        columns.append(left[:, pivot] / np.sqrt(left[pivot, pivot]))
        left = left - np.outer(columns[-1], columns[-1])
    rows = np.array(columns)  # (r, d), R^T
    return np.divide(rows, spread, out=np.zeros_like(rows), where=spread > 0)


def component_variance(key, cells):
    """(d,): of key (n, d) about the means of their cells, 1 on average, never far below; 1 where no key differs from them."""
    order = np.concatenate(cells.members)
    rows = sampled(len(order))
    mean = np.repeat(cells.mean_key, cells.count, axis=0)[rows]  # (sample, d)
    squares = ((key[order[rows]] - mean) ** 2).sum(axis=0)  # (d,)
    usable = 0 < squares.sum() < np.inf
    return EVEN_SHARE + (1 - EVEN_SHARE) * squares / squares.mean() if usable else np.ones(key.shape[1])


def sampled_mean(rows):
    """(n, d) -> (d,): the mean of those sampled rows that are to be trusted; 0 where none is."""
    rows = trusted(rows)
    return rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])


def summarize(key, value, members):
    """Cells of a given partition: key (n, d), value (n, dv)."""
    key, value = np.asarray(key).astype(np.float64), np.asarray(value).astype(np.float64)
    mean_key = np.array([key[m].mean(axis=0) for m in members])  # (C, d)
    mean_value = np.array([value[m].mean(axis=0) for m in members])  # (C, dv)
    squared = [((key[m] - mean) ** 2).sum(axis=1) for m, mean in zip(members, mean_key, strict=True)]  # C of (n_c,)
    variance = np.array([s.mean() / key.shape[1] for s in squared])
    radius = np.array([np.sqrt(s.max()) for s in squared])
    spread = [((value[m] - mean) ** 2).sum(axis=1) for m, mean in zip(members, mean_value, strict=True)]  # C of (n_c,)
    value_variance = np.array([s.mean() for s in spread])
    return Cells(members, np.array([len(m) for m in members]), mean_key, mean_value, variance, radius, value_variance)


def summarize_tree(key, value, members, parent, metric, *, has_apart=False):
    """The Tree of a given partition of keys in cells, and of these under parents (C,)."""
    key, value = np.asarray(key).astype(np.float64) * metric, np.asarray(value).astype(np.float64)
    under = [np.concatenate([m for m, p in zip(members, parent, strict=True) if p == each]) for each in range(max(parent) + 1)]
    cells = summarize(key, value, members)
    parents = summarize(key, value, under)
    return Tree(cells, parents, np.asarray(parent), metric, component_variance(key, cells), sampled_mean(value), has_apart)


def nearest_parent(key, parents):
    """(n, d), (C, d) -> (n,): argmin |x - p|^2, the smaller index among equals."""
    return (key @ parents.T - 0.5 * (parents**2).sum(axis=1)).argmax(axis=1)


def cluster(key, wanted, seed, steps):
    """Members of at most `wanted` groups of key (n, d), after so many Lloyd steps."""
    means = key[sample_without_replacement(len(key), wanted, seed)]  # (C, d)
    for _ in range(steps + 1):
        label = nearest_parent(key, means)
        label = np.unique(label, return_inverse=True)[1]  # empty groups vanish
        means = np.array([key[label == c].mean(axis=0) for c in range(label.max() + 1)])
    return [np.flatnonzero(label == c) for c in range(len(means))]


def set_apart(place, cells):
    """Of the cells of place (n, r) those that stay under their parent, and those that are apart.

    One key that all queries look for, among others that none does, hides behind their mean: its mass, and the risk of opening
    it too late, are e times too small for each unit by which its score is above theirs. A cell whose mean is so far from its
    parent's is apart, and a key that is so far from its cell's alone.
    """
    means = [place[members].mean(axis=0) for members in cells]
    squared, apart_by = np.empty(len(place)), np.empty(len(place))  # of a key from its cell's mean, of that from its parent's
    for members, mean in zip(cells, means, strict=True):
        squared[members] = ((place[members] - mean) ** 2).sum(axis=1)
        apart_by[members] = ((mean - place.mean(axis=0)) ** 2).sum()
    usable = squared <= LARGEST
    within, between = squared[usable].sum(), apart_by[apart_by <= LARGEST].sum()
    far = (apart_by > APART * (within + between) / len(place)) & (apart_by <= LARGEST)
    limit = APART * within / len(place)
    order = np.concatenate(cells)
    candidates = order[(usable & (squared > limit))[order]]
    alone = candidates[np.argsort(-squared[candidates], kind="stable")][: len(cells) // CELLS_PER_APART]
    near, apart = [], []
    for members in cells:
        single = np.isin(members, alone)
        (apart if far[members[0]] else near).append(members[~single])
        apart += [members[i : i + 1] for i in np.flatnonzero(single)]
    return [[rows for rows in found if len(rows)] for found in (near, apart)]


def build_tree(key, value, *, cell_size, seed, moments=None):
    """The tree of a segment over key (n, d), value (n, dv), n >= 1.

    moments (d, d): E[q q^T] of the queries, by which cells are found (`projection`). Without them, in the keys' own metric.
    """
    key = np.asarray(key).astype(np.float64)
    metric = key_metric(key) if moments is None else moments_scale(moments)
    place = key * metric if moments is None else key @ projection(moments, key).T  # (n, d) or (n, r)

    def rounded(count, size):
        return max(1, (count + size // 2) // size)

    parents = rounded(rounded(len(key), cell_size), CELLS_PER_PARENT)
    under = cluster(place, parents, ~seed % 2**64, 1) if parents > 1 else [np.arange(len(key))]
    members, apart, parent = [], [], []
    for p, rows in enumerate(under):
        found = cluster(place[rows], rounded(len(rows), cell_size), (seed + p) % 2**64, CELL_STEPS)
        found, far = set_apart(place[rows] if moments is None else place[rows, :APART_WIDTH], found)
        members += [rows[m] for m in found]
        apart += [rows[m] for m in far]
        parent += [p] * len(found)
    parent += [len(under)] * len(apart)
    return summarize_tree(key, value, members + apart, parent, metric, has_apart=bool(apart))
