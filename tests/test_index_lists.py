"""P-DCI lists of an index: the candidates of its composite indices."""


import numpy as np
import pytest
from helpers import SavedFile, assert_present, clusters, normal, recall
from test_index_search import METRICS, SEGMENT, filled

from icecore import reference
from icecore.reference.random import random_directions


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_directions_are_unit_vectors(seed):
    directions = random_directions(seed, 50, 40)
    assert directions.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    assert np.abs(directions @ directions.T - np.eye(50)).max() < 0.8
    assert abs(directions.mean()) < 0.02


def lists_oracle(vectors, queries, seed, shape, metric, visit, retrieve, arrays):
    """For each query: the oracle's candidates, and those that a little rounding might add or drop.

    Inner products are lifted relative to the centre of the segment, of which `arrays` tell, if that makes norms smaller.
    """
    composites, simples = shape
    lifted = metric == "ip"
    directions = random_directions(seed, composites * simples, vectors.shape[1] + lifted).astype(np.float64)
    directions = directions.reshape(composites, simples, -1)
    scale = None
    if lifted:
        centred = vectors.astype(np.float64) - arrays["segment0.layer0.mean"]
        vectors = min((vectors, centred), key=lambda rows: np.linalg.norm(rows, axis=1).max())
        scale = float(arrays["segment0.lifting"][0]) / float(arrays["segment0.scale"][0])
    placed = reference.lift_keys(vectors, scale) if lifted else vectors.astype(np.float64)
    for query in queries:
        expected = reference.pdci_search(
            vectors, query, 1, directions, metric=metric, visit=visit, retrieve=retrieve, scale=scale
        )[2]
        sought = reference.lift_query(query) if lifted else query.astype(np.float64)
        doubtful = np.zeros(len(vectors), bool)
        for own in directions:
            difference = np.abs((placed - sought) @ own.T)
            radius = difference.max(axis=1)
            end = min(np.sort(a, axis=None)[min(b, a.size) - 1] for a, b in ((difference, visit), (radius, retrieve)))
            doubtful |= np.abs(radius - end) < 2e-6 * (1 + np.abs(placed).max())
        yield expected, np.flatnonzero(doubtful)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 4)], ids=str)
@pytest.mark.parametrize(
    ("visit", "retrieve"), [(1, None), (300, None), (6000, None), (None, 1), (None, 60), (900, 25), (10**6, 10**6)]
)
def test_candidates_of_lists_are_the_oracles(isa, shape, metric, visit, retrieve):
    """With k = n, all candidates come back."""
    vectors, queries = normal(0, SEGMENT, 12), normal(1, 8, 12)
    queries[0] = vectors[5]
    queries[1] = 0
    index = filled(vectors, metric=metric, num_composite=shape[0], num_simple=shape[1], num_levels=1, seed=11)
    result = index.search(queries, SEGMENT, visit=visit, retrieve=retrieve)
    assert_present(result, index, queries)
    unbounded = SEGMENT * shape[1]
    arrays = SavedFile.of(index).arrays
    oracle = lists_oracle(vectors, queries, 11, shape, metric, visit or unbounded, retrieve or SEGMENT, arrays)
    doubts = 0
    for found, count, (expected, doubtful) in zip(result.ids, result.counts, oracle, strict=True):
        differ = np.setxor1d(found[:count], expected)
        assert set(differ) <= set(doubtful)
        doubts += len(differ)
    assert doubts <= 8


def test_equal_projections_come_along():
    """What ties with the last candidate is one too."""
    vectors = np.repeat(np.arange(11, dtype=np.float32)[:, None], 100, axis=0)  # 11 places of 100 vectors
    index = filled(vectors, metric="l2", num_composite=1, num_simple=1, num_levels=1)
    query = np.float32([[3.1]])
    for budget in ({"visit": 1}, {"retrieve": 1}, {"visit": 100}, {"retrieve": 100}):
        np.testing.assert_array_equal(index.search(query, 2000, **budget).counts, [100])
    for budget in ({"visit": 101}, {"retrieve": 150}, {"visit": 200}):
        np.testing.assert_array_equal(index.search(query, 2000, **budget).counts, [200])


@pytest.mark.parametrize("budget", ["visit", "retrieve"])
@pytest.mark.parametrize("metric", METRICS)
def test_lists_under_parents_find_more_for_more(metric, budget):
    vectors, queries = clusters(0, 4000, 24), clusters(0, 50, 24)
    index = filled(vectors, metric=metric, num_composite=2, num_simple=5)
    exact = index.search(queries, 10, exact=True).ids
    found = [recall(index.search(queries, 10, field_of_view=64, **{budget: b}).ids, exact) for b in (10, 1000, 10000, 30000)]
    assert (np.diff(found) >= 0).all()
    assert found[0] < 0.5
    assert found[-1] == 1
