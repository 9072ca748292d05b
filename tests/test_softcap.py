"""softcap=: scores become softcap tanh(scores / softcap) before masks and softmax, on every path."""

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, decode, encode, head_error, inputs, near_far, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from score_options import assert_equals_the_oracle, assert_listed_keys_equal_the_oracle, attended_in_chunks, draw_problem

import icecore
from icecore import reference


@st.composite
def problems(draw):
    """(query, key, value, options); queries large enough that scores reach from a small part of the cap to far beyond it."""
    query, key, value, options = draw_problem(draw, dims=[1, 5, 32, 64, 65], value_dims=[1, 7, 16, 64, 96])
    return query, key, value, options | {
        "softcap": draw(st.sampled_from([1e-30, 1e-3, 0.5, 3.0, 50.0, 1e4, 1e30])),
        "scale": draw(st.sampled_from([None, None, 0.0, -0.3, 3.0])),
    }


@settings(max_examples=60)
@given(problems())
def test_equals_the_float64_oracle(isa, problem):
    assert_equals_the_oracle(*problem)


@pytest.mark.parametrize("size", [1e-3, 1.0, 10.0, 100.0, 1e4])
def test_float32_is_within_1e_5_whatever_the_scores(isa, size):
    query, key, value = inputs((2, 60, 64), (2, 500, 64), 32)
    query *= np.float32(size)
    out, _ = reference.attention(query[None], key[None], value[None], softcap=5.0)
    np.testing.assert_allclose(icecore.attention(query, key, value, softcap=5.0), out[0], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_a_row_does_not_depend_on_its_neighbours(isa, dtype, size):
    query, key, value = inputs((1, 96, 64), (1, 200, 64), 32)
    other = query.copy()
    other[:, 1::2] *= 100
    for queries in (4, 96):
        one, two = (
            icecore.attention(*(encode(a, dtype) for a in (np.float32(size) * rows[:, :queries], key, value)), softcap=4.0)
            for rows in (query, other)
        )
        assert_same_bits(one[:, ::2], two[:, ::2])


def test_the_oracle_is_the_formula():
    query, key, value = (normal(i, 3, 4, dtype="float64") for i in range(3))
    scores = 2.0 * np.tanh(query @ key.T / 2 / 2.0)
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for function in (reference.attention, icecore.attention):
        four = (a[None, None] for a in (query, key, value))
        out = function(*four, softcap=2.0)
        out = out[0] if isinstance(out, tuple) else out
        np.testing.assert_allclose(out[0, 0], weights @ value, rtol=1e-12)


def test_inf_scores_become_the_cap_and_a_nan_stays(isa):
    for rows in (2, 60):
        query, key, value = np.ones((rows, 2), np.float32), np.ones((4, 2), np.float32), np.eye(4, dtype=np.float32)
        key[:3, 0] = np.inf, -np.inf, 0
        out, lse = icecore.attention(query, key, value, scale=1.0, softcap=2.0, return_lse=True)
        scores = np.array([2.0, -2.0, 2 * np.tanh(0.5), 2 * np.tanh(1.0)])
        np.testing.assert_allclose(out, np.tile(np.exp(scores) / np.exp(scores).sum(), (rows, 1)), atol=1e-6)
        np.testing.assert_allclose(lse, np.log(np.exp(scores).sum()), atol=1e-6)
        query[1] = np.nan
        out = icecore.attention(query, key, value, softcap=2.0)
        assert np.isnan(out[1]).all()
        assert np.isfinite(out[0]).all()
        out = icecore.attention(query[:1], key, value, softcap=2.0, attn_mask=np.array([False, True, True, True]))
        assert out[0, 0] == 0.0


@settings(max_examples=30)
@given(st.data())
def test_listed_keys_equal_the_oracle(isa, data):
    caps = st.sampled_from([1e-3, 0.5, 50.0])
    assert_listed_keys_equal_the_oracle(data.draw, lambda heads: st.fixed_dictionaries({"softcap": caps}))


@pytest.mark.parametrize("tolerance", [0.1, 0.03])
@pytest.mark.parametrize("softcap", [3.0, 20.0])
def test_near_far_keeps_its_tolerance_on_a_language_model(capture, isa, softcap, tolerance):
    exact = icecore.attention(*capture, causal=True, softcap=softcap)
    options = {"causal": True, "block": 128, "sinks": 16, "cell_size": 16, "rounding": True}
    result, measured = near_far(*capture, tolerance=tolerance, softcap=softcap, return_measured=True, **options)
    assert head_error(result.out[0, :, 256:], exact[:, 256:]).max() < 1.3 * tolerance
    assert np.nanmax(measured.error) < 1.3 * tolerance


@pytest.mark.parametrize("softcap", [1.0, 10.0])
def test_what_is_missed_is_below_its_bound(isa, softcap):
    query, key, value = inputs((2, 100, 16), (1, 3000, 16), 16)
    _, lse, info = icecore.attention(query, key, value, k=50, softcap=softcap, return_lse=True, return_info=True)
    if info.path == "near_far":
        _, exact = reference.attention(*(a[None] for a in (query, key, value)), softcap=softcap)
        near_mass = info.captured_mass * np.exp(lse - exact[0])
        assert (1 - near_mass <= info.missed_mass_bound + 0.01).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_cache_gives_what_one_call_gives(isa, dtype):
    query, key, value = inputs((2, 300, 32), (2, 300, 32), 16)
    for offset in (0.0, 40.0):  # with a large offset caches keep keys less the means of their cells
        shifted = key + np.float32(offset) * (np.arange(32) == 3)
        cache = icecore.KVCache(2, 32, value_dim=16, dtype=dtype, k=300, window=20, sinks=2)
        out, _ = attended_in_chunks(cache, query, shifted, value, 20, softcap=3.0)
        expected, _ = reference.attention(*(a[None] for a in (query, shifted, value)), causal=True, softcap=3.0)
        tolerance = {"float32": 2e-5, "bfloat16": 5e-2, "int8": 8e-2, "int4": 0.5}[dtype]
        np.testing.assert_allclose(out, expected[0], atol=tolerance * (1 + 4 * (offset > 0)))


@pytest.mark.parametrize("options", [{}, {"k": 30}, {"tolerance": 0.1}, {"selector": icecore.selectors.Pages(64)}])
def test_the_same_bits_for_any_number_of_threads(isa, options):
    query, key, value = inputs((2, 600, 32), (1, 600, 32), 16)
    one, two = (icecore.attention(query, key, value, causal=True, softcap=2.0, num_threads=n, **options) for n in (1, 2))
    assert_same_bits(one, two)


def test_pages_are_those_without_a_cap(isa):
    query, key, value = inputs((2, 300, 32), (1, 300, 32), 16)
    out = icecore.attention(query, key, value, selector=icecore.selectors.Pages(64), softcap=1.0)
    expected, _, _ = reference.pages_attention(*(a[None] for a in (query, key, value)), k=64, softcap=1.0)
    np.testing.assert_allclose(out, expected[0], atol=1e-5)


@pytest.mark.parametrize("softcap", [0, 0.0, -1.0, 1e-31, 1e31, np.inf, np.nan])
def test_numbers_out_of_range_are_refused(softcap):
    array = np.ones((2, 2), np.float32)
    for call in (lambda: icecore.attention(array, array, array, softcap=softcap),
                 lambda: icecore.attend_indices(array, array, array, np.zeros((2, 1), int), softcap=softcap)):
        with pytest.raises(ValueError, match=r"softcap must lie from 1e-30 to 1e\+30"):
            call()
    cache = icecore.KVCache(1, 2)
    cache.append(array[None], array[None])
    with pytest.raises(ValueError, match="softcap"):
        cache.attend(array[None], softcap=softcap)


@pytest.mark.parametrize("softcap", ["50", True, [1.0], np.ones(2)])
def test_what_is_no_number_is_refused(softcap):
    array = np.ones((2, 2), np.float32)
    with pytest.raises(TypeError, match="softcap must be a number"):
        icecore.attention(array, array, array, softcap=softcap)


def test_a_huge_cap_is_none(isa):
    query, key, value = inputs((2, 60, 32), (2, 300, 32), 16)
    for dtype in DTYPES:
        arrays = [encode(a, dtype) for a in (query, key, value)]
        difference = decode(icecore.attention(*arrays, softcap=1e30)) - decode(icecore.attention(*arrays))
        assert np.abs(difference).max() <= {"float32": 1e-6, "float16": 1e-3}.get(dtype, 1e-2)
