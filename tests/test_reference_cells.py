"""The oracles of cells: random numbers, clustering, risks, metrics."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore import reference
from icecore.reference.cells import (
    LEFT_OUT,
    RIDGE,
    key_metric,
    moments_scale,
    nearest_parent,
    projection,
    sampled,
    sampled_mean,
    summarize,
    summarize_tree,
    trusted,
)
from icecore.reference.near_far import log_mass, log_risk, log_spread
from icecore.reference.random import sample_without_replacement, segment_seed, split_mix


def test_split_mix():
    stream = split_mix(1234567)
    # the first values of the published program
    assert next(stream) == 6457827717110365317
    assert next(stream) == 3203168211198807973
    assert next(stream) == 9817491932198370423


@given(st.integers(1, 50), st.integers(0, 2**64 - 1), st.data())
def test_sample_without_replacement(count, seed, data):
    chosen = data.draw(st.integers(0, count))
    sample = sample_without_replacement(count, chosen, seed)
    assert len(set(sample)) == len(sample) == chosen
    assert set(sample) <= set(range(count))
    assert sample == sample_without_replacement(count, count, seed)[:chosen]


def test_every_key_is_sampled_about_as_often():
    """10 000 draws of 3 of 12: each is drawn 2500 times, give or take 4 standard deviations of 43."""
    drawn = [j for seed in range(10_000) for j in sample_without_replacement(12, 3, seed)]
    assert np.abs(np.bincount(drawn, minlength=12) - 2500).max() < 175


def test_segment_seeds_differ():
    arguments = list(itertools.product(range(5), range(20), range(1, 20)))
    assert len({segment_seed(*a) for a in arguments}) == len(arguments)


def test_nearest_parent():
    key, parents = np.random.default_rng(0).standard_normal((2, 50, 3))
    parents = np.concatenate([parents[:7], parents[:1]])  # of two equal parents the first
    expected = [min(range(8), key=lambda c: (((x - parents[c]) ** 2).sum(), c)) for x in key]
    np.testing.assert_array_equal(nearest_parent(key, parents), expected)


def test_summarize():
    key, value = np.array([[0.0, 0], [2, 0], [5, 5]]), np.array([[1.0], [3], [7]])
    cells = summarize(key, value, [np.array([0, 1]), np.array([2])])
    np.testing.assert_array_equal(cells.count, [2, 1])
    np.testing.assert_array_equal(cells.mean_key, [[1, 0], [5, 5]])
    np.testing.assert_array_equal(cells.mean_value, [[2], [7]])
    np.testing.assert_array_equal(cells.variance, [0.5, 0])  # 1 squared, over two dimensions
    np.testing.assert_array_equal(cells.radius, [1, 0])


def test_build_tree_finds_separate_groups():
    key = np.repeat(100.0 * np.eye(4), 10, axis=0) + np.random.default_rng(0).standard_normal((40, 4))
    for seed in range(10):
        tree = reference.build_tree(key, key, cell_size=1, seed=seed)
        assert np.array_equal(np.sort(np.concatenate(tree.cells.members)), np.arange(40))
        assert tree.parents.count.sum() == 40
        for parent, members in enumerate(tree.parents.members):
            under = [rows for rows, p in zip(tree.cells.members, tree.parent, strict=True) if p == parent]
            assert set(members) == set(np.concatenate(under))


def cell_of(variance, *, count=10**9, radius=np.inf, mean_value=0.0):
    """A tree of one cell, with one component in keys and values: values differ from their mean by 3."""
    key, value = np.array([[1.0], [-1.0]]) * np.sqrt(variance), mean_value + np.array([[3.0], [-3.0]])
    tree = summarize_tree(key, value, [np.array([0, 1])], [0], np.ones(1))
    return dataclasses.replace(tree, cells=dataclasses.replace(tree.cells, count=np.array([count]), radius=np.array([radius])))


def test_the_risk_is_the_spread_of_a_cells_weights():
    """Scores normal with variance x about z: exp(score) has the standard deviation exp(z) sqrt(e^x - 1), but for e^(x / 2)."""
    for x in (0.01, 0.5, 2.0, 8.0, 30.0):
        tree = cell_of(x)
        (risk,) = log_risk(np.array([1.0]), 1.0, tree.cells, tree)
        assert risk == pytest.approx(np.log(1e9 * np.sqrt(np.expm1(x)) * 3), rel=0.06)


@pytest.mark.parametrize("count", [2, 16, 256, 32768])
def test_the_risk_does_not_reach_further_than_so_many_samples(count):
    """The largest of n normal numbers is about sqrt(2 ln n); where x > 2 ln n it holds most of the sum of exponentials."""
    for x in np.array([1.01, 2, 10, 100]) * 2 * np.log(count):
        tree = cell_of(x, count=count)
        (risk,) = log_risk(np.array([1.0]), 1.0, tree.cells, tree)
        assert risk == pytest.approx(np.sqrt(2 * x * np.log(count)) + np.log(3))


@pytest.mark.parametrize("count", [1, 2, 16, 256, 32768])
def test_the_risk_grows_with_the_variance(count):
    trees = [cell_of(x, count=count) for x in np.geomspace(1e-9, 1e3, 500)]
    risks = [log_risk(np.array([1.0]), 1.0, tree.cells, tree)[0] for tree in trees]
    assert (np.diff(risks) >= 0).all()


@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 40), dim=st.integers(1, 9), size=st.floats(1e-3, 1e3),
    scale=st.floats(-3, 3), own=st.booleans(),
)
def test_the_risk_never_exceeds_what_the_radius_allows(seed, count, dim, size, scale, own):
    """No key of a cell weighs more than exp(|scale q| radius) of its mean, but for the rounding of the query."""
    key, value, query = np.random.default_rng(seed).standard_normal((3, count, dim)) * size
    metric = key_metric(key) if own else np.ones(dim)
    members = [np.arange(count // 2), np.arange(count // 2, count)] if count > 1 else [np.arange(1)]
    tree = summarize_tree(key, value, members, [0] * len(members), metric)
    for nodes in (tree.cells, tree.parents):
        largest = [(scale * (key[m] - key[m].mean(axis=0)) @ query[0]).max() for m in nodes.members]
        bound = 1.004 * abs(scale) * np.linalg.norm(query[0] / metric) * nodes.radius
        spread = log_spread(query[0], scale, nodes, tree)
        assert (spread <= bound).all()
        np.testing.assert_array_equal(log_spread(query[0], -scale, nodes, tree), spread)
        np.testing.assert_array_less(largest, bound + 1e-9 * size**2)
        weight = nodes.count * np.sqrt(nodes.value_variance + (sampled_mean(value) ** 2).sum())
        z = log_mass(query[0], scale, nodes, tree) - np.log(nodes.count)
        np.testing.assert_allclose(log_risk(query[0], scale, nodes, tree), z + spread + np.log(weight))


def test_the_mass_counts_as_one_more_component_of_the_values():
    """Values alike in all keys leave no error in the output, but the mass may be wrong by so much of it."""
    for mean in (0.0, 4.0, -40.0):
        tree = cell_of(0.5, mean_value=mean)
        (risk,) = log_risk(np.array([1.0]), 1.0, tree.cells, tree)
        z, weight = log_mass(np.array([1.0]), 1.0, tree.cells, tree), np.sqrt(9 + mean**2)
        assert risk == pytest.approx((z + log_spread(np.array([1.0]), 1.0, tree.cells, tree))[0] + np.log(weight))


def test_queries_of_nothing_but_zeros_leave_an_order_of_risks():
    key = np.array([[0.0], [1], [5], [9], [2], [2]])
    tree = summarize_tree(key, key, [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])], [0, 0, 0], np.ones(1))
    risk = log_risk(np.zeros(1), 1.0, tree.cells, tree)
    assert -np.inf == risk[2] < risk[0] < risk[1]


def test_a_segments_mean_value_is_that_of_sampled_rows():
    value = np.arange(2048.0).reshape(1024, 2)
    value[6, 0], value[10, 1] = np.nan, np.inf  # sampled are 2, 6, 10, ...
    rows = np.delete(np.arange(2, 1024, 4), [1, 2])
    np.testing.assert_allclose(sampled_mean(value), value[rows].mean(axis=0))
    np.testing.assert_array_equal(sampled_mean(np.nan * value), [0, 0])


def test_key_metric():
    key = np.array([[1.0, 2, 4, 0], [-1, 2, -4, 0]])
    metric = key_metric(key)
    np.testing.assert_allclose(metric[:3] / metric[0], [1, 2, 4])
    assert metric[3] == pytest.approx(metric[2] / 64)  # at least
    assert np.prod(metric) == pytest.approx(1)
    many = np.repeat(key, 1024, axis=0) * (np.arange(2048) % 8 == 4)[:, None]  # the others are not looked at
    np.testing.assert_allclose(key_metric(many), metric)
    for nothing in (0 * key, np.nan * key, np.where(key == 4, np.inf, key)):
        np.testing.assert_array_equal(key_metric(nothing), np.ones(4))


def test_moments_scale():
    moments = np.diag([1.0, 4, 16, 0])
    moments[0, 1] = moments[1, 0] = -1.5  # the diagonal alone counts
    metric = moments_scale(moments)
    np.testing.assert_allclose(metric[:3] / metric[0], [1, 2, 4])
    assert metric[3] == pytest.approx(metric[2] / 64)  # at least
    assert np.prod(metric) == pytest.approx(1)
    for nothing in (np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1, 2, 3, np.inf])):
        np.testing.assert_array_equal(moments_scale(nothing), np.ones(4))


def second_moments(seed, dim, rank, count=500):
    """E[q q^T] of queries that lie in `rank` directions, some of them longer than others."""
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((rank, dim)) * np.exp2(-np.arange(rank) / 2)[:, None]
    query = generator.standard_normal((count, rank)) @ directions
    return query.T @ query / count


@given(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 24), st.integers(2, 2000))
def test_a_projection_lacks_two_per_cent_of_the_distances_between_keys(seed, dim, rank, count):
    """Expected squared distances of keys with independent components; and no distance becomes larger."""
    moments = second_moments(seed, dim, rank)
    key = np.random.default_rng(seed).standard_normal((count, dim)) * np.exp2(np.linspace(-3, 3, dim))
    p = projection(moments, key)
    assert len(p) <= dim
    wanted = moments + RIDGE * moments.diagonal().mean() * np.eye(dim)
    variance = key[sampled(count)].var(axis=0)
    full, kept = (variance @ matrix.diagonal() for matrix in (wanted, p.T @ p))
    assert (1 - LEFT_OUT) * full <= kept <= full * (1 + 1e-9)
    assert np.linalg.eigvalsh(wanted - p.T @ p).min() >= -1e-9 * np.linalg.eigvalsh(wanted).max()


def test_distances_under_a_projection_are_those_that_queries_see():
    """On average over the queries, the squared difference of two keys' scores; here of keys with dependent components."""
    moments, generator = second_moments(1, 24, 24), np.random.default_rng(2)
    key = generator.standard_normal((400, 24)) @ generator.standard_normal((24, 24))
    p = projection(moments, key)
    assert len(p) < 24
    difference = key[:200] - key[200:]
    seen = np.einsum("nd,de,ne->n", difference, moments, difference)
    assert ((difference @ p.T) ** 2).sum() == pytest.approx(seen.sum(), rel=0.05)


def test_a_projection_is_as_narrow_as_what_queries_tell_apart():
    key = np.random.default_rng(0).standard_normal((300, 24))
    assert len(projection(second_moments(0, 24, 3), key)) == 3
    skewed = key * np.where(np.arange(24) < 2, 100.0, 1.0)  # of the others hardly anything is left to explain
    assert len(projection(np.eye(24), skewed)) == 2


def test_components_in_which_keys_do_not_differ_are_left_out_of_a_projection():
    key = np.random.default_rng(0).standard_normal((300, 5))
    key[:, 1] = 300.0
    p = projection(second_moments(0, 5, 5), key)
    assert not p[:, 1].any()
    assert p[:, [0, 2, 3, 4]].any(axis=0).all()


def test_rows_that_may_be_padding_are_not_looked_at():
    """Those that are not finite, or whose squared norm is above 100 times the median, of an even number the upper one."""
    rows = np.full((8, 2), 1.0)
    rows[0], rows[1], rows[2] = (np.nan, 1), (1, np.inf), (1e30, 0)
    rows[3:] = np.array([1, 2, 3, 30, 31])[:, None]
    np.testing.assert_array_equal(trusted(rows)[:, 0], [1, 2, 3, 30])
    np.testing.assert_array_equal(trusted(rows[:7])[:, 0], [1, 2, 3, 30])
    np.testing.assert_array_equal(trusted(np.array([[0.0], [0], [0], [5]]))[:, 0], [0, 0, 0, 5])  # a median of 0 is none
    assert not len(trusted(rows[:2]))
    key = np.random.default_rng(0).standard_normal((300, 5))
    spoiled, moments = key.copy(), second_moments(0, 5, 5)
    spoiled[[3, 4, 5]] = np.array([np.nan, -np.inf, 50])[:, None]
    kept = np.delete(key, [3, 4, 5], axis=0)
    np.testing.assert_array_equal(projection(moments, spoiled), projection(moments, kept))
    np.testing.assert_array_equal(sampled_mean(spoiled), kept.mean(axis=0))


def test_a_projection_has_at_most_64_rows():
    """Those that explain most."""
    key = np.random.default_rng(0).standard_normal((500, 100)) * np.where(np.arange(100) < 64, 1.0, 0.9)
    p = projection(np.eye(100), key)
    assert p.shape == (64, 100)
    assert ((np.abs(p).sum(axis=0) > 0) == (np.arange(100) < 64)).mean() > 0.9


def test_a_projection_of_nothing_is_the_scale():
    key = np.random.default_rng(0).standard_normal((300, 3))
    for moments, rows in [(np.zeros((3, 3)), key), (np.diag([1.0, 4, 16]), key[:1]), (np.diag([1, np.inf, 2]), key)]:
        np.testing.assert_array_equal(projection(moments, rows), np.diag(moments_scale(moments)))


def test_pivots_go_by_what_a_component_contributes():
    """The first row of P explains the component with the largest v M, wholly."""
    key = np.random.default_rng(0).standard_normal((300, 3)) * [1, 10, 3]
    moments = np.array([[9.0, 1, 0], [1, 1, 0], [0, 0, 2]])
    p = projection(moments, key)
    ridge = RIDGE * 4
    np.testing.assert_allclose(p[0] * np.sqrt(1 + ridge), [1, 1 + ridge, 0], atol=1e-12)


def test_cells_are_found_by_what_queries_tell_apart():
    """Keys in 20 places of a plane that queries look at, which lies askew, and far apart in all other directions."""
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.standard_normal((10, 10)))[0]
    place = generator.integers(20, size=600)
    in_plane = 5 * generator.standard_normal((20, 2))[place] + 0.01 * generator.standard_normal((600, 2))
    key = np.concatenate([in_plane, 30 * generator.standard_normal((600, 8))], axis=1) @ directions
    moments = directions[:2].T @ directions[:2]
    tree = reference.build_tree(key, key, cell_size=15, seed=0, moments=moments)
    np.testing.assert_allclose(tree.metric, moments_scale(moments))
    score = in_plane @ [0.6, 0.8]
    within, without = (
        sum(((score[m] - score[m].mean()) ** 2).sum() for m in each.cells.members) / ((score - score.mean()) ** 2).sum()
        for each in (tree, reference.build_tree(key, key, cell_size=15, seed=0))
    )
    assert within < 0.2
    assert without > 0.6


@pytest.mark.parametrize("metric", [np.ones(2), np.array([3.0, 0.5])])
def test_the_variance_of_scores_is_that_of_the_keys_along_the_query(metric):
    """But for a tenth, and whatever the metric: keys differ from the mean by 2 in one component and by 1 in the other."""
    key = np.array([[7.0, 1], [3, 1], [5, 2], [5, 0]])
    tree = summarize_tree(key, key, [np.arange(4)], [0], metric)
    query, scale = np.array([0.3, 0.9]), 0.5
    x = scale**2 * (0.9 * (key @ query).var() + 0.1 * ((query / metric) ** 2).sum() * tree.cells.variance[0])
    (risk,) = log_risk(query, scale, tree.cells, tree)
    expected = np.log(4) + scale * query @ [5, 1] + 0.5 * np.log(x) + x / 4 * (1 + x / (12 + x)) + 0.5 * np.log(2.5 + 26)
    assert risk == pytest.approx(expected)
