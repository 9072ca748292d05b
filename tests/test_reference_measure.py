"""The oracle of the measured threshold: its curve is near/far attention at every threshold, and what passes holds."""

import dataclasses

import numpy as np
import pytest
from helpers import inputs
from hypothesis import given
from hypothesis import strategies as st

from icecore import reference
from icecore.reference import THRESHOLDS, Curve, choose_level, head_error, passing_level, row_curve
from icecore.reference.cells import summarize_tree
from icecore.reference.combine import combine
from icecore.reference.measure import FINER, TRACED, caution_of, mass_scale, row_errors
from icecore.reference.near_far import EXPAND_SHARE, always_open, choose, exact_and_sealed, log_guess, log_risk, marks_of
from icecore.reference.random import segment_seed

G, KEYS, CELL_SIZE, SCALE = len(THRESHOLDS), 1400, 8, 0.25
CASES = {
    "both ways": {"sinks": 4},
    "causal": {"sinks": 4, "causal": True, "block": 128},
    "masked": {"sinks": 4, "attn_mask": np.arange(KEYS) % 300 > 40},
    "biased": {"sinks": 4, "attn_mask": np.where(np.arange(KEYS) < 60, 0.5, np.where(np.arange(KEYS) > 1200, -np.inf, 0.0))},
    "all opened by a mask": {"sinks": 4, "attn_mask": np.arange(KEYS) % 5 > 0},
    "nothing hidden, everything exact": {"sinks": KEYS},
}


def clustered(rows=12, seed=0):
    """Queries (rows, 16), keys and values of one head, in places that queries tell apart."""
    query, key, value = (a[0, 0].astype(np.float64) for a in inputs((1, 1, rows, 16), (1, 1, KEYS, 16), 8, seed=seed))
    generator = np.random.default_rng((seed, 5))
    centres = 2 * generator.standard_normal((40, 16))
    place = generator.integers(40, size=KEYS)
    return query, centres[place] + 0.4 * key, value + generator.standard_normal((40, 8))[place]


def seen_by(position, key, value, built, *, causal=False, block=512, sinks=0):
    """What a query at `position` sees: exact keys, trees; `built` keeps these."""
    exact, ranges = exact_and_sealed(position, KEYS, causal=causal, block=block, sinks=sinks)
    for first, end in set(ranges) - set(built):
        seed = segment_seed(0, first, end - first)
        built[first, end] = reference.build_tree(key[first:end], value[first:end], cell_size=CELL_SIZE, seed=seed)
    return exact, [(each[0], built[each]) for each in ranges]


def curves_of(query, key, value, *, all_cells=False, attn_mask=None, **options):
    """Of queries that stand at the end."""
    mask = np.zeros(KEYS) if attn_mask is None else attn_mask
    bias = np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else mask
    curves, built = [], {}
    for i, each in enumerate(query):
        exact, trees = seen_by(KEYS - len(query) + i, key, value, built, **options)
        curves.append(row_curve(each, key, value, bias, trees, exact, scale=SCALE, all_cells=all_cells))
    return curves


def near_far(query, key, value, level, **options):
    """out (L, dv), lse (L,), near keys (L,) at a threshold of the grid."""
    options = {"k": 1, "threshold": THRESHOLDS[level], "scale": SCALE, "cell_size": CELL_SIZE, **options}
    return [a[0, 0] for a in reference.near_far_attention(*(a[None, None] for a in (query, key, value)), **options)[:3]]


each_mode = pytest.mark.parametrize("all_cells", [False, True], ids=["parents", "all cells"])


# ---- A row ----


@each_mode
@pytest.mark.parametrize("case", CASES)
def test_the_curve_is_near_far_attention_at_each_threshold(case, all_cells):
    arrays, options = clustered(), CASES[case] | {"all_cells": all_cells}
    curves = curves_of(*arrays, **options)
    only_seen = {name: options[name] for name in ("causal", "attn_mask") if name in options}
    exact, exact_lse = (a[0, 0] for a in reference.attention(*(a[None, None] for a in arrays), scale=SCALE, **only_seen))
    for g in (0, 7, 20, 33, 63, 111):
        out, lse, near = near_far(*arrays, g, **options)
        np.testing.assert_allclose([c.out[g] for c in curves], out, atol=1e-12)
        np.testing.assert_array_equal([c.near[g] for c in curves], near)
        mass = np.array([c.summed_mass[g] + c.mean_mass[g] for c in curves])
        np.testing.assert_allclose(mass, np.exp(lse - exact_lse))
        # and so the error, once the masses of the means are as right as one factor makes them
        squares = sum(c.mean_mass[g] ** 2 for c in curves)
        factor = sum(c.mean_mass[g] * (1 - c.summed_mass[g]) for c in curves) / squares if squares else 1.0
        wrong = np.array([c.summed_mass[g] + factor * c.mean_mass[g] for c in curves]) - 1
        size = np.linalg.norm(exact, axis=-1)
        expected = np.sqrt(((out - exact) ** 2).sum(axis=-1) + (size * wrong / 2) ** 2)
        np.testing.assert_allclose(row_errors(curves)[:, g], expected, atol=1e-12)
        assert head_error(curves)[0][g] == pytest.approx(expected.sum() / size.sum(), abs=1e-12)
    np.testing.assert_allclose([c.exact_out for c in curves], exact, atol=1e-12)


def test_the_cases_are_worth_comparing():
    """Cells are opened at some thresholds and not at others, and parents that are not expanded make a difference."""
    parents, cells = (curves_of(*clustered(), **CASES["both ways"], all_cells=all_cells) for all_cells in (False, True))
    levels = [0, 7, 20, 33, 63]
    assert (np.diff([sum(c.near[g] for c in parents) for g in levels]) > 0).all()
    assert sum(c.nodes for c in parents)[0] < 0.9 * sum(c.nodes for c in cells)[0]
    assert head_error(parents)[0][0] > 1.3 * head_error(cells)[0][0]


def test_a_cell_under_a_parent_that_is_not_expanded_stays_closed():
    """Two keys where the query points, in a component in which no others differ: 198 others hide them."""
    generator = np.random.default_rng(0)
    key, value = 0.1 * generator.standard_normal((400, 16)), 3 + generator.standard_normal((400, 4))
    key[:, 0] = np.where(np.arange(400) < 2, 10, 0)
    tree = summarize_tree(key, value, [np.arange(2), np.arange(2, 200), np.arange(200, 400)], [0, 0, 1], np.ones(16))
    row = np.where(np.arange(16) == 0, 4, 0.5), key, value, np.zeros(400), [(0, tree)], np.arange(0)
    hidden, shown = (row_curve(*row, scale=SCALE, all_cells=all_cells) for all_cells in (False, True))
    assert (hidden.near[:9] == 0).all()
    assert (shown.near[:9] == 2).all()
    for all_cells, curve in ((False, hidden), (True, shown)):
        options = {"k": 1, "scale": SCALE, "all_cells": all_cells}
        for g, threshold in enumerate(THRESHOLDS):
            choice, _ = choose(*row, threshold=threshold, **options)
            out, _, _ = combine(*row[:3], choice, SCALE)
            assert curve.near[g] == len(choice.keys)
            np.testing.assert_allclose(curve.out[g], out, atol=1e-12)


@each_mode
@given(st.integers(0, 1000))
def test_smaller_thresholds_open_more(all_cells, seed):
    for curve in curves_of(*clustered(2, seed), **CASES["both ways"], all_cells=all_cells):
        assert (np.diff(curve.near) >= 0).all()
        assert (np.diff(curve.nodes) >= 0).all()
        assert (np.diff(curve.summed_mass) >= 0).all()


def test_with_all_cells_open_the_error_is_nothing():
    query, key, value = clustered()
    _, [(_, tree)] = seen_by(KEYS - 1, key, value, {}, sinks=4)
    opened = (tree.cells.count > 1) | always_open(tree.cells, tree)  # other cells of one key are their mean
    together = tree.cells.count[opened].sum()
    curves = curves_of(query / 4, key, value, all_cells=True, sinks=4)  # all keys weigh about as much
    assert all(c.near[-1] == together > 0.9 * KEYS for c in curves)
    error, standard_error = head_error(curves)
    assert error[-1] < 1e-12
    assert standard_error[-1] < 1e-12
    assert error[0] > 1e-3


def test_nodes_are_parents_and_the_cells_of_expanded_ones():
    query, key, value = clustered()
    exact, [(_, tree)] = seen_by(KEYS - 1, key, value, {}, sinks=4)
    bias = np.zeros(KEYS)
    for row, curve, full in zip(
        query, *(curves_of(query, key, value, sinks=4, all_cells=all_cells) for all_cells in (False, True)), strict=True
    ):
        assert (full.nodes == len(tree.parents.count) + len(tree.cells.count)).all()
        guess = log_guess(row, SCALE, SCALE * key[exact] @ row, value[exact], [(4, tree)], marks_of(bias, [(4, tree)]))
        risk = log_risk(row, SCALE, tree.parents, tree)
        for g in (0, 10, 30):
            expanded = risk >= np.log(EXPAND_SHARE * THRESHOLDS[g]) + guess
            cells = np.isin(tree.parent, np.flatnonzero(expanded)).sum()
            assert curve.nodes[g] == len(tree.parents.count) + cells


def test_what_hidden_keys_hold_does_no_harm():
    query, key, value = clustered()
    keep = np.arange(KEYS) < 1000
    expected = curves_of(query, key, value, sinks=4, attn_mask=keep)
    for garbage in (np.nan, np.inf, 1e300):
        dirty_key, dirty_value = (np.where(keep[:, None] | (np.arange(KEYS) < 1200)[:, None], a, garbage) for a in (key, value))
        with np.errstate(all="ignore"):
            curves = curves_of(query, dirty_key, dirty_value, sinks=4, attn_mask=keep)
            assert np.isfinite(head_error(curves)).all()
        for one, other in zip(curves, expected, strict=True):
            np.testing.assert_allclose(one.exact_out, other.exact_out)


def test_a_row_that_sees_nothing_lacks_nothing():
    curves = curves_of(*clustered(), sinks=4, attn_mask=np.zeros(KEYS, bool))
    for curve in curves:
        assert not curve.exact_out.any()
        assert not curve.out.any()
    np.testing.assert_array_equal(row_errors(curves), 0)
    seen = curves_of(*clustered(), sinks=4)
    np.testing.assert_allclose(head_error([*seen, *curves]), head_error(seen), atol=1e-15)
    assert passing_level(*head_error(curves), 0.5) == G  # an error of nothing relative to nothing promises nothing


# ---- A head ----


def made_up(errors, sizes=1.0, mass=None):
    """Curves of rows with these errors (R, G) of the output; mass: (R, G), of all that is summed."""
    errors = np.asarray(errors, np.float64)
    sizes, mass = np.broadcast_to(sizes, len(errors)), np.ones(errors.shape) if mass is None else np.asarray(mass, np.float64)
    curves = []
    for error, size, row in zip(errors, sizes, mass, strict=True):
        out = np.stack([np.full(G, size), error], axis=1)
        curves.append(Curve(np.array([size, 0.0]), out, np.full(G, 0.5), row - 0.5, np.zeros(G, int), np.zeros(G, int)))
    return curves


def test_no_other_factor_brings_the_masses_of_means_nearer_to_the_true_ones():
    curves = curves_of(*clustered(), **CASES["both ways"])

    def distance(factor):
        return sum((c.summed_mass + factor * c.mean_mass - 1) ** 2 for c in curves)

    assert (mass_scale(curves)[:10] > 1.001).all()  # Jensen: a mean never weighs more than its keys
    assert (distance(mass_scale(curves)) <= np.minimum(*(distance(mass_scale(curves) * by) for by in (0.99, 1.01)))).all()
    opened = [dataclasses.replace(c, summed_mass=np.ones(G), mean_mass=np.zeros(G)) for c in curves]
    np.testing.assert_array_equal(mass_scale(opened), 1)


def test_a_row_whose_means_miss_a_large_key_leaves_the_mass_of_others_as_it_is():
    mass = [np.full(G, 1.0)] * 9 + [np.full(G, 0.51)]  # its means hold 0.01 of 0.5
    assert (abs(mass_scale(made_up(np.zeros((10, G)), mass=mass)) - 1) < 0.01).all()


def test_a_wrong_mass_is_an_error_where_it_differs_between_rows():
    alike, apart = (made_up(np.zeros((2, G)), mass=[np.full(G, a), np.full(G, b)]) for a, b in ((0.8, 0.8), (0.9, 0.7)))
    np.testing.assert_allclose(head_error(alike)[0], 0, atol=1e-15)
    factor = 0.5 * (0.4 + 0.2) / (0.4**2 + 0.2**2)  # of the means' masses 0.4 and 0.2 of the true 0.5 each
    expected = (abs(0.5 + factor * 0.4 - 1) + abs(0.5 + factor * 0.2 - 1)) / 2 / 2  # half of it counts
    np.testing.assert_allclose(head_error(apart)[0], expected)


def test_the_error_of_a_head_is_that_of_all_its_rows_together():
    errors, sizes = np.array([0.3, 0.1, 0.02])[:, None].repeat(G, axis=1), np.array([1.0, 10, 0.1])
    error, standard_error = head_error(made_up(errors, sizes))
    np.testing.assert_allclose(error, 0.42 / 11.1)
    deviation = np.array([0.3, 0.1, 0.02]) - 0.42 / 11.1 * sizes
    np.testing.assert_allclose(standard_error, np.sqrt((deviation**2).sum()) / 11.1)


def test_weights_are_how_often_a_row_counts():
    generator = np.random.default_rng(0)
    errors, sizes = generator.random((3, G)), np.array([1.0, 2, 3])
    repeated = [0, 0, 1, 2, 2, 2]
    expected = head_error(made_up(errors[repeated], sizes[repeated]))[0]
    for weights in ([2, 1, 3], [20, 10, 30]):
        np.testing.assert_allclose(head_error(made_up(errors, sizes), weights)[0], expected)
    without = head_error(made_up(errors, sizes), [1, 1, 0])
    np.testing.assert_allclose(without, head_error(made_up(errors[:2], sizes[:2])))
    np.testing.assert_allclose(head_error(made_up(errors, sizes), [2, 1, 3]), head_error(made_up(errors, sizes), [4, 2, 6]))


def test_the_standard_error_is_how_much_other_rows_would_give():
    """The spread of the measured error over draws of 32 rows."""
    generator = np.random.default_rng(0)
    measured = [head_error(made_up(generator.exponential(0.1, (32, 1)).repeat(G, axis=1))) for _ in range(300)]
    errors, standard_errors = np.array(measured)[:, :, 0].T
    assert np.mean(errors) == pytest.approx(0.1, rel=0.03)
    assert np.mean(standard_errors) == pytest.approx(np.std(errors), rel=0.15)


# ---- The threshold ----


def test_the_grid():
    assert THRESHOLDS.shape == (112,)
    assert THRESHOLDS[0] == 2
    np.testing.assert_allclose(THRESHOLDS[:-1] / THRESHOLDS[1:], 1.2)


@given(st.integers(0, G), st.data())
def test_the_largest_threshold_below_which_all_pass(first, data):
    """Those from `first` on pass, the one before does not, and others before it may."""
    error = np.full(G, 0.05)
    if first:
        lucky = data.draw(st.lists(st.booleans(), min_size=first, max_size=first))
        error[:first] = np.where(lucky, 0.05, 0.2)
        error[first - 1] = 0.2
    assert passing_level(error, np.zeros(G), 0.1) == first


def test_the_tolerance_itself_passes_and_nan_does_not():
    assert passing_level(np.full(G, 0.1), np.zeros(G), 0.1) == 0
    assert passing_level(np.full(G, 0.08), np.full(G, 0.03), 0.1) == G
    assert passing_level(np.where(np.arange(G) == 9, np.nan, 0.0), np.zeros(G), 0.1) == 10
    assert passing_level(np.full(G, np.nan), np.full(G, np.nan), 0.1) == G


def test_lucky_rows_do_not_pass():
    """Thirty-one rows without an error, and one that shows what happens now and then; as large an error in all rows passes."""
    errors = np.zeros((32, G))
    errors[5] = 32 * 0.06
    error, standard_error = head_error(made_up(errors))
    np.testing.assert_allclose(error, 0.06)
    assert passing_level(error, standard_error, 0.1) == G
    assert passing_level(*head_error(made_up(np.full((32, G), 0.06))), 0.1) == 0


@given(st.integers(0, FINER - 1), st.integers(8, 20), st.integers(0, 2**31 - 1))
def test_caution_is_what_later_rows_would_have_needed(needed, rows, seed):
    """Together: single rows may miss the tolerance. Rows that count for nothing have no say."""
    generator = np.random.default_rng(seed)
    sizes, share = generator.uniform(0.5, 2, rows), generator.dirichlet(np.ones(rows))
    at = np.where(np.arange(FINER) < needed, 0.11, 0.09)  # their error together, level by level
    errors = share[:, None] * at * sizes.sum()
    assert caution_of(errors, sizes, 0.1) == needed
    both = np.concatenate([errors, np.full_like(errors, 9.0)])
    assert caution_of(both, np.ones(2 * rows) * np.tile(sizes, 2), 0.1, np.repeat([1, 0], rows)) == needed
    assert caution_of(both, np.tile(sizes, 2), 0.1) == FINER
    assert caution_of(errors[:7], sizes[:7], 0.1) == 0


@given(st.integers(0, 30), st.integers(0, FINER), st.integers(0, 2**31 - 1), st.sampled_from([0.1, 0.02]))
def test_the_level_in_force_costs_little_more_than_the_one_that_passes(passing, caution, seed, tolerance):
    generator = np.random.default_rng(seed)
    errors = np.where(np.arange(G) < passing, 2 * tolerance, tolerance / 2) * np.ones((8, 1))
    near = np.sort(generator.integers(0, 2000, (8, G)), axis=1) * (generator.random() < 0.7)
    nodes = np.sort(generator.integers(10, 300, (8, G)), axis=1)
    curves = [dataclasses.replace(c, near=n, nodes=m) for c, n, m in zip(made_up(errors), near, nodes, strict=True)]
    exact, prices = 300.0, (0.8, 0.3)
    level = choose_level(curves, tolerance, exact=exact, prices=prices, caution=caution)
    cost = prices[0] * near.mean(axis=0) + prices[1] * nodes.mean(axis=0)
    cautious = min(passing + caution, G - 1)
    most = 1.05 * cost[cautious] + 0.05 * exact
    assert level >= cautious
    assert cost[level] <= most + 1e-9
    traced = THRESHOLDS >= 0.9 * tolerance / TRACED
    if level + 1 < G and (traced[level + 1] or not traced[cautious]):
        assert cost[level + 1] > most - 1e-9
    assert choose_level(made_up(np.full((8, G), 2 * tolerance)), tolerance, exact=exact) is None


@each_mode
@pytest.mark.parametrize("tolerance", [0.1, 0.03, 0.01])
def test_what_was_measured_comes_out(tolerance, all_cells):
    """Of the rows that were measured, and about so much of as many others."""
    query, key, value = clustered(64)
    measured, others = slice(0, 64, 2), slice(1, 64, 2)
    options = {"sinks": 4, "all_cells": all_cells}
    level = passing_level(*head_error(curves_of(query[measured], key, value, **options)), tolerance)
    exact = reference.attention(*(a[None, None] for a in (query, key, value)), scale=SCALE)[0][0, 0]
    out, _, near = near_far(query, key, value, level, **options)
    errors, sizes = np.linalg.norm(out - exact, axis=1), np.linalg.norm(exact, axis=1)
    assert errors[measured].sum() <= tolerance * sizes[measured].sum()
    assert errors[others].sum() <= 1.3 * tolerance * sizes[others].sum()
    if level:  # the next larger one would not have done, so that this says something
        assert head_error(curves_of(query[measured], key, value, **options))[0][level - 1] > 0.4 * tolerance
    assert near.mean() < 0.8 * KEYS
