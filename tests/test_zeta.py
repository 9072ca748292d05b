"""attention(selector=Zeta()): neighbours on a Z-order curve, against its oracle."""

from functools import cache

import numpy as np
import pytest
from chosen_keys import clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.random import random_directions
from icecore.reference.zeta import AXES, morton_codes, neighbours
from icecore.selectors import Zeta

CASES = {
    "causal": ((4, 2, 300, 900, 32), {"k": 40, "causal": True}),
    "both ways": ((3, 1, 100, 1500, 16), {"k": 33}),
    "one key": ((2, 2, 100, 700, 64), {"k": 1, "causal": True}),
    "more queries than keys": ((2, 1, 500, 400, 16), {"k": 64, "causal": True}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"k": 100, "causal": True}),
    "another seed and a negative scale": ((2, 1, 100, 700, 9), {"k": 20, "seed": 2**64 - 1, "scale": -0.3}),
    "a soft cap and sink logits": ((2, 1, 100, 700, 16), {"k": 20, "softcap": 2.0, "sink_logits": (0.5, -2.0)}),
}


def zeta(arrays, k, **options):
    """(out, lse, info)"""
    return icecore.attention(*arrays, selector=Zeta(k), return_lse=True, return_info=True, **options)


def assert_equal(actual, expected, atol=5e-5):
    out, lse, info = actual
    expected, expected_lse, near = expected
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=atol)
    np.testing.assert_allclose(lse, expected_lse, atol=5e-5)


@cache
def case_of(name):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = CASES[name]
    arrays = clustered(np.random.default_rng(50), *shape)
    return arrays, options, reference.zeta_attention(*arrays, **options)


def test_codes_interleave_the_bits_of_coordinates():
    directions = np.eye(3, 64)
    vectors = np.zeros((3, 64))
    vectors[:, :3] = np.array([(-4, -4, -4), (4, 0, 0), (0, 0, 0)]) / 8  # in standard deviations, which are 1 / 8
    vectors[:, 3] = np.sqrt(np.maximum(1 - (vectors**2).sum(axis=1), 0))
    codes = morton_codes(vectors, directions)
    middle = 0b111 << 27  # the highest bits of three coordinates
    assert codes[0] == 0
    assert codes[1] == middle | sum(1 << 3 * bit for bit in range(9))  # the last cell of the first axis
    assert codes[2] == middle


def test_neighbours_are_those_on_either_side():
    codes = np.array([50, 10, 40, 20, 30])  # sorted: keys 1, 3, 4, 2, 0
    assert neighbours(25, codes, 2).tolist() == [3, 4]
    assert neighbours(30, codes, 3).tolist() == [1, 3, 4]
    assert neighbours(0, codes, 3).tolist() == [1, 3, 4]
    assert neighbours(99, codes, 2).tolist() == [2, 0]
    assert neighbours(99, codes, 9).tolist() == [1, 3, 4, 2, 0]


@pytest.mark.parametrize("case", CASES)
def test_zeta_equals_its_oracle(isa, case):
    arrays, options, expected = case_of(case)
    actual = zeta(arrays, **options)
    assert actual[2].path == "zeta"
    assert_equal(actual, expected)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 130), st.integers(-50, 400),
       st.sampled_from([1, 7, 64]), st.integers(1, 300), st.booleans())
def test_zeta_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, k, causal):
    arrays = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    if k < arrays[1].shape[2]:  # else exact
        assert_equal(zeta(arrays, k, causal=causal), reference.zeta_attention(*arrays, k=k, causal=causal))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_zeta_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    arrays = [a.astype(dtype) for a in clustered(np.random.default_rng(51), 4, 2, 100, 700, 32)]
    if layout != "contiguous":
        arrays = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in arrays]
    expected = reference.zeta_attention(*(a.astype(np.float32) for a in arrays), k=50, causal=True)
    assert_equal(zeta(arrays, 50, causal=True), expected, atol=0.03)


def test_where_three_dimensions_hold_everything_neighbours_hold_most_of_the_mass():
    """What a trained projection would give: vectors that differ along the directions of the projection alone."""
    rng, plane = np.random.default_rng(52), random_directions(0, AXES, 64).astype(np.float64)
    base = 3 * np.linalg.qr(np.c_[plane.T, rng.normal(size=64)])[0][:, 3]
    q, k = (40 * (base + rng.normal(size=(1, 1, n, 3)) * 0.4 @ plane) for n in (200, 4000))
    k /= np.linalg.norm(k, axis=-1, keepdims=True) / 100
    arrays = [a.astype(np.float32) for a in (q, k, rng.normal(size=(1, 1, 4000, 8)))]
    exact, lse = icecore.attention(*arrays, return_lse=True)
    held = [np.exp(zeta(arrays, n)[1] - lse).mean() for n in (100, 1000)]
    chance = [n / 4000 for n in (100, 1000)]
    assert held[0] > 8 * chance[0] and held[1] > 0.8
    assert held[0] < held[1] < 1 and exact.shape == (1, 1, 200, 8)


@settings(max_examples=15)
@given(st.integers(0, 899), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 900, 900, 16)
    whole = zeta((q, k, v), 30, causal=True)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = zeta((q, k, v), 30, causal=True)[0]
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_rows_of_a_chunk_are_those_of_the_whole():
    q, k, v = clustered(np.random.default_rng(53), 2, 1, 700, 700, 16)
    whole = zeta((q, k, v), 30, causal=True)[0]
    for begin, end in ((0, 1), (50, 333), (333, 700)):
        part = zeta((q[:, :, begin:end], k[:, :, :end], v[:, :, :end]), 30, causal=True)[0]
        np.testing.assert_allclose(part, whole[:, :, begin:end], atol=1e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 0.0, 1e18])
def test_keys_without_a_direction_have_a_place(isa, number):
    """In the first cells, or where their finite components lead them: as the oracle has it."""
    q, k, v = clustered(np.random.default_rng(54), 2, 1, 300, 500, 16)
    k[0, 0, 100:140] = number
    q[0, 1, 7] = number
    actual, expected = zeta((q, k, v), 60, causal=True), reference.zeta_attention(q, k, v, k=60, causal=True)
    np.testing.assert_array_equal(actual[2].near_keys, expected[2])
    finite = np.isfinite(expected[0]).all(axis=-1) & (np.abs(expected[1]) < 1e3)
    assert finite.mean() > 0.2
    np.testing.assert_allclose(actual[0][finite], expected[0][finite], atol=5e-5)
    np.testing.assert_array_equal(np.isnan(actual[0]), np.isnan(expected[0]))


def test_equal_keys_are_taken_in_their_order():
    rng = np.random.default_rng(55)
    q, k, v = rng.normal(size=(1, 1, 40, 8)), np.ones((1, 1, 300, 8)), rng.normal(size=(1, 1, 300, 3))
    arrays = [a.astype(np.float32) for a in (q, k, v)]
    assert_equal(zeta(arrays, 21, causal=True), reference.zeta_attention(*arrays, k=21, causal=True))


def test_seeds_give_other_curves():
    arrays = clustered(np.random.default_rng(56), 1, 1, 60, 900, 16)
    first, again, other = (zeta(arrays, 20, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize(("make", "error", "named"), [
    (lambda: Zeta(0), ValueError, "k must be at least 1, got 0"),
    (lambda: Zeta(2.5), TypeError, "k must be an integer, got float"),
    (lambda: Zeta(True), TypeError, "k must be an integer, got a bool"),
])
def test_wrong_parameters_are_refused(make, error, named):
    with pytest.raises(error, match=named):
        make()
