"""Keys under parents, then in cells: sampled means, the nearest one, one Lloyd step, the nearest one again."""

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
    """Cells, the parents they lie under (Cells too, with the same keys), and which parent each cell has: (C,) int."""

    cells: Cells
    parents: Cells
    parent: np.ndarray


#: Cells under a parent, on average.
CELLS_PER_PARENT = 16


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


def summarize_tree(key, value, members, parent):
    """The Tree of a given partition in cells, and of these under parents (C,)."""
    under = [np.concatenate([m for m, p in zip(members, parent, strict=True) if p == each]) for each in range(max(parent) + 1)]
    return Tree(summarize(key, value, members), summarize(key, value, under), np.asarray(parent))


def nearest_parent(key, parents):
    """(n, d), (C, d) -> (n,): argmin |x - p|^2, the smaller index among equals."""
    return (key @ parents.T - 0.5 * (parents**2).sum(axis=1)).argmax(axis=1)


def cluster(key, wanted, seed):
    """Members of at most `wanted` groups of key (n, d)."""
    means = key[sample_without_replacement(len(key), wanted, seed)]  # (C, d)
    for _ in range(2):
        label = nearest_parent(key, means)
        label = np.unique(label, return_inverse=True)[1]  # empty groups vanish
        means = np.array([key[label == c].mean(axis=0) for c in range(label.max() + 1)])
    return [np.flatnonzero(label == c) for c in range(len(means))]


def is_unstructured(key, members):
    """Whether groups of key (n, d) leave as much variance as those of iid Gaussian numbers would.

    m groups of n such keys leave (1 - m / n) m^(-2 / d) of it: the first factor is that of means of n / m keys, the second the
    distortion of a Gaussian at log2(m) bits (Cover & Thomas, Elements of Information Theory, chapter 10). Less than three
    quarters is worth having in any case.
    """
    n, d = key.shape
    m = len(members)
    within = sum(((key[g] - key[g].mean(axis=0)) ** 2).sum() for g in members)
    return m > 1 and within > max((1 - m / n) * m ** (-2 / d), 0.75) * ((key - key.mean(axis=0)) ** 2).sum()


def build_tree(key, value, *, cell_size, seed):
    """The tree of a segment over key (n, d), value (n, dv), n >= 1."""
    key = np.asarray(key).astype(np.float64)

    def rounded(count, size):
        return max(1, (count + size // 2) // size)

    parents = rounded(rounded(len(key), cell_size), CELLS_PER_PARENT)
    under = cluster(key, parents, ~seed % 2**64) if parents > 1 else [np.arange(len(key))]
    members, parent = [], []
    for p, rows in enumerate(under):
        found = cluster(key[rows], rounded(len(rows), cell_size), (seed + p) % 2**64)
        if is_unstructured(key[rows], found):
            found = [np.arange(len(rows))]
        members += [rows[m] for m in found]
        parent += [p] * len(found)
    return summarize_tree(key, value, members, parent)
