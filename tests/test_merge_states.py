"""merge_states: results over parts of the keys become the result over all of them."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from helpers import inputs, normal
from hypothesis import given
from hypothesis import strategies as st

import icecore

KEYS = 200


def attend_parts(cuts, dtype="float32", **options):
    """(outs, lses) over the keys between the cuts, and (out, lse) over all keys."""
    query, key, value = inputs((4, 7, 16), (2, KEYS, 16), 9, dtype)
    bounds = [0, *sorted(cuts), KEYS]
    parts = [
        icecore.attention(query, key[:, begin:end], value[:, begin:end], return_lse=True, **options)
        for begin, end in pairwise(bounds)
    ]
    return tuple(zip(*parts, strict=True)), icecore.attention(query, key, value, return_lse=True, **options)


def assert_close(actual, expected, atol=2e-6):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a.astype(np.float64), e.astype(np.float64), atol=atol)


@given(st.lists(st.integers(0, KEYS), max_size=5), st.sampled_from([0.25, 3.0]))
def test_parts_make_the_whole(cuts, scale):
    parts, whole = attend_parts(cuts, scale=scale)  # equal cuts leave parts without a key
    assert_close(icecore.merge_states(*parts), whole, atol=1e-5)


@given(st.permutations(range(5)), st.integers(1, 4))
def test_order_and_grouping_do_not_matter(order, first):
    (outs, lses), whole = attend_parts([11, 60, 60, 171])
    outs, lses = [outs[i] for i in order], [lses[i] for i in order]
    left, right = (
        icecore.merge_states(outs[:first], lses[:first]),
        icecore.merge_states(outs[first:], lses[first:]),
    )
    assert_close(icecore.merge_states(*zip(left, right, strict=True)), whole)


def test_one_part_is_itself():
    (outs, lses), whole = attend_parts([])
    assert_close(icecore.merge_states(outs, lses), whole, atol=1e-7)


def test_parts_that_saw_nothing():
    out, lse = np.full((3, 5), np.nan, np.float32), np.full(3, -np.inf, np.float32)
    merged, merged_lse = icecore.merge_states([out, out], [lse, lse])
    assert not merged.any()
    assert np.all(merged_lse == -np.inf)
    seen, seen_lse = normal(0, 3, 5), normal(1, 3)
    merged, merged_lse = icecore.merge_states([out, seen], [lse, seen_lse])
    np.testing.assert_array_equal(merged, seen)
    np.testing.assert_array_equal(merged_lse, seen_lse)


def test_scores_beyond_the_range_of_exp():
    out, lse = icecore.merge_states(
        [np.ones((1, 1)), np.zeros((1, 1))], [np.array([2000.0]), np.array([2000.0])]
    )
    np.testing.assert_allclose(out, [[0.5]])
    np.testing.assert_allclose(lse, [2000 + np.log(2)])


@pytest.mark.parametrize(("dtype", "roundoff"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float64", 1e-7)])
def test_dtypes(dtype, roundoff):
    parts, whole = attend_parts([60, 171], dtype)
    merged = icecore.merge_states(*parts)
    assert merged[0].dtype == whole[0].dtype
    assert merged[1].dtype == np.float32
    # rounded in the parts, in the merge and in the whole
    assert_close(merged[:1], whole[:1], atol=4 * roundoff)
    assert_close(merged[1:], whole[1:])


def test_bfloat16_bits():
    """uint16 holds bfloat16, here as everywhere."""
    outs, lses = attend_parts([60], "bfloat16")[0]
    expected, expected_lse = icecore.merge_states(outs, lses)
    out, lse = icecore.merge_states([o.view(np.uint16) for o in outs], lses)
    np.testing.assert_array_equal(out.view(ml_dtypes.bfloat16), expected)
    np.testing.assert_array_equal(lse, expected_lse)


OUT, LSE = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("outs", "lses", "message"),
    [
        ([], [], "got 0 and 0"),
        ([OUT], [], "got 1 and 0"),
        ([OUT, OUT], [LSE], "got 2 and 1"),
        ([OUT, OUT[:, :2]], [LSE, LSE[:, :2]], r"outs\[1\] has shape \(2, 2, 4\); expected that of outs\[0\], \(2, 3, 4\)"),
        ([OUT, OUT], [LSE, LSE[:, :2]], r"lses\[1\] has shape \(2, 2\); expected \(2, 3\), as outs\[1\] has \(2, 3, 4\)"),
        ([OUT], [LSE.T], r"lses\[0\] has shape \(3, 2\); expected \(2, 3\)"),
    ],
)
def test_errors(outs, lses, message):
    with pytest.raises(ValueError, match=message):
        icecore.merge_states(outs, lses)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.int8, np.complex64])
def test_what_attention_never_returns_is_refused(dtype):
    """The result has the dtype of the first part: integers would be cut off."""
    for outs, place in (([OUT.astype(dtype), OUT], 0), ([OUT, OUT.astype(dtype)], 1)):
        with pytest.raises(TypeError, match=rf"outs\[{place}\] has dtype {np.dtype(dtype)}; expected float32"):
            icecore.merge_states(outs, [LSE, LSE])


@pytest.mark.parametrize(("outs", "lses", "name"), [(3, [LSE], "outs"), ([OUT], 3, "lses")])
def test_what_is_no_sequence_is_refused(outs, lses, name):
    with pytest.raises(TypeError, match=f"{name} must be a sequence of arrays, got int"):
        icecore.merge_states(outs, lses)


def test_masked_arrays_are_refused():
    with pytest.raises(TypeError, match=r"outs\[1\] is a masked array"):
        icecore.merge_states([OUT, np.ma.masked_array(OUT, True)], [LSE, LSE])
    with pytest.raises(TypeError, match=r"lses\[0\] is a masked array"):
        icecore.merge_states([OUT], [np.ma.masked_array(LSE, True)])
