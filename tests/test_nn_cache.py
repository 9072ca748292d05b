"""The key/value buffer holds what was written, and the past is not copied at each step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore.nn import KeyValueCache


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_rows_written_in_pieces_are_the_rows_written_at_once(pieces):
    rows = np.random.default_rng(0).standard_normal((2, 2, 3, sum(pieces), 4), np.float32)  # layer, key or value
    cache = KeyValueCache()
    for count in pieces:
        end = cache.length + count
        for layer in range(2):
            keys, values = cache.write(layer, *rows[layer, :, :, cache.length : end])
            np.testing.assert_array_equal(keys, rows[layer, 0, :, :end])
            np.testing.assert_array_equal(values, rows[layer, 1, :, :end])
        cache.advance(count)
        assert cache.length == end


def test_buffers_are_copied_a_logarithmic_number_of_times():
    row = np.ones((1, 1, 2), np.float32)
    cache = KeyValueCache()
    addresses = set()
    for _ in range(1000):
        keys, _ = cache.write(0, row, row)
        cache.advance(1)
        addresses.add(keys.__array_interface__["data"][0])
    assert len(addresses) <= 11


def test_rows_that_were_not_advanced_over_are_overwritten():
    cache = KeyValueCache()
    cache.write(0, np.ones((1, 3, 2), np.float32), np.ones((1, 3, 2), np.float32))
    assert cache.length == 0
    keys, values = cache.write(0, np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.float32))
    assert keys.shape == values.shape == (1, 2, 2)
    assert not keys.any() and not values.any()


def test_truncated_rows_are_overwritten():
    rows = np.random.default_rng(0).standard_normal((2, 1, 9, 2), np.float32)
    cache = KeyValueCache()
    cache.write(0, rows[0], rows[1])
    cache.advance(9)
    cache.truncate(4)
    keys, values = cache.write(0, rows[0, :, :1], rows[1, :, :1])
    np.testing.assert_array_equal(keys, rows[0, :, [0, 1, 2, 3, 0]].swapaxes(0, 1))
    np.testing.assert_array_equal(values, rows[1, :, [0, 1, 2, 3, 0]].swapaxes(0, 1))


def test_forks_go_their_own_ways():
    rows = np.random.default_rng(0).standard_normal((3, 1, 5, 2), np.float32)
    first = KeyValueCache()
    first.write(0, rows[0], rows[0])
    first.advance(5)
    second = first.fork()
    first.truncate(2)
    for cache, other in ((first, rows[1]), (second, rows[2])):
        cache.write(0, other, -other)
        cache.advance(5)
    for cache, expected in ((first, [rows[0][:, :2], rows[1]]), (second, [rows[0], rows[2]])):
        ((_, (keys, values)),) = cache.rows()
        np.testing.assert_array_equal(keys, np.concatenate(expected, axis=1))
        np.testing.assert_array_equal(values[:, -5:], -expected[1])


def test_rows_of_another_model_are_refused():
    rows = np.zeros((2, 5, 8), np.float32)
    cache = KeyValueCache()
    cache.write(0, rows, rows)
    cache.advance(5)
    with pytest.raises(ValueError, match="layer 1 holds 0 of 5 tokens: the cache is of another model"):
        cache.write(1, rows, rows)
    for other, name in ((rows[:1], "keys"), (rows[..., :4], "keys")):
        with pytest.raises(ValueError, match=rf"layer 0 holds {name} of \(heads, width\) \(2, 8\), got .*: the cache is of"):
            cache.write(0, other, rows)
    with pytest.raises(ValueError, match=r"layer 0 holds values of \(heads, width\) \(2, 8\), got \(2, 4\)"):
        cache.write(0, rows, rows[..., :4])


@pytest.mark.parametrize("length", [1.5, "1", None])
def test_truncation_to_what_is_no_number_of_tokens(length):
    cache = KeyValueCache()
    cache.advance(3)
    with pytest.raises(TypeError, match=f"length must be an integer, got {type(length).__name__}"):
        cache.truncate(length)
    assert cache.length == 3


@pytest.mark.parametrize("length", [-1, 1])
def test_truncation_to_more_than_is_held(length):
    with pytest.raises(ValueError, match=rf"length must lie in 0\.\.0, the tokens held, got {length}"):
        KeyValueCache().truncate(length)
