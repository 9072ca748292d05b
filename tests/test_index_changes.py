"""Adding, removing, merging: the index holds what a dictionary would, at every moment."""

import copy

import numpy as np
import pytest
from helpers import (
    VARIANTS,
    assert_nearest,
    assert_present,
    assert_same_result,
    clusters,
    index_bytes,
    index_contents,
    normal,
    recall,
)

import icecore

variants = pytest.mark.parametrize("variant", VARIANTS)


def contents_of(vectors, ids):
    return {int(id): row.tobytes() for id, row in zip(ids, vectors, strict=True)}


def assert_holds(index, model, queries, k=8):
    """`model`: {id: vector}."""
    assert len(index) == len(model)
    assert set(index) == set(model)
    ids = np.array(sorted(model))
    vectors = np.stack([model[id] for id in ids.tolist()])
    np.testing.assert_array_equal(index[ids], vectors)
    assert_nearest(index.search(queries, k, exact=True), ids, vectors, queries, k, index.metric)
    everything = index.search(queries, k, field_of_view=10**6, retrieve=10**6)
    assert_nearest(everything, ids, vectors, queries, k, index.metric)
    assert_present(index.search(queries, k), index, queries)
    assert index.validate()


# ---- Adding ----


@variants
def test_one_at_a_time(variant):
    vectors, queries = clusters(0, 7000, 6), clusters(0, 10, 6)
    index, merges, segments = icecore.Index(6, **VARIANTS[variant]), 0, set()
    for i, vector in enumerate(vectors):
        (id,) = index.add(vector)
        assert id == i
        if i % 500 == 499:
            assert_holds(index, dict(enumerate(vectors[: i + 1])), queries)
        if i % 64 == 0:
            stats = index.stats
            merges += stats["merging"] > 0
            segments.add(stats["segments"])
            assert stats["count"] == i + 1
            assert stats["open"] < 1024
    assert merges
    assert len(segments) > 2
    assert index.stats["segments"] <= 6
    assert index.stats["slots"] == 7000


@variants
@pytest.mark.parametrize("size", [100, 1000, 1024, 1500])
def test_parts_of_any_size(variant, size):
    vectors, queries = clusters(0, 9000, 6), clusters(0, 10, 6)
    index = icecore.Index(6, **VARIANTS[variant])
    for first in range(0, 9000, size):
        ids = index.add(vectors[first : first + size])
        np.testing.assert_array_equal(ids, np.arange(first, min(first + size, 9000)))
    assert index.stats["segments"] <= 8
    assert_holds(index, dict(enumerate(vectors)), queries)
    found = index.search(queries, 5)
    assert recall(found.ids, index.search(queries, 5, exact=True).ids) > 0.7


def test_vectors_are_copied():
    vectors = normal(0, 1500, 6)
    index = icecore.Index(6)
    index.add(vectors)
    expected = vectors.copy()
    vectors[:] = 0
    np.testing.assert_array_equal(index[np.arange(1500)], expected)


def test_adding_nothing():
    index = icecore.Index(6)
    for count in (0, 5):
        before = index_bytes(index)
        assert index.add(np.empty((0, 6))).shape == (0,)
        assert index.add(np.empty((0, 6)), []).dtype == np.int64
        index.remove([])
        index.remove(np.empty(0, np.int64))
        assert index_bytes(index) == before
        index.add(normal(0, 5, 6))
        assert len(index) == 5 + count


def test_ids_of_ones_own():
    vectors = normal(0, 1300, 6)
    ids = np.random.default_rng(0).choice(2**63 - 1, 1300, replace=False)
    ids[:4] = [-5, -(2**63), 0, 2**63 - 2]
    index = icecore.Index(6)
    returned = index.add(vectors, ids)
    np.testing.assert_array_equal(returned, ids)
    assert_holds(index, dict(zip(ids.tolist(), vectors, strict=True)), vectors[:10])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "list"])
def test_ids_of_any_integer_type(dtype):
    index = icecore.Index(3)
    ids = [5, 200, 7] if dtype == "list" else np.array([5, 100, 7], dtype)
    assert index.add(normal(0, 3, 3), ids).dtype == np.int64
    assert set(index) == {int(id) for id in ids}


def test_ids_count_on_from_the_largest():
    index = icecore.Index(2)
    assert index.add(np.ones(2)).tolist() == [0]
    assert index.add(np.ones(2), [41]).tolist() == [41]
    assert index.add(np.ones((2, 2))).tolist() == [42, 43]
    assert index.add(np.ones(2), [-7]).tolist() == [-7]
    assert index.add(np.ones(2)).tolist() == [44]
    index.remove([44, 43])
    assert index.add(np.ones(2)).tolist() == [45]  # the largest ever used
    index.compact()
    assert index.add(np.ones(2)).tolist() == [46]
    index.remove(index.ids)
    index.compact()
    assert index.add(np.ones(2)).tolist() == [47]
    assert index.copy().add(np.ones(2)).tolist() == [48]
    index.clear()
    assert index.add(np.ones(2)).tolist() == [0]


def test_no_ids_are_left():
    """Above the largest of all integers there is none; one's own ids go on."""
    index = icecore.Index(2)
    index.add(np.ones(2), [2**63 - 2])
    before = index_contents(index)
    for count in (2, 3000):
        with pytest.raises(ValueError, match="ids"):
            index.add(np.ones((count, 2)))
    assert index_contents(index) == before
    index.add(np.ones((2, 2)), [3, 2**63 - 1])
    assert set(index) == {3, 2**63 - 2, 2**63 - 1}
    assert index.validate()
    index = icecore.Index(2)
    index.add(np.ones(2), [2**63 - 1])
    for own in (index, index.copy()):
        with pytest.raises(ValueError, match=f"ids is None, but {2**63 - 1} is nearly used; expected ids to be given"):
            own.add(np.ones(2))
        assert own.validate()


def test_longer_keys_later():
    """Inner products are lifted on the scale of the longest key; those that come later may be longer than it."""
    generator = np.random.default_rng(0)
    for options in ({}, {"num_composite": 2, "num_levels": 1}, {"num_composite": 1}):
        index, model = icecore.Index(8, metric="ip", **options), {}
        for part in range(12):
            vectors = generator.standard_normal((700, 8)).astype(np.float32) * np.float32(2.0**part)
            model |= dict(zip(index.add(vectors).tolist(), vectors, strict=True))
        assert_holds(index, model, normal(1, 10, 8))
        index.remove(index.ids[index.ids >= 4000])
        index.compact()
        assert_holds(index, {id: row for id, row in model.items() if id < 4000}, normal(1, 10, 8))


# ---- Removing ----


@variants
@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_removing(variant, one_at_a_time):
    vectors, queries = clusters(0, 5000, 6), clusters(0, 10, 6)
    index = icecore.Index(6, **VARIANTS[variant])
    for part in np.split(vectors, [2000, 4500]):
        index.add(part)
    model = dict(enumerate(vectors))
    order = np.random.default_rng(0).permutation(5000)
    for part in np.split(order, [300, 1000, 2500, 4000, 4900]):
        if one_at_a_time:
            for id in part.tolist():
                index.remove(id)
        else:
            index.remove(part)
        for id in part.tolist():
            del model[id]
            assert id not in index
        if model:
            assert_holds(index, model, queries)
    assert len(index) == 0
    assert index.validate()
    assert index.ids.shape == (0,)
    index.add(vectors)
    assert_holds(index, dict(enumerate(vectors, 5000)), queries)


def test_removed_slots_come_back():
    """Memory does not grow where as much goes as comes."""
    index = icecore.Index(6)
    index.add(normal(0, 5000, 6))
    for turn in range(20):
        index.remove(index.ids[:1000])
        index.add(normal((1, turn), 1000, 6))
        assert len(index) == 5000
        assert index.stats["slots"] < 12000
        assert index.validate()


@variants
def test_a_vector_removed_while_its_merge_ends(variant):
    """Removals carry merges forward; one may end in the very call that removes what it merges."""
    vectors = clusters(0, 4096, 6)
    for size in (1, 37, 600):
        index = icecore.Index(6, **VARIANTS[variant])
        index.add(vectors[:2048])
        index.add(vectors[2048:])
        assert index.stats["merging"] == 2
        model = dict(enumerate(vectors))
        for first in range(0, 4000 - size, size):
            ids = range(first, first + size)
            index.remove(ids)
            for id in ids:
                del model[id]
            assert index.validate()
        assert_holds(index, model, vectors[:10])


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("how", ["at random", "near the queries", "one at a time"])
def test_recall_outlives_any_removal_without_compact(metric, how):
    vectors, queries = clusters(0, 20000, 16, centers=200), clusters(1, 100, 16, centers=200)
    index = icecore.Index(16, metric=metric)
    index.add(vectors)
    before = recall(index.search(queries, 10).ids, index.search(queries, 10, exact=True).ids)
    order = np.random.default_rng(2).permutation(20000)
    if how == "near the queries":
        closeness = 2 * queries @ vectors.T - (vectors**2).sum(axis=1) if metric == "l2" else queries @ vectors.T
        order = np.argsort(-closeness.max(axis=0))
    for part in np.split(order, [10000, 18000, 19000, 19800, 19980])[:5]:
        for ids in part.tolist() if how == "one at a time" else [part]:
            index.remove(ids)
        fresh = icecore.Index(16, metric=metric)
        fresh.add(index[np.sort(index.ids)], np.sort(index.ids))
        found, exact = index.search(queries, 10), index.search(queries, 10, exact=True)
        assert (found.counts == 10).all()
        usual = min(before, recall(fresh.search(queries, 10).ids, exact.ids))  # below 1024 a fresh one compares all
        assert recall(found.ids, exact.ids) >= usual - 0.02


def test_one_large_removal_leaves_nothing_to_do():
    index = icecore.Index(6)
    index.add(normal(0, 20000, 6))
    index.remove(np.arange(10000))
    stats = index.stats
    assert (stats["removed"], stats["merging"]) == (0, 0)


def test_discard_passes_over_absent_ids():
    index = icecore.Index(6)
    index.add(normal(0, 2000, 6))
    assert index.discard([5, 7, 5, -3, 9999]) == 2
    assert index.discard(5) == 0
    assert index.discard([]) == 0
    assert len(index) == 1998
    assert index.validate()
    with pytest.raises(TypeError, match="ids has dtype float64"):
        index.discard([1.0])


@pytest.mark.parametrize("count", [3, 500, 1500, 3000])
def test_replacing(count):
    vectors, fresh = normal(0, 3000, 6), normal(1, count + 2, 6)
    index = icecore.Index(6, metric="l2")
    index.add(vectors[:2500])
    index.add(vectors[2500:])
    ids = np.append(np.random.default_rng(2).permutation(3000)[:count], [5000, 5001])
    with pytest.raises(ValueError, match="replace=True replaces it"):
        index.add(fresh, ids)
    before = index_contents(index)
    with pytest.raises(ValueError, match=f"ids holds {ids[0]} more than once"):
        index.add(np.vstack([fresh, fresh[:1]]), np.append(ids, ids[0]), replace=True)
    assert index_contents(index) == before
    assert index.validate()
    np.testing.assert_array_equal(index.add(fresh, ids, replace=True), ids)
    assert index.validate()
    assert len(index) == 3002
    model = dict(enumerate(vectors)) | dict(zip(ids.tolist(), fresh, strict=True))
    assert_holds(index, model, normal(3, 10, 6))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_replacement_leaves_the_old_vectors(error):
    def stop(done, count):
        raise error

    index = icecore.Index(6)
    index.add(normal(0, 3300, 6))
    index.add(normal(1, 300, 6))
    before = index_contents(index)
    with pytest.raises(error):
        index.add(normal(2, 3000, 6), np.arange(2000, 5000), stop, replace=True)
    assert index_contents(index) == before
    assert index.validate()


def test_compact_gives_memory_back():
    index = icecore.Index(32, capacity=50000)
    index.add(normal(0, 30000, 32))
    index.remove(np.arange(100, 30000))
    index.compact()
    fresh = icecore.Index(32)
    fresh.add(normal(0, 100, 32))
    assert index.nbytes < 1.05 * fresh.nbytes
    assert index.stats["slots"] == 100
    assert index.validate()
    assert_holds(index, dict(enumerate(normal(0, 100, 32))), normal(1, 10, 32))


def test_an_id_comes_back():
    vectors = normal(0, 3000, 6)
    index = icecore.Index(6, metric="l2")
    index.add(vectors)
    for turn in range(5):
        fresh = normal((1, turn), 10, 6)
        index.remove(np.arange(0, 1000, 100))
        index.add(fresh, np.arange(0, 1000, 100))
        np.testing.assert_array_equal(index[np.arange(0, 1000, 100)], fresh)
        found = index.search(fresh, 1, field_of_view=100)
        np.testing.assert_array_equal(found.ids[:, 0], np.arange(0, 1000, 100))
        np.testing.assert_array_equal(found.scores, np.zeros((10, 1)))
        assert index.validate()


@variants
def test_remove_all_and_clear(variant):
    vectors = clusters(0, 3000, 6)
    for empty in (lambda index: index.remove(index.ids), icecore.Index.clear):
        index = icecore.Index(6, **VARIANTS[variant])
        index.add(vectors[:1500])
        index.add(vectors[1500:])
        empty(index)
        assert len(index) == 0
        assert list(index) == []
        assert 0 not in index
        assert index.stats["segments"] == 0
        assert index.validate()
        with pytest.raises(ValueError, match="empty"):
            index.search(vectors[0], 1)
        index.compact()
        ids = index.add(vectors)
        assert_holds(index, dict(zip(ids.tolist(), vectors, strict=True)), vectors[:10])


# ---- compact, reserve ----


@variants
def test_compact(variant):
    vectors, queries = clusters(0, 6000, 6), clusters(0, 50, 6)
    index = icecore.Index(6, **VARIANTS[variant])
    for part in np.split(vectors, 12):
        index.add(part)
    index.remove(np.arange(0, 6000, 5))
    expected, contents = index.search(queries, 10, exact=True), index_contents(index)
    before = index.search(queries, 10)
    index.compact()
    stats = index.stats
    assert (stats["segments"], stats["removed"], stats["open"], stats["merging"]) == (1, 0, 0, 0)
    assert index_contents(index) == contents
    assert_same_result(index.search(queries, 10, exact=True), expected)
    found = index.search(queries, 10)
    assert recall(found.ids, expected.ids) > recall(before.ids, expected.ids) - 0.05
    assert index.validate()
    once = index_bytes(index)
    index.compact()
    assert index_bytes(index) == once


def test_compact_of_any_threads_is_the_same():
    data = []
    for threads in (1, 2, 4):
        index = icecore.Index(6)
        for part in np.split(clusters(0, 6000, 6), 4):
            index.add(part, num_threads=threads)
        index.compact(num_threads=threads)
        data.append(index_bytes(index))
    assert data[0] == data[1] == data[2]


def test_reserve():
    index = icecore.Index(16, capacity=20000)
    room = index.nbytes
    assert room > 20000 * 16 * 4
    assert len(index) == 0
    index.add(normal(0, 1000, 16))
    assert index.nbytes == room
    index.reserve(20000)
    index.reserve(0)
    assert index.nbytes == room
    index.reserve(50000)
    assert index.nbytes > 50000 * 16 * 4
    np.testing.assert_array_equal(index[np.arange(1000)], normal(0, 1000, 16))


# ---- Reading ----


def test_reading():
    vectors = normal(0, 1500, 6)
    index = icecore.Index(6)
    ids = index.add(vectors, np.arange(1500) * 3)
    assert len(index) == 1500
    assert index.ids.dtype == np.int64
    assert sorted(index.ids) == sorted(index) == ids.tolist()
    assert all(isinstance(id, int) for id in index)
    assert 3 in index
    assert np.int8(3) in index
    assert 4 not in index
    assert -1 not in index
    np.testing.assert_array_equal(index[6], vectors[2])
    assert index[6].shape == (6,)
    np.testing.assert_array_equal(index[[6, 0, 6]], vectors[[2, 0, 2]])
    assert index[[]].shape == (0, 6)
    assert (index.dim, index.metric, index.dtype) == (6, "ip", "float32")
    assert repr(index) == "<icecore.Index dim=6: 1500 vectors>"
    assert index.nbytes == index.stats["bytes"] > vectors.nbytes
    del index[6]
    assert 6 not in index


def test_an_empty_index():
    index = icecore.Index(6)
    assert len(index) == 0
    assert list(index) == []
    assert index.validate()
    assert index.ids.shape == (0,)
    assert 0 not in index
    index.compact()
    index.clear()
    assert set(index.stats) == {
        *("count", "open", "removed", "segments", "cells", "merging", "slots", "next_id", "bytes", "read_only")
    }


@pytest.mark.parametrize("make", [icecore.Index.copy, copy.copy, copy.deepcopy])
@variants
def test_copies_are_independent(variant, make):
    vectors = clusters(0, 4000, 6)
    index = icecore.Index(6, **VARIANTS[variant])
    index.add(vectors[:2000])
    index.add(vectors[2000:3500])
    index.remove(np.arange(100))
    twin = make(index)
    assert_same_result(twin.search(vectors[:20], 5), index.search(vectors[:20], 5))
    before = index_bytes(index)
    twin.remove(np.arange(100, 1000))
    twin.add(vectors[3500:])
    twin.compact()
    assert index_bytes(index) == before
    expected = index_contents(twin)
    index.clear()
    assert index_contents(twin) == expected
    assert twin.validate()
