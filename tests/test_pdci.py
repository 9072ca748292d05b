"""attention(selector=PDCI): IceFormer's method, against the oracle."""

from functools import cache

import numpy as np
import pytest
from chosen_keys import clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.selectors import PDCI


def assert_pdci_equals(expected, arrays, options):
    """Where keys are clearly told apart; returns the share of these rows."""
    selector, others = PDCI(options["k"], options["visit"]), {n: o for n, o in options.items() if n not in ("k", "visit")}
    out, lse, info = icecore.attention(*arrays, selector=selector, return_lse=True, return_info=True, **others)
    expected, expected_lse, near, margin = expected
    clear = margin > 1e-5
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_allclose(out[clear], expected[clear], atol=2e-5)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=2e-5)
    return clear.mean()


PDCI_CASES = {
    "causal": ((2, 1, 600, 1700, 16), {"k": 20, "visit": 60, "causal": True}),
    "last rows of many keys": ((3, 1, 20, 6000, 32), {"k": 32, "visit": 300, "causal": True}),
    "both ways": ((4, 2, 30, 1500, 16), {"k": 20, "visit": 100}),
    "one key": ((1, 1, 30, 3000, 64), {"k": 1, "visit": 1}),
    "one component": ((2, 1, 30, 900, 1), {"k": 9, "visit": 10, "causal": True}),
    "another seed and scale": ((2, 1, 30, 1500, 9), {"k": 20, "visit": 100, "seed": 2**64 - 1, "scale": -0.3}),
    "more queries than keys": ((1, 1, 700, 600, 8), {"k": 20, "visit": 100, "causal": True}),
    "an offset": ((1, 1, 30, 1500, 16), {"k": 20, "visit": 100}),
    "a soft cap and sink logits": ((2, 1, 30, 1500, 16), {"k": 20, "visit": 100, "softcap": 2.0, "sink_logits": (0.5, -2.0)}),
}


@cache
def pdci_case(case):
    """(oracle's results, arrays, options), once for all instruction sets."""
    shape, options = PDCI_CASES[case]
    q, k, v = clustered(np.random.default_rng(5), *shape)
    k += np.float32(30 if case == "an offset" else 0)
    return reference.pdci_attention(q, k, v, return_margin=True, **options), (q, k, v), options


@pytest.mark.parametrize("case", PDCI_CASES)
def test_pdci_equals_its_oracle(isa, case):
    assert assert_pdci_equals(*pdci_case(case)) > 0.5


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 30), st.integers(0, 1300),
       st.sampled_from([1, 7, 32, 64]), st.integers(1, 100), st.integers(0, 100), st.booleans())
def test_pdci_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, k, visit, causal):
    q, k_, v = clustered(np.random.default_rng(seed), *heads, queries, queries + more, dim)
    options = {"k": k, "visit": k + visit, "causal": causal}
    assert_pdci_equals(reference.pdci_attention(q, k_, v, return_margin=True, **options), (q, k_, v), options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_visiting_all_keys_is_the_exact_top_k(isa, dtype, causal):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    q, k, v = (a.astype(dtype) for a in clustered(np.random.default_rng(6), 4, 2, 100, 1100, 16))
    out, lse, info = icecore.attention(
        q, k, v, selector=PDCI(7, 1100), causal=causal, return_lse=True, return_info=True
    )
    expected, expected_lse, _ = reference.top_k_attention(*(a.astype(np.float32) for a in (q, k, v)), k=7, causal=causal)
    assert info.path == "pdci"
    assert np.all(info.near_keys == 7)
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=2e-5 if dtype == np.float32 else 0.03)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5)


def test_the_usual_number_of_visited_keys():
    q, k, v = clustered(np.random.default_rng(8), 2, 1, 50, 3000, 16)
    for near, visit in ((200, 1600), (20, 1024)):
        usual = icecore.attention(q, k, v, selector=PDCI(near))
        np.testing.assert_array_equal(usual, icecore.attention(q, k, v, selector=PDCI(near, visit)))


def test_visiting_more_keys_finds_more_of_the_best():
    q, k, v = clustered(np.random.default_rng(9), 2, 1, 100, 4000, 32)
    top = reference.top_k_attention(q, k, v, k=16)[0]
    errors = [np.abs(icecore.attention(q, k, v, selector=PDCI(16, n)) - top).mean() for n in (16, 128, 1024, 3000)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.01 * errors[0]


@settings(max_examples=15)
@given(st.integers(0, 1599), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_pdci(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 1600, 1600, 16)
    whole = icecore.attention(q, k, v, selector=PDCI(16, 64), causal=True)
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = icecore.attention(q, k, v, selector=PDCI(16, 64), causal=True)
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_rows_of_a_chunk_are_those_of_the_whole():
    q, k, v = clustered(np.random.default_rng(10), 2, 1, 1600, 1600, 16)
    options = {"selector": PDCI(16, 64), "causal": True}
    whole = icecore.attention(q, k, v, **options)
    for begin, end in ((0, 1), (500, 600), (1023, 1024), (1024, 1600)):
        part = icecore.attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], **options)
        np.testing.assert_array_equal(part, whole[:, :, begin:end])


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_pdci_finds_a_key_that_is_not_finite(isa, number):
    """NaN in any case, infinity where the score is infinite."""
    q, k, v = clustered(np.random.default_rng(11), 1, 1, 200, 1300, 16)
    k[0, 0, 300, 3] = number
    out = icecore.attention(q, k, v, selector=PDCI(16, 64))
    spoiled = (q[0, 0, :, 3] > 0) | np.isnan(number)
    assert np.isnan(out[0, 0, spoiled]).all()
    assert np.isfinite(out[0, 0, ~spoiled]).all()
