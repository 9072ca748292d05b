"""icecore.Index on the grids by which hnswlib, usearch and faiss test theirs: widths, metrics, types and batch sizes. What is
added is found, kept, replaced, filtered, saved and searched from several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import normal

import icecore

METRICS = ["ip", "l2", "cosine"]
grid = pytest.mark.parametrize(
    ("dim", "metric", "dtype", "batch"),
    [(dim, metric, dtype, batch)
     for dim in (3, 16, 97, 256) for metric in METRICS
     for dtype, batch in (("float32", 1), ("float32", 1024), ("float64", 7), ("float16", 33), ("int8", 257))],
)


def rows(count, dim, dtype="float32", seed=0):
    """Vectors of equal length (but for int8), so that each is its own nearest by every metric."""
    if dtype == "int8":
        return np.random.default_rng(seed).integers(-100, 101, (count, dim), np.int8)
    array = normal((seed, dim), count, dim).astype(np.float64)
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(dtype)


def scores(vectors, queries, metric):
    """(queries, vectors), the better the larger."""
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        return 2 * queries @ vectors.T - (vectors**2).sum(axis=1) - (queries**2).sum(axis=1)[:, None]
    if metric == "cosine":
        vectors, queries = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (vectors, queries))
    return queries @ vectors.T


def assert_kept(index, ids, vectors):
    """As float32; for cosines as directions."""
    expected = vectors.astype(np.float32)
    if index.metric == "cosine":
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(index[ids], expected, rtol=1e-6 if index.metric == "cosine" else 0)


def recall(found, vectors, queries, k, metric):
    """Share of the k nearest that were found; equal scores count."""
    own = scores(vectors, queries, metric)
    worst = -np.sort(-own, axis=1)[:, k - 1]
    return np.mean([(own[i, ids] >= worst[i] - 1e-5 * abs(worst[i])).mean() for i, ids in enumerate(found)])


@grid
def test_what_is_added_is_found(dim, metric, dtype, batch):
    vectors = rows(batch, dim, dtype)
    index = icecore.Index(dim, metric=metric)
    ids = index.add(vectors)
    assert len(index) == batch
    k = min(10, batch)
    found, own, counts = index.search(vectors, k)
    assert (counts == k).all()
    if dtype != "int8" or metric != "ip":  # the largest inner product may be another's
        best = scores(vectors, vectors, metric)[np.arange(batch), found[:, 0]]
        np.testing.assert_allclose(best, scores(vectors, vectors, metric).max(axis=1), atol=1e-4)
    assert (np.diff(own, axis=1) * (1 if metric == "l2" else -1) >= 0).all()
    assert recall(found, vectors, vectors, k, metric) >= 0.95
    assert_kept(index, ids, vectors)


@grid
def test_saved_loaded_viewed_and_copied(tmp_path, dim, metric, dtype, batch):
    vectors, queries = rows(batch, dim, dtype), rows(5, dim, seed=1)
    index = icecore.Index(dim, metric=metric)
    index.add(vectors, ids=np.arange(batch) * 3 + 7)
    expected = index.search(queries, min(4, batch))
    index.save(tmp_path / "index")
    for other in (icecore.Index.load(tmp_path / "index"), icecore.Index.view(tmp_path / "index"), index.copy()):
        assert set(other) == set(index)
        for a, b in zip(other.search(queries, min(4, batch)), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@grid
def test_removed_replaced_and_cleared(dim, metric, dtype, batch):
    vectors = rows(batch, dim, dtype)
    index = icecore.Index(dim, metric=metric)
    ids = index.add(vectors)
    gone = ids[::2]
    index.remove(gone)
    assert len(index) == batch - len(gone)
    if len(index):
        found, _, counts = index.search(vectors, min(5, batch))
        assert not np.isin(found[found >= 0], gone).any()
        assert (counts == min(5, len(index))).all()
    kept, others = ids[1::2], rows(batch, dim, dtype, seed=2)[1::2]
    index.add(others, ids=kept, replace=True)
    assert_kept(index, kept, others)
    index.clear()
    assert len(index) == 0
    with pytest.raises(ValueError, match="empty"):
        index.search(vectors, 3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("count", "dim", "k"), [(1000, 16, 1), (10000, 16, 10), (2000, 128, 100), (3000, 3, 17)])
def test_recall_of_independent_vectors(count, dim, k, metric):
    vectors, queries = normal(count, count, dim), normal(1, 100, dim)
    index = icecore.Index(dim, metric=metric)
    index.add(vectors)
    assert recall(index.search(queries, k)[0], vectors, queries, k, metric) >= 0.9
    assert recall(index.search(queries, k, exact=True)[0], vectors, queries, k, metric) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_filters_by_function_of_the_id(metric):
    """hnswlib's: even ids, a single one, none."""
    vectors = rows(3000, 16)
    index = icecore.Index(16, metric=metric)
    index.add(vectors)
    everything = np.arange(3000)
    for allowed in (everything[everything % 2 == 0], everything[-1:], everything[:0]):
        k = min(5, len(allowed))
        found, _, counts = index.search(vectors[:50], 5, filter=allowed)
        assert (counts == k).all()
        assert np.isin(found[:, :k], allowed).all()
        if k:
            assert recall(np.searchsorted(allowed, found[:, :k]), vectors[allowed], vectors[:50], k, metric) >= 0.95


def test_growth_beyond_what_was_reserved():
    index = icecore.Index(8)
    index.reserve(100)
    for part in range(20):
        index.add(rows(137, 8, seed=part))
    assert len(index) == 20 * 137
    assert index.validate()


@pytest.mark.parametrize("metric", METRICS)
def test_threads_that_add_remove_and_search(metric):
    """hnswlib's stress: each thread owns a range of ids; what is stable throughout is always found."""
    dim, stable = 12, rows(2000, 12)
    index = icecore.Index(dim, metric=metric)
    index.add(stable, ids=np.arange(2000))

    def churn(thread):
        for turn in range(5):
            ids = 10_000 * (thread + 1) + np.arange(100)
            index.add(rows(100, dim, seed=100 * thread + turn), ids=ids)
            found, _, counts = index.search(stable[:20], 5, num_threads=1)
            assert (counts == 5).all()
            assert (np.isin(np.arange(20), found[:, 0]) | (found[:, 0] >= 10_000)).all()
            index.remove(ids)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(churn, range(6)))
    assert set(index) == set(range(2000))
    assert index.validate()
