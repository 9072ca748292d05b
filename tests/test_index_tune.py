"""Index.tune: the budget that finds a wanted share of the neighbours."""


import numpy as np
import pytest
from helpers import VARIANTS, clusters, normal, recall
from test_index_search import filled, variants


@variants
@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
def test_tune(variant, wanted):
    vectors, queries = clusters(0, 3000, 24), clusters(0, 60, 24)
    index = filled(vectors, **VARIANTS[variant])
    before = index.stats
    tuning = index.tune(queries, 10, wanted)
    assert tuning.recall >= wanted
    assert index.stats == before
    found = index.search(queries, 10, **tuning.budgets)
    exact = index.search(queries, 10, exact=True)
    assert recall(found.ids, exact.ids) == pytest.approx(tuning.recall)
    assert (tuning.budgets, tuning.recall, tuning.visited) in tuning.trials
    assert 0 < tuning.visited <= 3000 + index.stats["cells"] + 1


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_tune_under_a_filter(metric):
    vectors, queries = clusters(0, 6000, 24), clusters(0, 60, 24)
    index = filled(vectors, metric=metric)
    kept = np.arange(0, 6000, 2)
    for options in ({"filter": kept}, {"exclude": kept}, {"filter": np.tile([5, 10, 15], (60, 1))}):
        tuning = index.tune(queries, 10, 0.9, **options)
        exact = index.search(queries, 10, exact=True, **options)
        found = index.search(queries, 10, **tuning.budgets, **options)
        hits = sum(np.isin(true[true >= 0], own).sum() for own, true in zip(found.ids, exact.ids, strict=True))
        assert hits / exact.counts.sum() == pytest.approx(tuning.recall)
        assert tuning.recall >= 0.9
    with pytest.raises(ValueError, match="filter and exclude leave no vector"):
        index.tune(queries, 10, filter=[-4])


def test_tune_is_cheaper_for_less():
    vectors, queries = clusters(0, 5000, 24), clusters(0, 100, 24)
    index = filled(vectors)
    visited = [index.tune(queries, 10, wanted).visited for wanted in (0.3, 0.8, 0.999)]
    assert visited[0] < visited[1] < visited[2] < 5000


def test_tune_counts_ties_by_value():
    """Equal vectors are as good as one another."""
    index = filled(np.repeat(normal(0, 30, 8), 100, axis=0))
    assert index.tune(normal(1, 20, 8), 10, 1.0).recall == 1


def test_tune_where_no_budget_reaches():
    """So many vectors of nearly one score that 8-bit codes cannot tell the best among those compared exactly."""
    generator = np.random.default_rng(0)
    vectors = np.ones((6000, 64), np.float32)
    vectors[:, 0] += 1e-4 * generator.standard_normal(6000)
    vectors[:, 1:] += generator.standard_normal((6000, 63)) * 10
    query = np.zeros((5, 64), np.float32)
    query[:, 0] = 1
    query[:, 1] = 1e-3
    index = filled(vectors, num_levels=1)
    tuning = index.tune(query, 3, 1.0)
    assert tuning.budgets == {"exact": True}
    assert tuning.recall == 1
    assert recall(index.search(query, 3, **tuning.budgets).ids, index.search(query, 3, exact=True).ids) == 1


def test_tune_takes_few_and_many():
    index = filled(normal(0, 1500, 8))
    assert index.tune(normal(1, 8), 5).recall >= 0.95
    assert index.tune(normal(1, 2500, 8), 5, 0.5).recall >= 0.5
    assert index.tune(normal(1, 3, 8), 5000, 1.0).recall == 1
    assert filled(normal(0, 10, 8)).tune(normal(1, 3, 8), 5).recall == 1
