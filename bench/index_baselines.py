"""Nearest-neighbour libraries that people would use instead, and the tuning that shows each at its best.

A builder is a function (keys, metric, threads, **options) -> Searcher; METHODS lists them with the options worth trying. `tune`
builds them in turn, finds for every k and recall the smallest search budget that reaches it on a sample of the queries, and
keeps the cheapest build + search of all queries, and the cheapest search alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np

MAX_EF = 4096


@dataclass
class Searcher:
    """An index that has been built: `search(queries, k)` -> ids (m, k), -1 where there is none."""

    search: Callable
    limit: Callable = lambda budget: None  # sets how much a search may look at
    limits: tuple = (1, 1)  # the least and the most of that; None as the least: k
    fit: Callable | None = None  # (queries, k, recall) -> budget or None, for an index that tunes itself


@dataclass
class Method:
    """A builder, the options to try, and the module it needs."""

    build: Callable
    grid: Callable  # (keys, metric) -> list of options, the default first
    module: str

    def importable(self):
        try:
            import_module(self.module)
        except ImportError:
            return False
        return True


@dataclass
class Choice:
    """Options and budget of one method that reach a recall on the sample, and the seconds that they took or would take."""

    options: dict
    budget: object
    recall: float
    build: float
    search: float

    @property
    def total(self):
        return self.build + self.search


def faiss_flat(keys, metric, threads):
    """Brute force: matrix products and a selection of the best."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlat(keys.shape[1], _faiss_metric(metric))
    index.add(keys)
    return Searcher(_faiss_search(index, threads))


def faiss_ivf(keys, metric, threads, nlist, niter=10, sample=64, cells="l2"):
    """Inverted lists: k-means of `sample` keys a cell, `niter` iterations.

    Where the metric is the inner product, `cells` says what the cells are made by: "ip" is what faiss does by itself (centres
    of unit length, the cell of largest inner product); "l2" makes ordinary cells, of which a query opens those of the largest
    inner product, and is often better.
    """
    import faiss

    faiss.omp_set_num_threads(threads)
    dim = keys.shape[1]
    by = faiss.METRIC_L2 if cells == "l2" else faiss.METRIC_INNER_PRODUCT
    quantizer = faiss.IndexFlat(dim, by)
    index = faiss.IndexIVFFlat(quantizer, dim, nlist, _faiss_metric(metric))
    index.cp.spherical = cells != "l2"
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = niter, sample, 1
    index.train(keys)
    index.add(keys)
    if metric == "ip" and cells == "l2":
        opened = faiss.IndexFlatIP(dim)
        opened.add(quantizer.reconstruct_n(0, nlist))
        quantizer, index.quantizer = opened, opened
    find = _faiss_search(index, threads)

    def search(queries, k, keep=quantizer):  # the index holds no reference to it
        return find(queries, k)

    return Searcher(search, lambda budget: setattr(index, "nprobe", budget), (1, nlist))


def faiss_hnsw(keys, metric, threads, m=16, ef_construction=40):
    """faiss's graph."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(keys.shape[1], m, _faiss_metric(metric))
    index.hnsw.efConstruction = ef_construction
    index.add(keys)
    return Searcher(_faiss_search(index, threads), lambda budget: setattr(index.hnsw, "efSearch", budget), (None, MAX_EF))


def _faiss_metric(metric):
    import faiss

    return {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}[metric]


def _faiss_search(index, threads):
    import faiss

    def search(queries, k):
        faiss.omp_set_num_threads(threads)
        return index.search(queries, k)[1]

    return search


def hnswlib_graph(keys, metric, threads, m=16, ef_construction=100):
    """The reference implementation of HNSW."""
    import hnswlib

    index = hnswlib.Index(space=metric, dim=keys.shape[1])
    index.init_index(max_elements=len(keys), M=m, ef_construction=ef_construction, random_seed=0)
    index.add_items(keys, num_threads=threads)

    def search(queries, k):
        try:
            return index.knn_query(queries, k=k, num_threads=threads)[0].astype(np.int64)
        except RuntimeError:  # raised where a search finds fewer than k
            return np.full((len(queries), k), -1)

    return Searcher(search, index.set_ef, (None, MAX_EF))


def usearch_graph(keys, metric, threads, m=16, ef_construction=100, dtype="f32"):
    """usearch's graph over float32, bfloat16, float16, or int8 with one scale for all; conversion is in the times."""
    from usearch.index import Index

    index = Index(ndim=keys.shape[1], metric={"ip": "ip", "l2": "l2sq"}[metric], dtype=dtype, connectivity=m,
                  expansion_add=ef_construction, enable_key_lookups=False)
    scale = np.float32(127 / np.quantile(np.abs(keys[:: max(1, len(keys) // 1000)]), 0.9999))

    def stored(rows):
        return np.clip(np.rint(rows * scale), -127, 127).astype(np.int8) if dtype == "i8" else rows

    index.add(np.arange(len(keys), dtype=np.uint64), stored(keys), threads=threads)

    def search(queries, k):
        found = index.search(stored(queries), k, threads=threads)
        return np.where(np.arange(k) < np.asarray(found.counts)[:, None], found.keys.astype(np.int64), -1)

    return Searcher(search, lambda budget: setattr(index, "expansion_search", budget), (None, MAX_EF))


def _ivf_grid(keys, metric):
    root = len(keys) ** 0.5
    return [{"nlist": int(root * factor), "niter": niter, "sample": sample, "cells": cells}
            for cells in (("l2", "ip") if metric == "ip" else ("l2",)) for factor in (1, 0.5, 2, 4)
            for niter in (5, 2, 10) for sample in (16, 64)]


def _graph_grid(keys, metric):
    return [{"m": m, "ef_construction": ef} for m in (16, 8, 32) for ef in (40, 100, 200)]


def _usearch_grid(keys, metric):
    middle = {"m": 16, "ef_construction": 100}
    kinds = [middle | {"dtype": dtype} for dtype in ("f32", "bf16", "f16", "i8")]
    return kinds + [options for options in _graph_grid(keys, metric) if options != middle]


METHODS = {
    "faiss flat": Method(faiss_flat, lambda keys, metric: [{}], "faiss"),
    "faiss IVF": Method(faiss_ivf, _ivf_grid, "faiss"),
    "faiss HNSW": Method(faiss_hnsw, _graph_grid, "faiss"),
    "hnswlib": Method(hnswlib_graph, _graph_grid, "hnswlib"),
    "usearch": Method(usearch_graph, _usearch_grid, "usearch.index"),  # a grid without dtype: the best kind so far
}


@dataclass
class Truth:
    """Brute force of some queries: what a result's recall is measured against, ties by value.

    A returned key counts where its score, in float64, is no worse than the k-th best, but for float32's rounding; a key
    returned twice counts once.
    """

    keys: np.ndarray
    queries: np.ndarray
    metric: str
    maximum: int
    best: np.ndarray = field(init=False)  # (m, maximum), descending

    def __post_init__(self):
        norms = np.einsum("nd,nd->n", self.keys, self.keys)
        self.maximum = min(self.maximum, len(self.keys))
        found = np.empty((len(self.queries), self.maximum), np.int64)
        for first in range(0, len(found), 128):
            scores = self.queries[first : first + 128] @ self.keys.T
            if self.metric == "l2":
                scores -= norms / 2
            found[first : first + 128] = np.argpartition(scores, -self.maximum, axis=1)[:, -self.maximum :]
        self.best = -np.sort(-self.scores(found), axis=1)
        maximum = norms.max()
        self.slack = 2e-6 * (maximum if self.metric == "l2" else maximum**0.5 * np.linalg.norm(self.queries, axis=1))

    def scores(self, ids):
        """Float64 scores of keys (m, k), the larger the better; -inf where there is none."""
        out = np.empty(ids.shape)
        for row, (query, chosen) in enumerate(zip(self.queries.astype(np.float64), ids, strict=True)):
            keys = self.keys[np.maximum(chosen, 0)]
            out[row] = keys @ query if self.metric == "ip" else -np.square(keys - query).sum(axis=1)
        return np.where(ids < 0, -np.inf, out)

    def recall(self, ids):
        """Mean share of the k best that `ids` (m, k) hold."""
        ids = np.sort(np.asarray(ids), axis=1)
        ids = np.where(np.diff(ids, axis=1, prepend=-1) == 0, -1, ids)
        k = min(ids.shape[1], self.maximum)
        good = self.scores(ids) >= (self.best[:, k - 1] - self.slack)[:, None]
        return float(np.minimum(good.sum(axis=1), k).mean() / k)


def timed(call, *arguments, **options):
    """(result, seconds); the shortest of three where it takes less than half a second."""
    shortest = np.inf
    for _ in range(3):
        start = time.perf_counter()
        result = call(*arguments, **options)
        shortest = min(shortest, time.perf_counter() - start)
        if shortest > 0.5:
            break
    return result, shortest


def smallest_budget(searcher, k, recall, truth, longest=np.inf):
    """The smallest budget that reaches the recall, to five percent; None if it takes longer than `longest`."""
    if searcher.fit:
        return searcher.fit(truth.queries, k, recall)
    minimum, maximum = searcher.limits
    minimum = min(k, maximum) if minimum is None else minimum

    def reaches(budget):
        nonlocal seconds
        searcher.limit(budget)
        begin = time.perf_counter()
        ids = searcher.search(truth.queries, k)
        seconds = time.perf_counter() - begin
        return truth.recall(ids) >= recall

    high, seconds = minimum, 0
    while not reaches(high):
        if high == maximum or seconds > longest:
            return None
        minimum, high = high + 1, min(2 * high, maximum)
    while high - minimum > 0.05 * high:
        middle = (minimum + high) // 2
        minimum, high = (minimum, middle) if reaches(middle) else (middle + 1, high)
    return high


def tune(method, keys, queries, metric, threads, targets, truth, seconds=np.inf, longest=np.inf, options=None):
    """Try a method's options.

    Parameters
    ----------
    method : Method
    targets : list of (k, recall)
    truth : Truth
        Of the sample of the queries to tune on.
    seconds : float
        Begin no further build after so long; the grid goes on from its default to what is less likely.
    longest : float
        Give a target up where a search of the sample takes longer and does not reach it.
    options : list of dict, optional
        Instead of the method's own grid.

    Returns
    -------
    dict, bool
        ``{(k, recall): {"total": Choice, "search": Choice}}``, without the targets that nothing reaches; and whether all
        options were tried.
    """
    best, kind, begin = {}, None, time.perf_counter()
    for chosen in method.grid(keys, metric) if options is None else options:
        if time.perf_counter() - begin > seconds:
            return best, False
        if kind and "dtype" not in chosen:
            chosen = chosen | {"dtype": kind}
        searcher, build = timed(method.build, keys, metric, threads, **chosen)
        for k, recall in targets:
            budget = smallest_budget(searcher, k, recall, truth, longest)
            if budget is None:
                continue
            searcher.limit(budget)
            ids, search = timed(searcher.search, truth.queries, k)
            found = Choice(chosen, budget, truth.recall(ids), build, search * len(queries) / len(truth.queries))
            of = best.setdefault((k, recall), {"total": found, "search": found})
            for what in of:
                if getattr(found, what) < getattr(of[what], what):
                    of[what] = found
        if best and "dtype" in chosen:
            kind = best[min(best)]["total"].options.get("dtype")
    return best, True
