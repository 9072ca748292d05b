"""Nearest-neighbour libraries that people would use instead of icecore's index.

A builder is a function (keys, metric, threads, **options) -> Searcher; METHODS lists them with the options worth trying,
of which index_tuning.py finds the best.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np

MAX_EF = 4096
REFINED = (1, 2, 4, 8, 16, 32)  # so many times k of the best by codes are compared exactly


@dataclass
class Searcher:
    """An index that has been built: `search(queries, k)` -> ids (m, k), -1 where there is none."""

    search: Callable
    limit: Callable = lambda budget: None  # sets how much a search may look at
    budgets: Callable = lambda k: [[None]]  # k -> lists of budgets, each from the least to the most


@dataclass
class Method:
    """A builder, the options to try, the module it needs, and the metrics it has."""

    build: Callable
    grid: Callable  # (keys, metric) -> {option: values}, the default first
    module: str
    metrics: tuple = ("ip", "l2")

    def importable(self):
        try:
            import_module(self.module)
        except ImportError:
            return False
        return True


def pairs(first, second):
    """Lists of (a, b): one list for each b, in which a grows."""
    return [[(a, b) for a in first] for b in second]


def steps(minimum, maximum, factor=1.3):
    """Integers from `minimum` to `maximum`, each about `factor` times the one before."""
    count = int(np.ceil(np.log(max(maximum / minimum, 1)) / np.log(factor))) + 1
    return np.unique(np.rint(np.geomspace(minimum, max(minimum, maximum), count)).astype(int)).tolist()


def faiss_flat(keys, metric, threads):
    """Brute force: matrix products and a selection of the best."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlat(keys.shape[1], _faiss_metric(metric))
    index.add(keys)
    return Searcher(_faiss_search(index, threads))


def faiss_ivf(keys, metric, threads, nlist, niter=5, sample=16, cells="l2"):
    """Inverted lists of vectors as they are."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index, quantizer = _lists(faiss.IndexIVFFlat, keys.shape[1], nlist, cells, _faiss_metric(metric))
    kept = _fill(index, quantizer, keys, metric, niter, sample, cells)
    return _probing(index, index, nlist, threads, kept)


def faiss_panorama(keys, metric, threads, nlist, niter=5, sample=16, cells="l2", levels=8):
    """Inverted lists of vectors in principal components, whose distances are given up level by level (Panorama)."""
    import faiss

    faiss.omp_set_num_threads(threads)
    turn = _principal_components(keys, metric)
    index, quantizer = _lists(faiss.IndexIVFFlatPanorama, keys.shape[1], nlist, cells, levels, _faiss_metric(metric))
    kept = _fill(index, quantizer, turn.apply(keys), metric, niter, sample, cells)
    return _probing(index, faiss.IndexPreTransform(turn, index), nlist, threads, kept, turn)


def faiss_rabitq(keys, metric, threads, nlist, niter=5, sample=16, cells="l2", bits=1, rotation="hadamard"):
    """Inverted lists of RaBitQ codes scanned in registers, the best of them compared exactly."""
    import faiss

    faiss.omp_set_num_threads(threads)
    dim = keys.shape[1]
    if rotation == "hadamard":
        turn = faiss.HadamardRotation(dim, 0)
    else:
        turn = faiss.RandomRotationMatrix(dim, dim)
        turn.init(0)
    turned = turn.apply(keys)
    options = _faiss_metric(metric), 32, True, bits  # 32: vectors of a block, what the scan takes
    index, quantizer = _lists(faiss.IndexIVFRaBitQFastScan, turned.shape[1], nlist, cells, *options)
    kept = _fill(index, quantizer, turned, metric, niter, sample, cells)
    return _refined(index, faiss.IndexPreTransform(turn, index), keys, metric, nlist, threads, kept, turn)


def faiss_pq(keys, metric, threads, nlist, niter=5, sample=16, cells="l2", width=2, residual=False):
    """Inverted lists of 4-bit product codes of `width` components each, scanned in registers, the best compared exactly."""
    import faiss

    faiss.omp_set_num_threads(threads)
    dim = keys.shape[1]
    index, quantizer = _lists(faiss.IndexIVFPQFastScan, dim, nlist, cells, dim // width, 4, _faiss_metric(metric))
    index.by_residual = residual
    index.pq.cp.niter = niter
    kept = _fill(index, quantizer, keys, metric, niter, sample, cells)
    return _refined(index, index, keys, metric, nlist, threads, kept)


def _lists(kind, dim, nlist, cells, *options):
    """An empty index of inverted lists and its quantizer.

    Where the metric is the inner product, `cells` says what the cells are made by: "ip" is what faiss does by itself (centres
    of unit length, the cell of largest inner product); "l2" makes ordinary cells, of which a query opens those of the largest
    inner product, and is often better.
    """
    import faiss

    quantizer = faiss.IndexFlat(dim, faiss.METRIC_L2 if cells == "l2" else faiss.METRIC_INNER_PRODUCT)
    return kind(quantizer, dim, nlist, *options), quantizer


def _fill(index, quantizer, keys, metric, niter, sample, cells):
    """k-means of `sample` keys a cell, `niter` iterations, and all keys; what must be kept alive."""
    import faiss

    index.cp.spherical = cells != "l2"
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = niter, sample, 1
    index.train(keys)
    index.add(keys)
    if metric == "ip" and cells == "l2":
        opened = faiss.IndexFlatIP(keys.shape[1])
        opened.add(quantizer.reconstruct_n(0, index.nlist))
        quantizer, index.quantizer = opened, opened
    return index, quantizer


def _probing(index, outer, nlist, threads, *kept):
    """A search of `outer` by the number of lists that are opened; `kept`: faiss does not refer to all that it needs."""
    find = _faiss_search(outer, threads)

    def search(queries, k, kept=kept):
        return find(queries, k)

    return Searcher(search, lambda budget: setattr(index, "nprobe", budget), lambda k: [steps(1, nlist)])


def _refined(index, outer, keys, metric, nlist, threads, *kept):
    """The same, and of the best by codes so many times k compared exactly."""
    import faiss

    exact = faiss.IndexFlat(keys.shape[1], _faiss_metric(metric))
    exact.add(keys)
    both = faiss.IndexRefine(outer, exact)
    probing = _probing(index, both, nlist, threads, outer, exact, *kept)

    def limit(budget):
        index.nprobe, both.k_factor = budget

    return Searcher(probing.search, limit, lambda k: pairs(steps(1, nlist, 1.5), REFINED))


def _principal_components(keys, metric):
    """The rotation to principal components; of squared distances also the centre is taken away."""
    import faiss

    dim = keys.shape[1]
    centre = keys.mean(axis=0) if metric == "l2" else np.zeros(dim, np.float32)
    some = keys[:: max(1, len(keys) // 20_000)] - centre
    axes = np.linalg.eigh(some.T @ some)[1].T[::-1]
    turn = faiss.LinearTransform(dim, dim, metric == "l2")
    faiss.copy_array_to_vector(np.ascontiguousarray(axes, np.float32).ravel(), turn.A)
    if metric == "l2":
        faiss.copy_array_to_vector(-(axes @ centre).astype(np.float32), turn.b)
    turn.is_trained = True
    return turn


def faiss_hnsw(keys, metric, threads, m=16, ef_construction=40):
    """faiss's graph."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(keys.shape[1], m, _faiss_metric(metric))
    index.hnsw.efConstruction = ef_construction
    index.add(keys)
    return Searcher(_faiss_search(index, threads), lambda budget: setattr(index.hnsw, "efSearch", budget), _beams)


def faiss_hnsw_panorama(keys, metric, threads, m=16, ef_construction=40, levels=8):
    """faiss's graph over principal components, whose distances are given up level by level."""
    import faiss

    faiss.omp_set_num_threads(threads)
    turn = _principal_components(keys, metric)
    index = faiss.IndexHNSWFlatPanorama(keys.shape[1], m, levels, _faiss_metric(metric))
    index.hnsw.efConstruction = ef_construction
    index.add(turn.apply(keys))
    find = _faiss_search(faiss.IndexPreTransform(turn, index), threads)

    def search(queries, k, kept=turn):
        return find(queries, k)

    return Searcher(search, lambda budget: setattr(index.hnsw, "efSearch", budget), _beams)


def _beams(k):
    return [steps(k, MAX_EF)]


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

    return Searcher(search, index.set_ef, _beams)


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

    return Searcher(search, lambda budget: setattr(index, "expansion_search", budget), _beams)


def _lists_grid(keys, metric, **others):
    root = len(keys) ** 0.5
    cells = {"cells": ("l2", "ip")} if metric == "ip" else {}
    sizes = {"nlist": [int(root * factor) for factor in (1, 0.5, 2, 4)], "niter": (5, 2, 10), "sample": (16, 64)}
    return others | cells | sizes


def _level_counts(keys):
    """Of a Panorama: levels of 32, 16 and 64 components."""
    return [max(keys.shape[1] // width, 1) for width in (32, 16, 64)]


def _panorama_grid(keys, metric):
    return _lists_grid(keys, metric, levels=_level_counts(keys))


def _rabitq_grid(keys, metric):
    return _lists_grid(keys, metric, bits=(1, 2, 4), rotation=("dense", "hadamard"))


def _pq_grid(keys, metric):
    return _lists_grid(keys, metric, width=(2, 4), residual=(metric == "ip", metric != "ip"))


def _graph_grid(keys, metric):
    return {"ef_construction": (40, 100, 200), "m": (16, 8, 32)}


def _graph_panorama_grid(keys, metric):
    return {"levels": _level_counts(keys), **_graph_grid(keys, metric)}


def _usearch_grid(keys, metric):
    return {"dtype": ("bf16", "f32", "f16", "i8"), **_graph_grid(keys, metric)}


METHODS = {
    "faiss flat": Method(faiss_flat, lambda keys, metric: {}, "faiss"),
    "faiss IVF": Method(faiss_ivf, _lists_grid, "faiss"),
    "faiss IVF Panorama": Method(faiss_panorama, _panorama_grid, "faiss"),
    "faiss RaBitQ": Method(faiss_rabitq, _rabitq_grid, "faiss"),
    "faiss PQ": Method(faiss_pq, _pq_grid, "faiss"),
    "faiss HNSW": Method(faiss_hnsw, _graph_grid, "faiss"),
    "faiss HNSW Panorama": Method(faiss_hnsw_panorama, _graph_panorama_grid, "faiss", ("l2",)),
    "hnswlib": Method(hnswlib_graph, _graph_grid, "hnswlib"),
    "usearch": Method(usearch_graph, _usearch_grid, "usearch.index"),
}
