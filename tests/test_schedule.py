"""What the core counts before a call is what the oracle's schedule says, and what a call then does."""

import numpy as np
import pytest
from helpers import inputs
from hypothesis import given
from hypothesis import strategies as st

import icecore
from icecore import _cost_model
from icecore._schedule import near_far_steps
from icecore.reference.near_far import exact_and_sealed, sealed_ranges


def by_the_oracle(queries, keys, causal, block, sinks):
    """[queries, pairs, sealed keys, built keys] of each step, query by query."""
    steps, last, built = [], None, set()
    for position in range(keys - queries, keys):
        seen = position >= 0 or not causal
        exact, ranges = exact_and_sealed(position, keys, causal=causal, block=block, sinks=sinks) if seen else ([], [])
        number = max(position, 0) // block if causal else 0
        if number != last:
            new = set(ranges) - built
            steps.append([0, 0, sum(end - first for first, end in ranges), sum(end - first for first, end in new)])
            built, last = built | new, number
        steps[-1][0] += 1
        steps[-1][1] += len(exact) + steps[-1][2] * seen
    return np.array(steps).reshape(-1, 4).T


@given(queries=st.integers(0, 300), keys=st.integers(0, 300), causal=st.booleans(),
       block=st.sampled_from([1, 7, 50, 301, 2**40]), sinks=st.sampled_from([0, 5, 70, 400]))
def test_the_count_is_the_oracles_schedule(queries, keys, causal, block, sinks):
    steps = near_far_steps(queries, keys, causal=causal, window=block, sinks=sinks)
    expected = by_the_oracle(queries, keys, causal, block, sinks)
    np.testing.assert_array_equal([steps.queries, steps.pairs, steps.sealed_keys, steps.built_keys], expected)
    assert not steps.is_exact.any() and not steps.measured_rows.any()


@pytest.mark.parametrize("block", [512, 3000, 40000])
def test_segments_that_wait_and_segments_that_stop_growing_are_counted(block):
    steps = near_far_steps(300 * block, 300 * block, causal=True, window=block, sinks=0, cell_size=32)
    for blocks in range(1, 299):
        new = {*sealed_ranges(blocks, block, 0)} - {*sealed_ranges(blocks - 1, block, 0)}
        sizes = np.array([end - first for first, end in new])
        assert steps.built_keys[blocks + 1] == sizes.sum()
        assert steps.distances[blocks + 1] == pytest.approx((2 * sizes * (16 + sizes / (16 * 32))).sum(), rel=1e-3)


def test_rows_are_exact_until_some_have_been_measured():
    arrays, options = inputs((6, 500, 8), (2, 500, 8), 8), {"causal": True, "window": 50, "sinks": 3, "tolerance": 0.2}
    with _cost_model.use(_cost_model.NearFarAlways()):
        _, info = icecore.attention(*arrays, return_info=True, **options)
    steps = near_far_steps(500, 500, group=3, **options)
    sealed = np.repeat(steps.sealed_keys, steps.queries)
    is_exact = np.repeat(steps.is_exact != 0, steps.queries)
    assert is_exact.sum() == 200  # the first rows that see two sealed blocks are measured
    np.testing.assert_array_equal(info.near_keys[:, is_exact], np.broadcast_to(sealed[is_exact], (6, 200)))
    assert (info.summaries[:, ~is_exact] > 0).all()
    assert steps.measured_rows[:3].tolist() == [0, 0, 0] and steps.measured_rows[3] == 3 * 10
    assert steps.measured_rows[-1] == 0  # no later row is left to measure for


@pytest.mark.parametrize(("tolerance", "panels"), [(0.1, 1), (0.01, 2), (0.005, 4), (1e-6, 4)])
def test_a_fine_tolerance_is_measured_on_more_rows(tolerance, panels):
    steps = near_far_steps(1000, 900, causal=False, window=None, sinks=5, group=3, tolerance=tolerance)
    assert steps.measured_rows.tolist() == [3 * 48 * panels]
    assert not steps.is_exact.any()


@pytest.mark.parametrize(("group", "tolerance", "times"), [
    (3, 0.05, 1), (3, 0.02, 3), (3, 0.001, 4), (1, 0.02, 1), (1, 0.01, 2),
])
def test_causal_calls_measure_more_rows_by_the_queries_of_a_head(group, tolerance, times):
    rows, more = (near_far_steps(8192, 8192, causal=True, window=512, sinks=16, group=group, tolerance=value).measured_rows
                  for value in (0.2, tolerance))
    assert rows.any()
    assert more.tolist() == (times * rows).tolist()
