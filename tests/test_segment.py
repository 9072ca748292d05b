"""A sealed segment: the cells of the float64 oracle, and a partition with true means, spreads and radii."""

import numpy as np
import pytest
from helpers import cell_members, core_tree, inputs, segment
from hypothesis import given
from hypothesis import strategies as st

from icecore import reference
from icecore.reference.near_far import always_open
from icecore.reference.random import sample_without_replacement


def labels(members):
    """The cell of each key."""
    label = np.empty(sum(len(m) for m in members), int)
    for cell, rows in enumerate(members):
        label[rows] = cell
    return label


def second_moments(dim, rank=None):
    """E[q q^T] (dim, dim) of queries that lie in `rank` directions, some of them longer than others."""
    directions = np.random.default_rng(dim).standard_normal((rank or dim, dim)) * np.exp2(-np.arange(rank or dim) / 2)[:, None]
    return (directions.T @ directions).astype(np.float32)


@pytest.mark.parametrize("moments", ["none", "diagonal", "full", "few directions"])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize(
    ("count", "dim", "cell_size"), [(1000, 16, 32), (500, 3, 8), (300, 130, 17), (257, 5, 4), (2000, 16, 8)]
)
def test_same_cells_as_the_oracle(isa, count, dim, cell_size, seed, moments):
    key, value = inputs((0, dim), (count, dim), 5)[1:]
    key = key * np.float32(0.9) ** np.arange(dim, dtype=np.float32)
    moments = {
        "none": None, "diagonal": np.diag(np.float32(0.9) ** np.arange(dim, dtype=np.float32)), "full": second_moments(dim),
        "few directions": second_moments(dim, 2),
    }[moments]
    expected = reference.build_tree(key, value, cell_size=cell_size, seed=seed, moments=moments)
    tree = core_tree(key, value, cell_size, seed, moments)
    # a key halfway between two means may go to either, and moves both
    assert len(tree.parents.members) == len(expected.parents.members)
    assert np.mean(labels(tree.parents.members) == labels(expected.parents.members)) > 0.98
    same = [rows.tolist() in [m.tolist() for m in expected.cells.members] for rows in tree.cells.members]
    assert np.mean(same) > 0.9


def test_keys_that_stand_out_do_not_say_where_cells_are_found(isa):
    """Padding may hold anything; the centre, the projection and the mean value come from the others."""
    key, value = inputs((0, 16), (500, 16), 5)[1:]
    moments = second_moments(16)
    key[::9, 3], value[::9] = 1e6, -1e6
    tree = core_tree(key, value, 8, 0, moments)
    expected = reference.build_tree(key, value, cell_size=8, seed=0, moments=moments)
    same = [rows.tolist() in [m.tolist() for m in expected.cells.members] for rows in tree.cells.members]
    assert np.mean(same) > 0.9
    ordinary = np.delete(key, np.s_[::9], axis=0)
    for garbage in (1e6, np.nan, np.inf):
        key[::9] = garbage
        np.testing.assert_allclose(segment(key, value, 8, 0, moments=moments)["centre"], ordinary.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("seed", [0, 12345, 2**64 - 1])
def test_means_start_from_the_oracles_sample(isa, seed):
    """With cells of one key every key is a mean, in the order in which it was sampled."""
    key = np.arange(20, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(segment(key, key, 1, seed)["order"], sample_without_replacement(20, 20, seed))


@st.composite
def keys(draw):
    """(n, d) keys: scattered, in few distinct places, or all zero; of any size."""
    count, dim = draw(st.integers(1, 200)), draw(st.integers(1, 20))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scattered = generator.standard_normal((count, dim), np.float32)
    kind = draw(st.sampled_from(["scattered", "few places", "zero", "far from the origin"]))
    if kind == "few places":
        scattered = scattered[generator.integers(min(count, 3), size=count)]
    return scattered * np.float32(
        0 if kind == "zero" else draw(st.sampled_from([1e-3, 1, 1e3]))
    ) + np.float32(100 if kind == "far from the origin" else 0)


@given(key=keys(), value_dim=st.integers(1, 9), cell_size=st.integers(1, 300), seed=st.integers(0, 2**64 - 1))
def test_invariants(isa, key, value_dim, cell_size, seed):
    value = np.random.default_rng(0).standard_normal((len(key), value_dim), np.float32)
    cells = segment(key, value, cell_size, seed)
    count, order = len(key), cells["order"]
    members = cell_members(cells)

    # a partition in about count / cell_size cells, none empty
    parents = cells["parent"]["offset"]
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    for level, below in ((cells["cell"]["offset"], count), (parents, len(members))):
        assert level[0] == 0
        assert level[-1] == below
        assert np.all(np.diff(level) > 0)
    assert len(members) <= max(1, 5 / 4 * (count // cell_size + 2 * (len(parents) - 1)))

    # keys and values stored in cell order, untouched
    np.testing.assert_array_equal(cells["keys"], key[order])
    np.testing.assert_array_equal(cells["values"], value[order])

    # summaries; a mean of numbers up to x is wrong by some roundoffs of x, and shows in all the rest
    assert np.all((cells["centre"] >= key.min(axis=0)) & (cells["centre"] <= key.max(axis=0)))
    tree = core_tree(key, value, cell_size, seed)
    np.testing.assert_allclose(cells["metric"], tree.metric, rtol=1e-4)
    blur = 2.0**-24 * np.sqrt(count) * max(np.abs(key * tree.metric).max(), 1e-30) + 1e-30
    distance = np.sqrt(key.shape[1])
    for actual, expected in ((cells["cell"], tree.cells), (cells["parent"], tree.parents)):
        mean_key = actual["mean_key"].astype(np.float64) + cells["centre"]
        np.testing.assert_allclose(mean_key * tree.metric, expected.mean_key, atol=2 * blur)
        np.testing.assert_allclose(actual["mean_value"], expected.mean_value, atol=1e-5)
        np.testing.assert_allclose(np.sqrt(actual["variance"]), np.sqrt(expected.variance), rtol=1e-4, atol=4 * blur)
        np.testing.assert_allclose(actual["radius"], expected.radius, rtol=1e-4, atol=4 * blur * distance)
        np.testing.assert_allclose(actual["log2_count"], np.log2(expected.count), rtol=1e-6)
        weight = np.exp2(np.float64(actual["log2_weight"])) / expected.count
        squared = expected.value_variance + (tree.mean_value**2).sum()
        clear = squared > 1e-3
        assert np.isnan(weight).tolist() == always_open(expected, tree).tolist()
        clear &= ~np.isnan(weight)
        np.testing.assert_allclose(weight[clear], np.sqrt(squared)[clear], rtol=1e-3)


@pytest.mark.parametrize("count", [1, 40, 511, 700, 1024, 5000])
def test_metric_and_component_variance_of_the_oracle(isa, count):
    key, value = inputs((0, 24), (count, 24), 5)[1:]
    key = (key + np.float32(2) * key[0]) * np.exp2(np.linspace(-3, 3, 24)).astype(np.float32)
    for moments in (None, 4.0 ** np.linspace(2, -2, 24), second_moments(24)):
        cells, tree = segment(key, value, 16, 3, moments=moments), core_tree(key, value, 16, 3, moments)
        np.testing.assert_allclose(cells["metric"], tree.metric, rtol=1e-5)
        np.testing.assert_allclose(cells["component_variance"], tree.component_variance, rtol=1e-4)


def test_keys_that_say_nothing_have_ones_for_a_metric(isa):
    key = inputs((0, 8), (100, 8), 5)[1]
    for spoiled in (0.0, np.nan, np.inf, 1e30):
        one = np.zeros_like(key) if spoiled == 0 else np.where(np.arange(8) == 3, np.float32(spoiled), key)
        cells = segment(one, key, 16, 0)
        np.testing.assert_array_equal(cells["metric"], np.ones(8))
    np.testing.assert_array_equal(segment(key, key, 16, 0, moments=np.zeros((8, 8)))["metric"], np.ones(8))
    one = segment(key[:1], key[:1], 16, 0)  # no key differs from its mean
    np.testing.assert_array_equal(one["component_variance"], np.ones(8))
    unused = segment(key * np.float32(np.arange(8) > 0), key, 16, 0)
    assert np.log2(unused["metric"]).min() == pytest.approx(np.log2(unused["metric"].max()) - 6, abs=1e-4)
    assert unused["component_variance"][0] == pytest.approx(0.1)


def test_moments_that_say_nothing_leave_keys_as_they_are(isa):
    key, value = inputs((0, 8), (500, 8), 5)[1:]
    key = key * np.float32(0.5) ** np.arange(8, dtype=np.float32)
    given = segment(key, value, 16, 0, moments=np.zeros((8, 8)))
    np.testing.assert_array_equal(given["order"], segment(key, value, 16, 0, moments=np.zeros(8))["order"])
    expected = reference.build_tree(key, value, cell_size=16, seed=0, moments=np.zeros((8, 8)))
    assert [m.tolist() for m in cell_members(given)] == [m.tolist() for m in expected.cells.members]


def test_an_offset_of_all_keys_costs_nothing(isa):
    """Softmax does not notice it: cells are as tight, and their means as exact."""
    key, value = inputs((0, 16), (600, 16), 5)[1:]
    key = np.round(64 * key) / 64  # so that sums with the offset are exact
    offset = np.where(np.arange(16) % 4 == 0, np.float32(256), np.float32(0))
    plain, moved = (segment(rows, value, 16, 0, moments=second_moments(16))["cell"] for rows in (key, key + offset))
    within = [(np.diff(cells["offset"]) * cells["variance"]).sum() for cells in (plain, moved)]
    assert within[1] < 1.05 * within[0]
    assert np.abs(moved["mean_key"]).max() < 5


def test_equal_keys_share_a_cell():
    key = np.repeat(np.float32([[1, 2], [3, 4], [5, 6]]), 20, axis=0)
    members = cell_members(segment(key, key, 6, 0))  # ten parents in three places
    assert len(members) == 3
    assert [np.unique(key[rows], axis=0).shape for rows in members] == [(1, 2)] * 3


def with_some_apart(count=800, width=16):
    """Keys of which some lie far out: two alike, one of another kind, and a whole group."""
    key, value = inputs((0, width), (count, width), 5)[1:]
    for rows, component in (([100, 500], 0), ([321], 3), (range(600, 612), 7)):
        key[np.array(rows), component] += 40
    return key, value


@pytest.mark.parametrize("known", [False, True], ids=["keys alone", "moments"])
def test_what_is_apart_is_the_oracles(isa, known):
    key, value = with_some_apart()
    moments = second_moments(16) if known else None
    cells = segment(key, value, 16, 3, moments=moments)
    expected = reference.build_tree(key, value, cell_size=16, seed=3, moments=moments)
    members = cell_members(cells)
    assert [m.tolist() for m in members] == [m.tolist() for m in expected.cells.members]
    assert expected.has_apart
    for level, nodes in (("parent", expected.parents), ("cell", expected.cells)):
        assert np.isnan(cells[level]["log2_weight"]).tolist() == always_open(nodes, expected).tolist()
    apart = set(np.concatenate(members[cells["parent"]["offset"][-2] :]).tolist())
    assert {100, 500} <= apart <= {100, 500, 321, *range(600, 612)}


def test_same_seed_same_bytes():
    key, value = inputs((0, 8), (300, 8), 4)[1:]
    one, two, other = (segment(key, value, 16, seed) for seed in (7, 7, 8))
    for name, array in one["cell"].items():
        np.testing.assert_array_equal(two["cell"][name], array)
    np.testing.assert_array_equal(two["order"], one["order"])
    assert not np.array_equal(other["order"], one["order"])


@pytest.mark.parametrize("count", [1, 2, 31])
def test_fewer_keys_than_a_cell_holds(isa, count):
    key, value = inputs((0, 8), (count, 8), 4)[1:]
    cells = segment(key, value, 32, 0)
    np.testing.assert_array_equal(cells["cell"]["offset"], [0, count])
    np.testing.assert_array_equal(cells["order"], np.arange(count))
    np.testing.assert_allclose(cells["cell"]["mean_key"] + cells["centre"], key.mean(axis=0, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("key_shape", "value_shape", "cell_size"),
    [
        ((0, 4), (0, 4), 8),
        ((5, 4), (4, 4), 8),
        ((5, 577), (5, 4), 8),
        ((5, 4), (5, 577), 8),
        ((5, 4), (5, 4), 0),
    ],
    ids=str,
)
def test_bad_arguments(key_shape, value_shape, cell_size):
    with pytest.raises(ValueError):
        segment(np.ones(key_shape, np.float32), np.ones(value_shape, np.float32), cell_size, 0)
