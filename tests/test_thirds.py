"""Panels of float32 in thirds (matrix tiles): exact attention of many rows is as near to float64 as float32's sums are."""

import numpy as np
import pytest
from helpers import as_four, assert_exact, assert_same_bits, inputs, normal, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference

ROWS = 300  # enough for a key head to be packed, whatever the group

OPTIONS = [
    {},
    {"causal": True},
    {"causal": True, "window": 150, "sinks": 5},
    {"window": (40, 90)},
    {"softcap": 4.0},
    {"causal": True, "sink_logits": np.float32([0.5, -1.0, 2.0, -np.inf])},
    {"causal": True, "alibi_slopes": np.float32([0.01, 0.1, 0.5, 0.0])},
    {"attn_mask": normal(1, ROWS, 700) > -0.5},
    {"attn_mask": np.where(normal(1, ROWS, 700) > 1, np.float32(-np.inf), normal(2, ROWS, 700))},
    {"key_ranges": np.sort(np.random.default_rng(3).integers(0, 701, (1, ROWS, 2)))},
]


def attend(arrays, **options):
    return icecore.attention(*arrays, return_lse=True, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "all")
@pytest.mark.parametrize(("dim", "value_dim"), [(32, 16), (64, 64), (96, 80)])
def test_equals_the_float64_oracle(isa, dim, value_dim, options, dtype):
    arrays = inputs((4, ROWS, dim), (2, 700, dim), value_dim, dtype)
    assert_exact(attend(arrays, **options), *arrays, **options)


@pytest.mark.parametrize("rows", [289, 337, 353, 384])
@pytest.mark.parametrize("keys", [1, 31, 33, 128, 129, 257, 1300])
def test_any_number_of_rows_and_keys(isa, rows, keys):
    arrays = inputs((rows, 64), (keys, 64), 64)
    for options in ({}, {"causal": True}):
        assert_exact(attend(arrays, **options), *arrays, **options)


@pytest.mark.parametrize("rise", [-0.5, 0.02, 0.5, 3.0])
def test_scores_that_rise_or_fall_along_the_keys(isa, rise):
    """By a little, or by far more than a softmax's reference may lag behind: weights in thirds are rescaled."""
    query, key, value = inputs((2, ROWS, 64), (2, 400, 64), 32)
    query[..., 0] = 1 + np.arange(ROWS) % 7
    key[..., 0] = rise * np.arange(400)
    for options in ({}, {"causal": True}):
        assert_exact(attend((query, key, value), **options), query, key, value, **options)


@settings(max_examples=40)
@given(
    sizes=st.tuples(*[st.sampled_from([1e-38, 1e-30, 1e-18, 1.0, 1e10, 1e18, 1e30])] * 3),
    blocks=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1e-30, 1e-8, 1e8, 1e30])), max_size=3),
    causal=st.booleans(),
)
def test_numbers_of_any_magnitude(isa, sizes, blocks, causal):
    """What thirds do not hold, whole blocks of it or all of it, is multiplied as it is."""
    query, key, value = (array * np.float32(size) for array, size in zip(inputs((ROWS, 32), (700, 32), 32), sizes, strict=True))
    for block, factor in blocks:
        rows = slice(128 * block, 128 * (block + 1))
        with np.errstate(over="ignore"):
            value[rows] = np.clip(value[rows] * np.float32(factor), -1e35, 1e35)
            key[rows] = np.clip(key[rows] * np.float32(factor), -1e35, 1e35)
    product = float(np.abs(query).max()) * float(np.abs(key).max())
    scale = 1 / max(1.0, product)
    if not 1e-36 < scale:
        return  # refused: not a normal number
    options = {"causal": causal, "scale": scale}
    assert_exact(attend((query, key, value), **options), query, key, value, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_rows_do_not_see_may_be_anything(isa, bad):
    query, key, value = inputs((ROWS, 64), (ROWS, 64), 64)
    clean = attend((query, key, value), causal=True)
    key[200, 3] = value[210, 5] = bad
    dirty = attend((query, key, value), causal=True)
    for expected, found in zip(clean, dirty, strict=True):
        np.testing.assert_allclose(found[:200], expected[:200], rtol=2e-5, atol=2e-6)
    assert np.isnan(dirty[0][210:, 5]).any() or np.isinf(dirty[0][210:, 5]).any()


def test_a_row_that_is_not_finite_leaves_the_others_alone(isa):
    query, key, value = inputs((ROWS, 64), (500, 64), 64)
    clean = attend((query, key, value))
    query[100, 3] = np.nan
    out, lse = attend((query, key, value))
    others = np.arange(ROWS) != 100
    assert np.isnan(out[100]).all()
    np.testing.assert_allclose(out[others], clean[0][others], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(lse[others], clean[1][others], rtol=2e-6, atol=2e-6)


def test_same_bits_for_any_threads(isa):
    arrays = inputs((3, 900, 64), (3, 1500, 64), 64)
    for options in ({}, {"causal": True, "window": 1100, "sinks": 5}):
        results = []
        for threads in (1, 2, 7):
            with icecore.threads(threads):
                results.append(attend(arrays, **options))
        for result in results[1:]:
            for expected, found in zip(results[0], result, strict=True):
                assert_same_bits(found, expected)


def test_error_does_not_grow_with_the_keys(isa):
    """As it would if all keys' products were added to one sum: with equal weights and values of one sign."""
    errors = []
    for keys in (1024, 32768):
        query, key, value = inputs((ROWS, 32), (keys, 32), 16)
        arrays = query * np.float32(0.01), key, np.abs(value)
        expected, _ = reference.attention(*(as_four(array) for array in arrays))
        errors.append(relative_error(icecore.attention(*arrays), expected[0, 0]))
    assert errors[1] <= 4e-7
