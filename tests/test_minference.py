"""attention(selector=MInference or BlockSparse): lines that the last queries vote for, and blocks by their means."""

from functools import cache

import numpy as np
import pytest
from chosen_keys import assert_clear_equal, clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.selectors import BlockSparse, MInference

# ---- Vertical and slash lines ----


MINFERENCE_CASES = {
    "prefill": ((3, 1, 500, 500, 32), {"vertical": 60, "slash": 130}),
    "a chunk": ((4, 2, 130, 900, 16), {"vertical": 50, "slash": 120}),
    "more queries than keys": ((2, 2, 300, 200, 16), {"vertical": 40, "slash": 110}),
    "lines that are always there": ((2, 1, 400, 400, 7), {"vertical": 30, "slash": 100}),
    "one line of each": ((2, 1, 200, 400, 7), {"vertical": 1, "slash": 1}),
    "fewer queries than vote": ((6, 2, 20, 700, 16), {"vertical": 70, "slash": 120}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"vertical": 100, "slash": 130}),
    "a scale": ((2, 1, 300, 500, 16), {"vertical": 60, "slash": 120, "scale": -0.4}),
    "a soft cap": ((2, 1, 300, 500, 16), {"vertical": 60, "slash": 120, "softcap": 2.0}),
    "sink logits": ((2, 1, 300, 500, 16), {"vertical": 60, "slash": 120, "sink_logits": (0.5, -2.0)}),
}


def minference(arrays, vertical, slash, **options):
    """(out, lse, info)"""
    options |= {"selector": MInference(vertical, slash), "causal": True}
    return icecore.attention(*arrays, return_lse=True, return_info=True, **options)


@cache
def minference_case(case):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = MINFERENCE_CASES[case]
    given = clustered(np.random.default_rng(21), *shape)
    return given, options, reference.minference_attention(*given, return_margin=True, **options)


@pytest.mark.parametrize("case", MINFERENCE_CASES)
def test_minference_equals_its_oracle(isa, case):
    given, options, expected = minference_case(case)
    actual = minference(given, **options)
    assert actual[2].path == "minference"
    assert assert_clear_equal(actual, expected) >= 0.5


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 200), st.integers(-50, 300),
       st.sampled_from([1, 7, 64]), st.integers(1, 200), st.integers(1, 300))
def test_minference_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, vertical, slash):
    given = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    if max(vertical, slash) < given[1].shape[2]:  # else exact
        expected = reference.minference_attention(*given, vertical=vertical, slash=slash, return_margin=True)
        assert_clear_equal(minference(given, vertical, slash), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_minference_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    given = [a.astype(dtype) for a in clustered(np.random.default_rng(22), 4, 2, 300, 400, 32)]
    if layout != "contiguous":
        given = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in given]
    wide = [a.astype(np.float32) for a in given]
    expected = reference.minference_attention(*wide, vertical=50, slash=120, return_margin=True)
    assert assert_clear_equal(minference(given, 50, 120), expected, atol=0.03) >= 0.5


def test_all_lines_are_exact_attention():
    given = clustered(np.random.default_rng(23), 2, 1, 300, 300, 16)
    exact = icecore.attention(*given, causal=True)
    for vertical, slash in ((300, 1), (1, 300), (299, 299)):
        np.testing.assert_allclose(minference(given, vertical, slash)[0], exact, atol=2e-5)


def test_every_entry_of_a_batch_elects_its_own_lines():
    entries = [clustered(np.random.default_rng(seed), 2, 1, 200, 300, 16) for seed in (24, 25)]
    given = [np.concatenate(each) for each in zip(*entries, strict=True)]
    both = icecore.attention(*given, selector=MInference(40, 110), causal=True)
    for entry in range(2):
        alone = icecore.attention(*(a[entry : entry + 1] for a in given), selector=MInference(40, 110), causal=True)
        np.testing.assert_array_equal(both[entry], alone[0])


def test_a_key_without_votes_is_dropped_whatever_it_holds():
    """Queries that see the NaN do not vote; among the others some elect lines that pass it by."""
    q, k, v = clustered(np.random.default_rng(26), 1, 1, 300, 300, 16)
    k[0, 0, 270] = np.nan
    options = {"vertical": 40, "slash": 101}
    expected, _, near = reference.minference_attention(q, k, v, **options)
    out, _, info = minference((q, k, v), **options)
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    assert np.isfinite(out[0, 0, :270]).all() and np.isnan(out[0, 0, 270:]).all()


# ---- Blocks by their means ----


BLOCK_SPARSE_CASES = {
    "prefill": ((3, 1, 700, 700, 32), {"k": 128, "causal": True}),
    "a chunk": ((4, 2, 130, 900, 16), {"k": 100, "causal": True}),
    "both ways": ((4, 2, 130, 900, 16), {"k": 65}),
    "more queries than keys": ((2, 2, 500, 400, 16), {"k": 1, "causal": True}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"k": 256, "causal": True}),
    "another scale": ((2, 1, 300, 500, 7), {"k": 128, "scale": -0.4}),
    "a soft cap and sink logits": ((2, 1, 300, 500, 16), {"k": 64, "softcap": 2.0, "sink_logits": (1.0, -2.0)}),
}


def block_sparse(arrays, k, **options):
    """(out, lse, info)"""
    return icecore.attention(*arrays, selector=BlockSparse(k), return_lse=True, return_info=True, **options)


@cache
def block_sparse_case(case):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = BLOCK_SPARSE_CASES[case]
    given = clustered(np.random.default_rng(28), *shape)
    return given, options, reference.block_sparse_attention(*given, return_margin=True, **options)


@pytest.mark.parametrize("case", BLOCK_SPARSE_CASES)
def test_block_sparse_equals_its_oracle(isa, case):
    given, options, expected = block_sparse_case(case)
    actual = block_sparse(given, **options)
    assert actual[2].path == "block_sparse"
    assert assert_clear_equal(actual, expected) > 0.9


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 200), st.integers(-50, 400),
       st.sampled_from([1, 7, 64]), st.integers(1, 300), st.booleans())
def test_block_sparse_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, k, causal):
    given = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    if k < given[1].shape[2]:  # else exact
        expected = reference.block_sparse_attention(*given, k=k, causal=causal, return_margin=True)
        assert_clear_equal(block_sparse(given, k, causal=causal), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_block_sparse_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    given = [a.astype(dtype) for a in clustered(np.random.default_rng(29), 4, 2, 300, 700, 32)]
    if layout != "contiguous":
        given = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in given]
    wide = [a.astype(np.float32) for a in given]
    expected = reference.block_sparse_attention(*wide, k=128, causal=True, return_margin=True)
    assert assert_clear_equal(block_sparse(given, 128, causal=True), expected, atol=0.03) > 0.9


@settings(max_examples=15)
@given(st.integers(0, 899), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_block_sparse(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 900, 900, 16)
    whole = block_sparse((q, k, v), 100, causal=True)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = block_sparse((q, k, v), 100, causal=True)[0]
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_a_nan_in_a_block_reaches_the_rows_that_see_it():
    q, k, v = clustered(np.random.default_rng(30), 2, 1, 500, 500, 16)
    k[0, 0, 200, 3] = np.nan
    out = block_sparse((q, k, v), 64, causal=True)[0]
    assert np.isfinite(out[:, :, :200]).all() and np.isnan(out[:, :, 200:]).all()
