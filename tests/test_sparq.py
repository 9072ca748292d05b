"""attention(selector=SparQ()): keys by approximate scores and one mean for the rest, against its oracle."""

from functools import cache

import numpy as np
import pytest
from chosen_keys import assert_clear_equal, clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.selectors import SparQ

CASES = {
    "causal": ((3, 1, 300, 900, 32), {"k": 40, "components": 8, "local": 10, "causal": True}),
    "both ways": ((4, 2, 130, 700, 16), {"k": 30, "components": 5, "local": 0}),
    "only the last keys": ((2, 1, 130, 700, 16), {"k": 30, "components": 5, "local": 30, "causal": True}),
    "more queries than keys": ((2, 2, 300, 200, 16), {"k": 20, "components": 4, "local": 7, "causal": True}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"k": 64, "components": 16, "local": 16, "causal": True}),
    "one component": ((2, 1, 30, 400, 1), {"k": 9, "components": 4, "local": 3}),
    "one key": ((2, 1, 30, 400, 7), {"k": 1, "components": 1, "local": 0}),
    "a scale": ((2, 1, 60, 500, 16), {"k": 30, "components": 6, "local": 4, "scale": -0.4}),
    "a soft cap": ((2, 1, 60, 500, 16), {"k": 30, "components": 6, "local": 4, "softcap": 2.0}),
    "sink logits": ((2, 1, 60, 500, 16), {"k": 30, "components": 6, "local": 4, "sink_logits": (0.5, -2.0)}),
}


def sparq(arrays, k, components, local, **options):
    """(out, lse, info)"""
    selector = SparQ(k, components, local)
    return icecore.attention(*arrays, selector=selector, return_lse=True, return_info=True, **options)


@cache
def case_of(case):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = CASES[case]
    given = clustered(np.random.default_rng(1), *shape)
    return given, options, reference.sparq_attention(*given, return_margin=True, **options)


@pytest.mark.parametrize("case", CASES)
def test_sparq_equals_its_oracle(isa, case):
    given, options, expected = case_of(case)
    actual = sparq(given, **options)
    assert actual[2].path == "sparq"
    assert assert_clear_equal(actual, expected) >= 0.5


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 130), st.integers(-50, 500),
       st.sampled_from([1, 7, 64]), st.integers(1, 300), st.integers(0, 300), st.integers(1, 80), st.booleans())
def test_sparq_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, k, local, components, causal):
    given = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    if k < given[1].shape[2]:  # else exact
        options = {"k": k, "components": components, "local": min(local, k), "causal": causal}
        assert_clear_equal(sparq(given, **options), reference.sparq_attention(*given, return_margin=True, **options))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_sparq_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    given = [a.astype(dtype) for a in clustered(np.random.default_rng(2), 4, 2, 100, 500, 32)]
    if layout != "contiguous":
        given = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in given]
    wide = [a.astype(np.float32) for a in given]
    expected = reference.sparq_attention(*wide, k=30, components=8, local=5, causal=True, return_margin=True)
    assert assert_clear_equal(sparq(given, 30, 8, 5, causal=True), expected, atol=0.03) >= 0.5


def test_with_all_components_the_mass_is_exact():
    """Scores are then exact, and so is lse: the mean has the weight of what is left out."""
    given = clustered(np.random.default_rng(3), 2, 1, 50, 900, 16)
    exact, exact_lse = icecore.attention(*given, return_lse=True)
    out, lse, _ = sparq(given, 100, 16, 0)
    top = icecore.attention(*given, selector=icecore.selectors.TopK(100))
    np.testing.assert_allclose(lse, exact_lse, atol=1e-4)
    assert np.abs(out - exact).mean() < np.abs(top - exact).mean()


def test_where_no_component_differs_the_rest_has_its_share():
    """Keys that are all alike: of 400, 100 are chosen, and the mean has three quarters of the weight."""
    q, k, v = clustered(np.random.default_rng(4), 2, 1, 20, 400, 16)
    out, _, _ = sparq((q, np.repeat(k[:, :, :1], 400, axis=2), v), 100, 4, 20)
    chosen = np.r_[v[0, 0, :80], v[0, 0, -20:]].mean(axis=0)
    np.testing.assert_allclose(out, np.broadcast_to(0.25 * chosen + 0.75 * v[0, 0].mean(axis=0), out.shape), atol=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 899), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_sparq(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 900, 900, 16)
    whole = sparq((q, k, v), 30, 4, 8, causal=True)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = sparq((q, k, v), 30, 4, 8, causal=True)[0]
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_rows_of_a_chunk_are_those_of_the_whole():
    q, k, v = clustered(np.random.default_rng(5), 2, 1, 900, 900, 16)
    whole = sparq((q, k, v), 30, 4, 8, causal=True)[0]
    for begin, end in ((0, 1), (200, 300), (511, 512), (512, 900)):
        part = sparq((q[:, :, begin:end], k[:, :, :end], v[:, :, :end]), 30, 4, 8, causal=True)[0]
        np.testing.assert_array_equal(part, whole[:, :, begin:end])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_key_that_is_not_finite_spoils_the_rows_that_read_it(isa, number, softcap):
    """NaN where its component is read; where it is not, the key counts by its other components."""
    given = clustered(np.random.default_rng(6), 2, 1, 60, 700, 16)
    given[1][0, 0, 300, 3] = number
    out, _, info = sparq(given, 30, 5, 4, softcap=softcap)
    expected, _, near, margin = reference.sparq_attention(
        *given, k=30, components=5, local=4, softcap=softcap, return_margin=True
    )
    read = reference.top_k.largest(np.abs(given[0]), 5)[0, :, :, 3]
    assert 0.1 < read.mean() < 0.9
    clear = margin > 1e-4
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_array_equal(np.isnan(out[clear]), np.isnan(expected[clear]))
    assert np.isnan(out[0, read]).all() or not np.isnan(number)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_queries_and_values_that_are_not_finite_stay_with_the_rows_that_see_them(isa, number):
    given = clustered(np.random.default_rng(7), 2, 1, 300, 300, 16)
    given[0][0, 0, 150], given[0][0, 1, 50, 2], given[2][0, 0, 250, 1] = number, number, number
    out = sparq(given, 30, 5, 4, causal=True)[0]
    wrong = ~np.isfinite(out)
    assert wrong[0, 0, 150].all() and wrong[0, 1, 50].all() and wrong[0, :, 250:, 1].all()
    wrong[0, 0, 150], wrong[0, 1, 50], wrong[0, :, 250:, 1] = False, False, False
    assert not wrong.any()


def test_huge_tiny_and_empty_inputs():
    for factor in (0.0, 1e-38, 1e18):
        q, k, v = clustered(np.random.default_rng(8), 1, 1, 20, 300, 16)
        q, k = (q * np.float32(factor)).astype(np.float32), k
        out, lse, _ = sparq((q, k, v), 30, 5, 4)
        assert np.isfinite(out).all() and np.isfinite(lse).all()
        assert np.abs(out).max() <= np.abs(v).max() * 1.001
    none = [np.ones((1, 1, n, 4), np.float32) for n in (0, 9, 9)]
    assert sparq(none, 3, 2, 1)[0].shape == (1, 1, 0, 4)


@pytest.mark.parametrize(("make", "error", "named"), [
    (lambda: SparQ(0), ValueError, "k must be at least 1, got 0"),
    (lambda: SparQ(components=0), ValueError, "components must be at least 1, got 0"),
    (lambda: SparQ(local=-1), ValueError, "local must be at least 0, got -1"),
    (lambda: SparQ(20, local=21), ValueError, "local must be at most k=20, got 21"),
    (lambda: SparQ(components=2.5), TypeError, "components must be an integer, got float"),
])
def test_wrong_parameters_are_refused(make, error, named):
    with pytest.raises(error, match=named):
        make()
