"""Rows in 8 or 4 bits: codes and scales are the oracle's, errors within half a scale, rounding twice is rounding once."""

import numpy as np
import pytest
from helpers import QUANTIZED, segment
from hypothesis import given, settings
from hypothesis import strategies as st

from icecore import reference

STORAGE = {bits: storage for storage, bits in QUANTIZED.items()}
LARGEST = {8: 127, 4: 7}
both = pytest.mark.parametrize("bits", STORAGE)


def core(rows, bits):
    """Codes and scales of the core, in the order of the input."""
    arrays = segment(rows, np.zeros((len(rows), 1), np.float32), 16, 0, storage=STORAGE[bits])
    found = [np.empty_like(part) for part in arrays["keys"]]
    for target, part in zip(found, arrays["keys"], strict=True):
        target[arrays["order"]] = part
    return found


def numbers(count, dim, seed=0, low=0, high=0):
    """Normal numbers, each row times a power of two between 2**low and 2**high."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, dim), np.float32)
    return np.ldexp(rows, generator.integers(low, high + 1, (count, 1))).astype(np.float32)


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 64, 130])
@pytest.mark.parametrize("powers", [(0, 0), (-60, 60)], ids=str)
@both
def test_codes_and_scales_of_the_oracle(isa, bits, dim, powers):
    rows = numbers(300, dim, 1, *powers)
    codes, scales = core(rows, bits)
    expected_codes, expected_scales = reference.quantize(rows, bits)
    np.testing.assert_array_equal(scales, expected_scales)
    assert (codes == expected_codes).mean() > 0.999  # float32 rounds the quotient: one halfway may go either way
    assert np.abs(codes.astype(int) - expected_codes).max() <= 1


@both
@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(-100, 0), st.integers(0, 100))
def test_errors_are_within_half_a_scale(bits, dim, seed, low, high):
    rows = numbers(20, dim, seed, low, high)
    for codes, scales in (core(rows, bits), reference.quantize(rows, bits)):
        step = np.repeat(scales.astype(np.float64), 16, axis=1)[:, :dim]
        error = np.abs(reference.dequantize(codes, scales, bits)[:, :dim] - rows)
        assert (error <= (1 if bits == 8 else 16) * 0.5001 * step).all()  # of 16 codes, with 4 bits
        assert np.abs(codes.astype(int)).max() <= LARGEST[bits]


@both
@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(-100, 0), st.integers(0, 100))
def test_rounding_twice_is_rounding_once(bits, dim, seed, low, high):
    rows = numbers(20, dim, seed, low, high)
    for rounding in (core, reference.quantize):
        codes, scales = rounding(rows, bits)
        again = rounding(reference.dequantize(codes, scales, bits).astype(np.float32), bits)
        np.testing.assert_array_equal(again[0], codes)
        np.testing.assert_array_equal(again[1], scales)


@both
def test_nan_inf_and_tiny_numbers(isa, bits):
    rows = numbers(5, 40)
    rows[0, 3], rows[1, 20], rows[2, 39], rows[3] = np.nan, np.inf, -np.inf, 1e-40
    rows[4] = np.float32(3.4e38) * np.sign(rows[4])
    codes, scales = core(rows, bits)
    np.testing.assert_array_equal(np.isnan(scales), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(scales, reference.quantize(rows, bits)[1])
    assert not codes[3].any()
    assert not scales[3].any()
    rounded = reference.dequantize(codes, scales, bits)[4, :40]
    np.testing.assert_allclose(rounded, rows[4].astype(np.float64), rtol=0.005 if bits == 8 else 0.6)


@both
def test_means_and_spreads_are_those_of_what_is_stored(isa, bits):
    key, value = numbers(200, 33, 2), numbers(200, 20, 3)
    rounded = [reference.quantized(a, bits).astype(np.float32) for a in (key, value)]
    ours, plain = segment(*rounded, 8, 1, storage=STORAGE[bits]), segment(*rounded, 8, 1)
    np.testing.assert_array_equal(ours["order"], plain["order"])
    for nodes in ("cell", "parent"):
        np.testing.assert_array_equal(ours[nodes]["offset"], plain[nodes]["offset"])
        for name in ("mean_key", "mean_value", "variance", "radius", "log2_count", "log2_weight"):
            np.testing.assert_allclose(ours[nodes][name], plain[nodes][name], rtol=1e-4, atol=1e-5)
