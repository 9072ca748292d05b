"""Cells: sampled parents, nearest parent, one Lloyd step, nearest parent again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icecore.reference.random import sample_without_replacement


@dataclass(frozen=True)
class Cells:
    """A partition of n keys and its summaries, in float64.

    members : list of (n_c,) int arrays; count : (C,); mean_key : (C, d); mean_value : (C, dv);
    variance : (C,), mean squared distance from the mean per dimension; radius : (C,), the largest distance.
    """

    members: list
    count: np.ndarray
    mean_key: np.ndarray
    mean_value: np.ndarray
    variance: np.ndarray
    radius: np.ndarray


def summarize(key, value, members):
    """Cells of a given partition: key (n, d), value (n, dv)."""
    key, value = np.asarray(key).astype(np.float64), np.asarray(value).astype(np.float64)
    mean_key = np.array([key[m].mean(axis=0) for m in members])  # (C, d)
    mean_value = np.array([value[m].mean(axis=0) for m in members])  # (C, dv)
    squared = [((key[m] - mean) ** 2).sum(axis=1) for m, mean in zip(members, mean_key, strict=True)]  # C of (n_c,)
    variance = np.array([s.mean() / key.shape[1] for s in squared])
    radius = np.array([np.sqrt(s.max()) for s in squared])
    return Cells(members, np.array([len(m) for m in members]), mean_key, mean_value, variance, radius)


def nearest_parent(key, parents):
    """(n, d), (C, d) -> (n,): argmin |x - p|^2, the smaller index among equals."""
    return (key @ parents.T - 0.5 * (parents**2).sum(axis=1)).argmax(axis=1)


def build_cells(key, value, *, cell_size, seed):
    """The cells of a segment over key (n, d), value (n, dv), n >= 1."""
    key = np.asarray(key).astype(np.float64)
    count = len(key)
    cells = max(1, (count + cell_size // 2) // cell_size)
    parents = key[sample_without_replacement(count, cells, seed)]  # (C, d)
    for _ in range(2):
        label = nearest_parent(key, parents)
        label = np.unique(label, return_inverse=True)[1]  # empty cells vanish
        parents = np.array([key[label == c].mean(axis=0) for c in range(label.max() + 1)])
    return summarize(key, value, [np.flatnonzero(label == c) for c in range(len(parents))])
