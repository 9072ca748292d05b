"""attention(selector=XAttention()): blocks by antidiagonals of scores, against its oracle."""

from functools import cache

import numpy as np
import pytest
from chosen_keys import assert_clear_equal, clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.xattention import antidiagonal_scores
from icecore.selectors import XAttention

CASES = {
    "prefill": ((3, 1, 900, 900, 32), {"stride": 8, "threshold": 0.8}),
    "a chunk that no group begins with": ((4, 2, 133, 1501, 16), {"stride": 16, "threshold": 0.7}),
    "the least stride": ((2, 1, 500, 700, 16), {"stride": 4, "threshold": 0.9}),
    "more queries than keys": ((2, 2, 600, 500, 16), {"stride": 8, "threshold": 0.5}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"stride": 8, "threshold": 0.9}),
    "a tiny threshold": ((2, 1, 300, 900, 7), {"stride": 8, "threshold": 1e-9}),
    "another scale": ((2, 1, 300, 900, 7), {"stride": 8, "threshold": 0.8, "scale": -0.4}),
    "a low soft cap": ((2, 1, 500, 500, 16), {"stride": 4, "threshold": 0.9, "softcap": 0.5}),
    "a soft cap and sink logits": (
        (2, 1, 300, 900, 16), {"stride": 8, "threshold": 0.8, "softcap": 2.0, "sink_logits": (1.0, -2.0)}),
}


def xattention(arrays, stride, threshold, **options):
    """(out, lse, info)"""
    options |= {"selector": XAttention(stride, threshold), "causal": True}
    return icecore.attention(*arrays, return_lse=True, return_info=True, **options)


@cache
def case_of(name):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = CASES[name]
    arrays = clustered(np.random.default_rng(40), *shape)
    return arrays, options, reference.xattention_attention(*arrays, return_margin=True, **options)


def test_a_score_is_the_mean_over_the_visible_pairs_of_an_antidiagonal():
    rng = np.random.default_rng(39)
    query, key = rng.normal(size=(2, 8, 5))
    scores = antidiagonal_scores(query, key, np.arange(1, 9), 4)
    assert scores[1, 0] == pytest.approx(np.mean([query[4 + i] @ key[3 - i] for i in range(4)]))
    assert scores[1, 1] == pytest.approx(np.mean([query[7 - i] @ key[4 + i] for i in range(2)]))  # the others are later
    assert scores[0, 1] == -np.inf
    low = antidiagonal_scores(query, key, np.arange(1, 9), 4, softcap=0.1)
    assert low[0, 1] == -np.inf and low[1, 0] == pytest.approx(0.1 * np.tanh(scores[1, 0] / 0.1))


@pytest.mark.parametrize("case", CASES)
def test_xattention_equals_its_oracle(isa, case):
    arrays, options, expected = case_of(case)
    actual = xattention(arrays, **options)
    assert actual[2].path == "xattention"
    assert assert_clear_equal(actual, expected) > 0.8


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 200), st.integers(-50, 600),
       st.sampled_from([1, 7, 64]), st.sampled_from([4, 8, 16]), st.floats(0.01, 0.99))
def test_xattention_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, stride, threshold):
    arrays = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    expected = reference.xattention_attention(*arrays, stride=stride, threshold=threshold, return_margin=True)
    if arrays[1].shape[2] >= 256:  # else exact
        assert_clear_equal(xattention(arrays, stride, threshold), expected)
    else:
        np.testing.assert_array_equal(expected[2], reference.dense.visible_count(queries, arrays[1].shape[2], True)[None, None]
                                      .repeat(heads[0], axis=1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_xattention_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    arrays = [a.astype(dtype) for a in clustered(np.random.default_rng(41), 4, 2, 300, 900, 32)]
    if layout != "contiguous":
        arrays = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in arrays]
    wide = [a.astype(np.float32) for a in arrays]
    expected = reference.xattention_attention(*wide, stride=8, threshold=0.8, return_margin=True)
    assert assert_clear_equal(xattention(arrays, 8, 0.8), expected, atol=0.03) > 0.8


def test_a_threshold_near_one_is_exact_attention():
    arrays = clustered(np.random.default_rng(42), 2, 1, 500, 700, 4)
    scaled = [arrays[0] / 100, *arrays[1:]]  # all scores are alike: no block can be spared
    np.testing.assert_allclose(xattention(scaled, 8, 1 - 1e-6)[0], icecore.attention(*scaled, causal=True), atol=2e-5)


def test_a_higher_threshold_takes_more_keys_and_is_nearer():
    arrays = clustered(np.random.default_rng(43), 2, 1, 600, 1500, 32)
    exact = icecore.attention(*arrays, causal=True)
    found = [xattention(arrays, 8, threshold) for threshold in (0.3, 0.7, 0.95)]
    errors = [np.abs(out - exact).mean() for out, _, _ in found]
    counts = [info.near_keys for _, _, info in found]
    assert errors[0] > errors[1] > errors[2]
    assert np.all(counts[0] <= counts[1]) and np.all(counts[1] <= counts[2]) and counts[0].sum() < counts[2].sum()


@settings(max_examples=15)
@given(st.integers(0, 1099), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_earlier_block_of_rows(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 1100, 1100, 16)
    whole = xattention((q, k, v), 8, 0.7)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = xattention((q, k, v), 8, 0.7)[0]
    unchanged = first // 48 * 48
    np.testing.assert_array_equal(again[:, :, :unchanged], whole[:, :, :unchanged])
    assert np.isfinite(again[:, :, :first]).all()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [40, 500, 900])
def test_a_key_that_is_not_finite_stays_with_the_rows_that_see_it(isa, place, number):
    q, k, v = clustered(np.random.default_rng(44), 2, 1, 700, 1200, 16)
    k[0, 0, place, 3] = number
    out, _, info = xattention((q, k, v), 8, 0.7)
    expected, _, near, margin = reference.xattention_attention(q, k, v, stride=8, threshold=0.7, return_margin=True)
    clear = margin > 1e-4
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_array_equal(np.isnan(out[clear]), np.isnan(expected[clear]))
    seen = np.arange(500, 1200) >= place
    assert np.isfinite(out[:, :, ~seen]).all()
    if np.isnan(number):
        assert np.isnan(out[:, :, seen]).all()


def test_xattention_of_huge_numbers_ends():
    q, k, v = (a * np.float32(1e25) for a in clustered(np.random.default_rng(45), 1, 1, 300, 600, 16))
    _, _, info = xattention((q, k, v), 16, 0.5)
    np.testing.assert_array_equal(info.near_keys[0, 0], np.arange(301, 601))  # scores overflow: all keys


@pytest.mark.parametrize(("make", "error", "named"), [
    (lambda: XAttention(stride=5), ValueError, "stride must be 4, 8 or 16, got 5"),
    (lambda: XAttention(stride=0), ValueError, "stride must be at least 1, got 0"),
    (lambda: XAttention(stride=8.0), TypeError, "stride must be an integer, got float"),
    (lambda: XAttention(threshold=1), ValueError, "threshold must be above 0 and below 1, got 1"),
    (lambda: XAttention(threshold=0.0), ValueError, "threshold must be above 0 and below 1, got 0.0"),
    (lambda: XAttention(threshold=np.nan), ValueError, "threshold must be above 0 and below 1, got nan"),
    (lambda: XAttention(threshold="0.9"), TypeError, "threshold must be a number, got str"),
    (lambda: XAttention(threshold=True), TypeError, "threshold must be a number, got bool"),
])
def test_wrong_parameters_are_refused(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_it_needs_causal_attention():
    arrays = clustered(np.random.default_rng(47), 1, 1, 9, 9, 4)
    with pytest.raises(ValueError, match="selector='xattention' needs causal=True"):
        icecore.attention(*arrays, selector="xattention")
