"""attention(selector=MagicPIG()): keys sampled by collisions of hashes, against the oracle with the same directions."""

from functools import cache
from math import comb

import numpy as np
import pytest
from chosen_keys import clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.magicpig import sampling_probability
from icecore.selectors import MagicPIG

CASES = {
    "causal": ((3, 1, 200, 500, 32), {"bits": 4, "tables": 8, "sinks": 4, "local": 20, "causal": True}),
    "both ways": ((4, 2, 130, 400, 16), {"bits": 3, "tables": 6, "sinks": 0, "local": 1}),
    "more queries than keys": ((2, 2, 300, 200, 16), {"bits": 4, "tables": 6, "sinks": 2, "local": 9, "causal": True}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"bits": 5, "tables": 12, "sinks": 4, "local": 64, "causal": True}),
    "one component": ((2, 1, 30, 200, 1), {"bits": 1, "tables": 2, "sinks": 0, "local": 3}),
    "many bits": ((2, 1, 30, 100, 16), {"bits": 16, "tables": 3, "sinks": 0, "local": 3}),
    "another seed": ((2, 1, 60, 300, 9), {"bits": 4, "tables": 8, "sinks": 3, "local": 5, "seed": 2**64 - 1}),
    "a scale": ((2, 1, 60, 300, 9), {"bits": 4, "tables": 8, "sinks": 3, "local": 5, "scale": -0.4}),
    "a soft cap": ((2, 1, 60, 300, 16), {"bits": 4, "tables": 8, "sinks": 3, "local": 5, "softcap": 2.0}),
    "sink logits": ((2, 1, 60, 300, 16), {"bits": 4, "tables": 8, "sinks": 3, "local": 5, "sink_logits": (0.5, -2.0)}),
}


def magicpig(arrays, bits, tables, sinks, local, **options):
    """(out, lse, info)"""
    selector = MagicPIG(bits, tables, sinks, local)
    return icecore.attention(*arrays, selector=selector, return_lse=True, return_info=True, **options)


def assert_equal(actual, expected, atol=5e-5, lse_atol=5e-5, excused=0.0):
    """Where rounding changes no sign of a projection, but for a share of these rows; returns the share of these rows."""
    (out, lse, info), (expected, expected_lse, near, margin) = actual, expected
    clear = margin > 1e-6
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    off = (np.abs(out.astype(np.float64) - expected) > atol + 1e-7 * np.abs(expected)).any(axis=-1)
    with np.errstate(invalid="ignore"):  # -inf less -inf
        off |= np.abs(lse - expected_lse) > lse_atol + 1e-7 * np.abs(expected_lse)
    assert off[clear].sum() <= (max(1, excused * clear.sum()) if excused else 0)
    return clear.mean()


@cache
def case_of(case):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = CASES[case]
    given = clustered(np.random.default_rng(1), *shape)
    return given, options, reference.magicpig_attention(*given, return_margin=True, **options)


@pytest.mark.parametrize("case", CASES)
def test_magicpig_equals_its_oracle(isa, case):
    given, options, expected = case_of(case)
    actual = magicpig(given, **options)
    assert actual[2].path == "magicpig"
    assert assert_equal(actual, expected) >= 0.4
    assert (actual[2].near_keys < given[1].shape[2]).any()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 100), st.integers(-50, 300),
       st.sampled_from([3, 7, 64]), st.integers(1, 6), st.integers(2, 10), st.integers(0, 90), st.integers(1, 90),
       st.booleans())
def test_magicpig_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, bits, tables, sinks, local, causal):
    """Cosines are differences of scores: those of keys next to the centre, or near 1, have fewer digits. Hardly any the weights
    of keys almost opposite to their query, which in few dimensions now and then collide in spite of that."""
    given = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    if sinks + local < given[1].shape[2]:  # else exact
        options = {"bits": bits, "tables": tables, "sinks": sinks, "local": local, "causal": causal, "seed": seed}
        expected = reference.magicpig_attention(*given, return_margin=True, **options)
        assert_equal(magicpig(given, **options), expected, atol=2e-3, lse_atol=2e-3, excused=0.03)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_magicpig_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    given = [a.astype(dtype) for a in clustered(np.random.default_rng(2), 4, 2, 60, 200, 32)]
    if layout != "contiguous":
        given = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in given]
    wide = [a.astype(np.float32) for a in given]
    options = {"bits": 4, "tables": 6, "sinks": 3, "local": 5, "causal": True}
    expected = reference.magicpig_attention(*wide, return_margin=True, **options)
    assert assert_equal(magicpig(given, **options), expected, atol=0.03) >= 0.4


def test_probabilities_are_those_of_two_collisions():
    for bits, tables in ((1, 2), (3, 7), (10, 150)):
        for angle in (0.0, 0.4, 1.5, 2.5):
            same = (1 - angle / np.pi) ** bits
            several = sum(comb(tables, n) * same**n * (1 - same) ** (tables - n) for n in range(2, tables + 1))
            np.testing.assert_allclose(sampling_probability(np.cos(angle), bits, tables), several, rtol=1e-6)


def test_sums_are_right_on_average_over_seeds():
    q, k, v = clustered(np.random.default_rng(3), 1, 1, 40, 300, 16)
    q *= 0.2  # so that no key has nearly all of the weight
    exact, exact_lse = icecore.attention(q, k, v, return_lse=True)
    outs, shares = [], []
    for seed in range(200):
        out, lse, info = magicpig((q, k, v), 3, 8, 2, 4, seed=seed)
        assert info.near_keys.mean() < 200
        shares.append(np.exp(lse - exact_lse))
        outs.append(out)
    mean, deviation = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(len(shares))
    assert np.abs((mean - 1) / deviation).max() < 5
    assert np.abs(np.mean(outs, axis=0) - exact).mean() < 0.2 * np.abs(outs[0] - exact).mean()


@settings(max_examples=15)
@given(st.integers(0, 599), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_magicpig(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 600, 600, 16)
    whole = magicpig((q, k, v), 4, 8, 4, 9, causal=True)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = magicpig((q, k, v), 4, 8, 4, 9, causal=True)[0]
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_an_offset_of_all_keys_changes_nothing():
    """Not causal: keys are hashed less their mean, and no softmax sees what all scores have in common."""
    q, k, v = clustered(np.random.default_rng(4), 2, 1, 50, 400, 16)
    out, _, info = magicpig((q, k, v), 4, 8, 4, 9)
    moved, _, moved_info = magicpig((q, k + np.float32(2), v), 4, 8, 4, 9)
    same = info.near_keys == moved_info.near_keys
    assert same.mean() > 0.9
    np.testing.assert_allclose(moved[same], out[same], atol=1e-3)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_key_that_is_not_finite_is_attended_to(isa, number, softcap):
    """It has no part in centres: other keys count as without it."""
    given = clustered(np.random.default_rng(5), 2, 1, 60, 300, 16)
    given[1][0, 0, 200, 3] = number
    options = {"bits": 4, "tables": 8, "sinks": 4, "local": 9, "softcap": softcap}
    out, _, info = magicpig(given, **options)
    expected, _, near, margin = reference.magicpig_attention(*given, return_margin=True, **options)
    clear = margin > 1e-6
    assert clear.any()
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_array_equal(np.isnan(out[clear]), np.isnan(expected[clear]))
    finite = clear & np.isfinite(expected).all(axis=-1)
    np.testing.assert_allclose(out[finite], expected[finite], atol=2e-5)
    assert np.isnan(out).all() or not np.isnan(number)


def test_nothing_but_such_keys_queries_or_zeros():
    for number in (np.nan, np.inf, 0.0, 1e30):
        q, k, v = clustered(np.random.default_rng(6), 1, 1, 30, 100, 8)
        for arrays in ((q, np.full_like(k, number), v), (np.full_like(q, number), k, v)):
            out, _, info = magicpig(arrays, 4, 8, 4, 9, causal=True)
            assert (info.near_keys >= 9).all()
            assert np.isfinite(out).all() == (number == 0 or number == 1e30)


@pytest.mark.parametrize(("make", "error", "named"), [
    (lambda: MagicPIG(0), ValueError, "bits must be at least 1, got 0"),
    (lambda: MagicPIG(17), ValueError, "bits must be at most 16, got 17"),
    (lambda: MagicPIG(tables=1), ValueError, "tables must be at least 2, got 1"),
    (lambda: MagicPIG(tables=5000), ValueError, "tables must be at most 4096, got 5000"),
    (lambda: MagicPIG(sinks=-1), ValueError, "sinks must be at least 0, got -1"),
    (lambda: MagicPIG(local=0), ValueError, "local must be at least 1, got 0"),
    (lambda: MagicPIG(bits=2.5), TypeError, "bits must be an integer, got float"),
])
def test_wrong_parameters_are_refused(make, error, named):
    with pytest.raises(error, match=named):
        make()
