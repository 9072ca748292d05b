"""The oracles of nearest-neighbour search, against their definitions and each other."""

import itertools

import numpy as np
import pytest
from helpers import normal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from icecore.reference import (
    Level,
    lift_keys,
    lift_query,
    pdci_candidates,
    pdci_candidates_by_radius,
    pdci_search,
    search_exact,
    tree_search,
)
from icecore.reference.search import closest_first, dot

METRICS = ("ip", "l2")
EVERYTHING = 10**9


def unit_directions(seed, *shape):
    directions = normal(seed, *shape, dtype="float64")
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def search_inputs(seed, points, dim, composites=2, simple=3):
    """points, query, and the projections of each metric."""
    widths = {"ip": dim + 1, "l2": dim}
    projections = {m: unit_directions((seed, 2), composites, simple, width) for m, width in widths.items()}
    return normal((seed, 0), points, dim, dtype="float64"), normal((seed, 1), dim, dtype="float64"), projections


def loop_search(points, query, k, metric, among=None):
    """The k best as (indices, scores): one point at a time, with Python's own sums and sort."""
    scored = []
    for i in range(len(points)) if among is None else among:
        pairs = list(zip(points[i].tolist(), query.tolist(), strict=True))
        score = sum((a - b) ** 2 for a, b in pairs) if metric == "l2" else sum(a * b for a, b in pairs)
        scored.append((score if metric == "l2" else -score, i, score))
    best = sorted(scored)[:k]
    return [i for _, i, _ in best], [score for _, _, score in best]


def assert_same_answer(actual, expected):
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-12)


# ---- Lifting ----


@given(st.integers(1, 20), st.integers(1, 8), st.none() | st.floats(1.0, 100.0), st.integers(0, 99))
def test_lifted_distances(keys, dim, factor, seed):
    """|T_Q(q) - T_K(k)|^2 = 2 - 2 q.k / (c |q|), on one scale for both sides."""
    key, query = normal((seed, 0), keys, dim, dtype="float64"), normal((seed, 1), dim, dtype="float64")
    largest = np.linalg.norm(key, axis=1).max()
    scale = None if factor is None else factor * largest
    lifted_key, lifted_query = lift_keys(key, scale), lift_query(query)
    c = largest if scale is None else scale
    assert lifted_key.shape == (keys, dim + 1)
    np.testing.assert_allclose(lifted_key[:, :-1], key / c)
    np.testing.assert_allclose(np.linalg.norm(lifted_key, axis=1), 1)
    assert np.linalg.norm(lifted_query) == pytest.approx(1)
    assert lifted_query[-1] == 0
    distance = ((lifted_query - lifted_key) ** 2).sum(axis=1)
    np.testing.assert_allclose(distance, 2 - 2 * key @ query / (c * np.linalg.norm(query)), atol=1e-12)


@pytest.mark.parametrize("norms", [np.ones(200), np.geomspace(1e-3, 1e3, 200)])
def test_lifted_distances_rank_as_inner_products(norms):
    key, query = normal(0, 200, 5, dtype="float64"), normal(1, 5, dtype="float64")
    key *= np.random.default_rng(2).permutation(norms)[:, None]
    distance = ((lift_query(query) - lift_keys(key)) ** 2).sum(axis=1)
    np.testing.assert_array_equal(np.argsort(distance), np.argsort(-(key @ query)))


def test_lifting_zero_vectors():
    np.testing.assert_array_equal(lift_query(np.zeros(3)), np.zeros(4))
    np.testing.assert_array_equal(lift_keys(np.zeros((2, 3))), [[0, 0, 0, 1]] * 2)
    np.testing.assert_array_equal(lift_keys([[3.0, 4.0], [0.0, 0.0]]), [[0.6, 0.8, 0], [0, 0, 1]])
    assert lift_keys(np.zeros((0, 3))).shape == (0, 4)


def test_the_longest_key_lifts_to_a_number():
    """Rounding may make 1 - |k|^2/c^2 negative."""
    for seed in range(100):
        assert np.isfinite(lift_keys(normal(seed, 5, 7))).all()


# ---- One composite index ----


def composite(values):
    """Strategy: the projections of some points, of a query, and the budgets."""

    @st.composite
    def draw_composite(draw):
        points, simple = draw(st.integers(0, 12)), draw(st.integers(1, 4))
        projected_points = draw(arrays(np.float64, (points, simple), elements=values))
        projected_query = draw(arrays(np.float64, simple, elements=values))
        budgets = {
            "visit": draw(st.integers(1, points * simple + 3)),
            "retrieve": draw(st.integers(1, points + 2)),
        }
        return projected_points, projected_query, budgets

    return draw_composite()


def chebyshev(projected_points, projected_query):
    return np.abs(projected_points - projected_query).max(axis=1)


def assert_queue_is_identity(projected_points, projected_query, budgets):
    queue = pdci_candidates(projected_points, projected_query, **budgets)
    identity = pdci_candidates_by_radius(projected_points, projected_query, **budgets)
    assert len(set(queue)) == len(queue)
    assert set(queue) == set(identity)
    radius = chebyshev(projected_points, projected_query)
    np.testing.assert_array_equal(radius[queue], radius[identity])  # both ascending
    assert (np.diff(radius[queue]) >= 0).all()


@given(composite(st.integers(-3, 3).map(float)))
def test_the_queue_yields_points_by_chebyshev_distance_with_many_ties(case):
    assert_queue_is_identity(*case)


@given(composite(st.floats(-1e6, 1e6, allow_subnormal=False)))
def test_the_queue_yields_points_by_chebyshev_distance(case):
    assert_queue_is_identity(*case)


def published_queue(projected_points, projected_query, visit, retrieve):
    """The published rule where nothing ties, over all differences sorted beforehand."""
    difference = np.abs(projected_points - projected_query)
    times, found = np.zeros(len(difference), int), []
    for flat in np.argsort(difference, axis=None)[:visit]:
        point = flat // difference.shape[1]
        times[point] += 1
        if times[point] == difference.shape[1]:
            found.append(point)
    return found[:retrieve]


@pytest.mark.parametrize("retrieve", [1, 7, 40, 41])
@pytest.mark.parametrize("visit", [1, 2, 20, 60, 119, 120, 121])
def test_without_ties_the_budgets_are_exact(visit, retrieve):
    projected_points, projected_query = normal(0, 40, 3, dtype="float64"), normal(1, 3, dtype="float64")
    expected = published_queue(projected_points, projected_query, visit, retrieve)
    for search in (pdci_candidates, pdci_candidates_by_radius):
        actual = search(projected_points, projected_query, visit=visit, retrieve=retrieve)
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("search", [pdci_candidates, pdci_candidates_by_radius])
def test_candidates_by_hand(search):
    """Pops by distance: 0 of points 0 and 2, 1/2 and 1 of point 1, 3 of point 0, 5 of point 2."""
    projected_points, query = [[10.0, -3.0], [11.0, 0.5], [5.0, 0.0]], [10.0, 0.0]
    for visit, expected in [(1, []), (3, []), (4, [1]), (5, [1, 0]), (6, [1, 0, 2]), (7, [1, 0, 2])]:
        assert list(search(projected_points, query, visit=visit, retrieve=3)) == expected
    for retrieve, expected in [(1, [1]), (2, [1, 0]), (3, [1, 0, 2]), (4, [1, 0, 2])]:
        assert list(search(projected_points, query, visit=6, retrieve=retrieve)) == expected


@pytest.mark.parametrize("search", [pdci_candidates, pdci_candidates_by_radius])
def test_ties_with_the_last_pop_are_popped_too(search):
    projected_points = [[1.0], [-1.0], [2.0], [1.0], [0.0]]
    assert set(search(projected_points, [0.0], visit=1, retrieve=5)) == {4}
    assert set(search(projected_points, [0.0], visit=2, retrieve=5)) == {4, 0, 1, 3}
    assert set(search(projected_points, [0.0], visit=5, retrieve=2)) == {4, 0, 1, 3}


@pytest.mark.parametrize("search", [pdci_candidates, pdci_candidates_by_radius])
def test_equal_points_are_candidates_together(search):
    projected_points = np.repeat(normal(0, 10, 3, dtype="float64"), 4, axis=0)
    for visit in range(1, 121):
        found = search(projected_points, np.zeros(3), visit=visit, retrieve=40)
        assert (np.bincount(found // 4, minlength=10) % 4 == 0).all()


@given(arrays(np.float64, st.integers(0, 9), elements=st.integers(-3, 3).map(float)), st.integers(-4, 4))
def test_a_list_is_walked_outwards(projection, query):
    walk = list(closest_first(projection, float(query)))
    assert sorted(point for _, point in walk) == list(range(len(projection)))
    assert [difference for difference, _ in walk] == sorted(abs(projection - query))
    assert all(difference == abs(projection[point] - query) for difference, point in walk)


# ---- Search ----


def test_equal_rows_have_equal_sums():
    """Whatever their position: ties by index must not depend on rounding."""
    for dim in range(1, 40):
        row, vector = normal((0, dim), dim, dtype="float64"), normal((1, dim), dim, dtype="float64")
        sums = dot(np.repeat(row[None], 37, axis=0), vector)
        assert (sums == dot(row[None], vector)).all()
        assert (sums == dot(np.asfortranarray(np.repeat(row[None], 5, axis=0)), vector)[0]).all()


@pytest.mark.parametrize("metric", METRICS)
@given(st.integers(0, 30), st.integers(1, 5), st.integers(1, 35), st.integers(0, 99))
def test_search_exact(metric, points, dim, k, seed):
    """Small integers: many ties, no rounding."""
    generator = np.random.default_rng(seed)
    rows, query = generator.integers(-2, 3, (points, dim)), generator.integers(-2, 3, dim)
    actual = search_exact(rows, query, k, metric)
    assert len(actual[0]) == len(actual[1]) == min(k, points)
    assert_same_answer(actual, loop_search(rows, query, k, metric))


@pytest.mark.parametrize("search", [search_exact, tree_search])
def test_metrics_go_by_name(search):
    with pytest.raises(ValueError, match="'cosine'"):
        if search is search_exact:
            search(np.ones((2, 3)), np.ones(3), 1, "cosine")
        else:
            search([], np.ones((2, 3)), np.ones(3), 1, metric="cosine", field_of_view=1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("budgets", [(EVERYTHING, EVERYTHING), (120, EVERYTHING), (EVERYTHING, 40)])
@pytest.mark.parametrize("k", [1, 10, 40, 50])
def test_full_budgets_are_brute_force(k, budgets, metric):
    points, query, projections = search_inputs(0, 40, 5)
    visit, retrieve = budgets
    *answer, candidates = pdci_search(
        points, query, k, projections[metric], metric=metric, visit=visit, retrieve=retrieve
    )
    np.testing.assert_array_equal(candidates, np.arange(40))
    assert len(answer[0]) == min(k, 40)
    assert_same_answer(answer, search_exact(points, query, k, metric))


@pytest.mark.parametrize("scale", [None, 50.0])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("budgets", [(1, 5), (30, 100), (100, 5), (200, 100)])
def test_candidates_are_the_union_of_all_composites(budgets, metric, scale):
    """By the queue; k above their number returns them all."""
    points, query, projections = search_inputs(1, 100, 6, composites=3)
    visit, retrieve = budgets
    placed, sought = (lift_keys(points, scale), lift_query(query)) if metric == "ip" else (points, query)
    union = set()
    for directions in projections[metric]:
        found = pdci_candidates(placed @ directions.T, directions @ sought, visit=visit, retrieve=retrieve)
        union |= set(found)
    for k in (3, 100):
        *answer, candidates = pdci_search(
            points,
            query,
            k,
            projections[metric],
            metric=metric,
            visit=visit,
            retrieve=retrieve,
            scale=scale,
        )
        assert candidates.tolist() == sorted(union)
        assert len(answer[0]) == min(k, len(union))
        assert_same_answer(answer, loop_search(points, query, k, metric, among=sorted(union)))


@pytest.mark.parametrize("metric", METRICS)
def test_recall_rises_with_visit(metric):
    points, query, projections = search_inputs(2, 300, 8)
    true = set(search_exact(points, query, 10, metric)[0])
    recall, seen = [], set()
    for visit in (1, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900):
        found, _, candidates = pdci_search(
            points, query, 10, projections[metric], metric=metric, visit=visit, retrieve=300
        )
        assert seen <= set(candidates)
        seen = set(candidates)
        recall.append(len(true & set(found)) / 10)
    assert recall == sorted(recall)
    assert recall[0] == 0
    assert 0 < recall[4] < 1
    assert recall[-1] == 1


@pytest.mark.parametrize("metric", METRICS)
def test_recall_rises_with_retrieve(metric):
    points, query, projections = search_inputs(3, 300, 8)
    true = set(search_exact(points, query, 10, metric)[0])
    recall = []
    for retrieve in (1, 10, 30, 100, 300):
        found, _, candidates = pdci_search(
            points, query, 10, projections[metric], metric=metric, visit=EVERYTHING, retrieve=retrieve
        )
        assert retrieve <= len(candidates) <= 2 * retrieve
        recall.append(len(true & set(found)) / 10)
    assert recall == sorted(recall)
    assert recall[-1] == 1


@pytest.mark.parametrize("metric", METRICS)
def test_a_point_far_ahead_is_found_first(metric):
    """The nearest point tops every list; for 'ip' on one common scale, however long the keys and short the query."""
    points, _, projections = search_inputs(4, 200, 8)
    points *= 1e3 / np.linalg.norm(points, axis=1, keepdims=True)
    query = points[17] if metric == "l2" else points[17] * 1e-6
    found, scores, candidates = pdci_search(
        points, query, 1, projections[metric], metric=metric, visit=EVERYTHING, retrieve=1
    )
    assert found == [17]
    assert candidates == [17]
    assert scores == pytest.approx(0 if metric == "l2" else points[17] @ query)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_points_come_by_index(metric):
    points, query, projections = search_inputs(5, 8, 4)
    points = points[np.random.default_rng(0).integers(0, 8, 50)]
    for visit in (1, 20, 50, 150):
        found, _, candidates = pdci_search(
            points, query, 50, projections[metric], metric=metric, visit=visit, retrieve=50
        )
        for row in candidates:  # all copies or none
            copies = np.flatnonzero((points == points[row]).all(axis=1))
            assert set(copies) <= set(candidates)
            np.testing.assert_array_equal(found[np.isin(found, copies)], copies)


@pytest.mark.parametrize("metric", METRICS)
def test_zero_vectors(metric):
    points, query, projections = search_inputs(6, 30, 4)
    zero = np.zeros(4)
    for rows, sought in [(points, zero), (np.zeros((30, 4)), query), (np.zeros((30, 4)), zero)]:
        *answer, candidates = pdci_search(
            rows, sought, 5, projections[metric], metric=metric, visit=EVERYTHING, retrieve=EVERYTHING
        )
        assert len(candidates) == 30
        assert np.isfinite(answer[1]).all()
        assert_same_answer(answer, search_exact(rows, sought, 5, metric))
    # equal points are all candidates as soon as one is
    _, _, candidates = pdci_search(
        np.zeros((30, 4)), query, 5, projections[metric], metric=metric, visit=EVERYTHING, retrieve=1
    )
    assert len(candidates) == 30


@pytest.mark.parametrize("metric", METRICS)
def test_no_points(metric):
    points, query, projections = search_inputs(7, 0, 4)
    for array in pdci_search(points, query, 5, projections[metric], metric=metric, visit=1, retrieve=1):
        assert len(array) == 0
    indices, scores, visited = tree_search([], points, query, 5, metric=metric, field_of_view=1)
    assert len(indices) == len(scores) == visited == 0


# ---- Trees ----


def tree_over(generator, points, level_sizes):
    """Levels of these many nodes, the top first, with children split at random places; some nodes may have none.

    A node's mean is that of the points below it, zero where there are none.
    """
    offsets = []
    for size, below in itertools.pairwise([*level_sizes, len(points)]):
        cuts = np.sort(generator.integers(0, below + 1, size - 1))
        offsets.append(np.concatenate([[0], cuts, [below]]))
    levels, first = [], np.arange(len(points) + 1)
    for offset in reversed(offsets):
        first = first[offset]  # of the points below each node
        runs = itertools.pairwise(first)
        means = [points[a:b].mean(axis=0) if b > a else np.zeros(points.shape[1]) for a, b in runs]
        levels.insert(0, Level(np.array(means), offset))
    return levels


level_sizes = st.lists(st.integers(1, 8), min_size=0, max_size=3)


@pytest.mark.parametrize("metric", METRICS)
@given(level_sizes, st.integers(0, 40), st.integers(1, 45), st.integers(0, 99))
def test_a_full_field_of_view_is_brute_force(metric, sizes, points, k, seed):
    generator = np.random.default_rng(seed)
    rows, query = generator.standard_normal((points, 4)), generator.standard_normal(4)
    levels = tree_over(generator, rows, sizes)
    indices, scores, visited = tree_search(levels, rows, query, k, metric=metric, field_of_view=8)
    assert visited == points
    assert_same_answer((indices, scores), search_exact(rows, query, k, metric))


@pytest.mark.parametrize("metric", METRICS)
@given(level_sizes, st.integers(1, 8), st.integers(0, 99))
def test_tree_search_keeps_the_best_nodes(metric, sizes, field_of_view, seed):
    """Nodes by inner product with, or distance from, their means, one node at a time; integers, so that nodes tie."""
    generator = np.random.default_rng(seed)
    rows, query = generator.integers(-2, 3, (40, 3)), generator.integers(-2, 3, 3)
    levels = [
        Level(np.rint(level.means).astype(int), level.offset) for level in tree_over(generator, rows, sizes)
    ]
    reached = range(sizes[0]) if sizes else range(40)
    for level in levels:
        kept, _ = loop_search(level.means, query, field_of_view, metric, among=reached)
        reached = [j for i in sorted(kept) for j in range(level.offset[i], level.offset[i + 1])]
    indices, scores, visited = tree_search(
        levels, rows, query, 10, metric=metric, field_of_view=field_of_view
    )
    assert visited == len(reached)
    assert len(indices) == min(10, visited)
    assert_same_answer((indices, scores), loop_search(rows, query, 10, metric, among=reached))


def test_tree_search_by_hand():
    """Of two branches the right one has the better mean, the left one the best point."""
    points = np.array([[9.0], [-5], [1], [1], [5], [4], [3], [2]])
    lower = Level(np.array([[2.0], [1], [4.5], [2.5]]), np.array([0, 2, 4, 6, 8]))
    upper = Level(np.array([[1.5], [3.5]]), np.array([0, 2, 4]))
    for field_of_view, expected, visited in [(1, [4, 5], 2), (2, [4, 5, 6], 4), (3, [0, 4, 5], 6), (4, [0, 4, 5], 8)]:
        indices, scores, count = tree_search(
            [upper, lower], points, np.ones(1), 3, metric="ip", field_of_view=field_of_view
        )
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(scores, points[expected, 0])
        assert count == visited
    # the squared distance from 1: of the lower means 1 is nearest, and its two equal points come by index
    indices, scores, count = tree_search([lower], points, np.ones(1), 3, metric="l2", field_of_view=1)
    np.testing.assert_array_equal(indices, [2, 3])
    np.testing.assert_array_equal(scores, [0, 0])
    assert count == 2


@pytest.mark.parametrize("metric", METRICS)
def test_equal_nodes_rank_by_index(metric):
    points = np.array([[1.0, 1], [2, 2], [1, 1], [2, 2]])
    level = Level(np.array([[1.5, 1.5], [1.5, 1.5]]), np.array([0, 2, 4]))
    indices, _, visited = tree_search([level], points, np.ones(2), 4, metric=metric, field_of_view=1)
    assert visited == 2
    assert set(indices) == {0, 1}
