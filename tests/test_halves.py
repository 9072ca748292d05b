"""float32 caches with a tolerance: sealed rows lie in the oracle's halves, nothing is lost, and what is rounded is measured."""

import numpy as np
import pytest
from helpers import SavedFile

from icecore import KVCache, reference
from icecore.reference.halves import join_halves, rounded_by_halves, split_halves

HEADS, GROUP, DIM, WINDOW, SINKS = 2, 2, 16, 32, 4
#: Both signs of 0, subnormal numbers, ties, the largest and what is not finite.
SPECIAL = np.array([0x0, 0x80000000, 0x1, 0x80018000, 0x3F808000, 0x3F818000, 0xBF80FFFF, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF,
                    0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)


def tokens(count, seed=0, scale=1.0, offset=0.0):
    """Queries, keys and values (heads, count, width)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((HEADS, 12, DIM))
    key = centres[:, rng.integers(12, size=count)] + 0.5 * rng.standard_normal((HEADS, count, DIM)) + offset
    query = scale * rng.standard_normal((HEADS * GROUP, count, DIM))
    return [array.astype(np.float32) for array in (query, key, rng.standard_normal((HEADS, count, DIM)))]


def filled(query, key, value, prompt, **budget):
    """A cache of the first `prompt` tokens, and the outputs of the tokens behind them, one by one."""
    cache = KVCache(HEADS, DIM, window=WINDOW, sinks=SINKS, **budget)
    cache.append(key[:, :prompt], value[:, :prompt], query[:, :prompt])
    outs = []
    for i in range(prompt, key.shape[1]):
        cache.append(key[:, i : i + 1], value[:, i : i + 1])
        outs.append(cache.attend(query[:, i : i + 1]))
    return cache, np.concatenate(outs, axis=1)


def exact(query, key, value, first):
    return reference.attention(query[None, :, first:], key[None], value[None], causal=True)[0][0]


def relative_error(out, wanted):
    return np.linalg.norm(out - wanted, axis=-1).mean() / np.linalg.norm(wanted, axis=-1).mean()


def test_halves_of_the_oracle():
    rng = np.random.default_rng(0)
    rows = np.concatenate([SPECIAL, rng.integers(2**32, size=4096, dtype=np.uint32).view(np.float32)])
    first, second = split_halves(rows)
    joined, rounded = join_halves(first, second), rounded_by_halves(first)
    nan = np.isnan(rows)
    np.testing.assert_array_equal(joined[~nan].view(np.uint32), rows[~nan].view(np.uint32))
    assert np.isnan(joined[nan]).all() and np.isnan(rounded[nan]).all()
    usual = np.isfinite(rows) & (np.abs(rows) > 2.0**-126) & (np.abs(rows) < float.fromhex("0x1.FFp127"))
    assert (np.abs(rounded[usual].astype(np.float64) / rows[usual] - 1) <= 2.0**-8).all()


def test_a_file_holds_the_halves_of_the_oracle():
    query, key, value = tokens(400)
    arrays = SavedFile.of(filled(query, key, value, 399, tolerance=0.05)[0]).arrays
    segments, place = arrays["segment"].reshape(-1, 5), 0
    assert (segments[:, 4] == 1).all()
    stored = {"keys": [], "values": []}
    for count in segments[:, 0]:
        for name, rows in stored.items():
            own = arrays[name][place * DIM * 4 : (place + count) * DIM * 4]
            halves = own.view(np.uint16).reshape(2, count, DIM)
            np.testing.assert_array_equal(halves, split_halves(join_halves(*halves)))
            rows.append(join_halves(*halves))
        place += count
    end = SINKS + place // HEADS
    for name, given in (("keys", key), ("values", value)):
        found, wanted = np.concatenate(stored[name]), given[:, SINKS:end].reshape(-1, DIM)
        np.testing.assert_array_equal(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])


def test_with_k_numbers_stay_whole():
    arrays = SavedFile.of(filled(*tokens(200), 199, k=8)[0]).arrays
    assert (arrays["segment"].reshape(-1, 5)[:, 4] == 0).all()


@pytest.mark.parametrize("prompt", [40, 400])
def test_every_bit_is_read_back(isa, prompt):
    query, key, value = tokens(500, seed=1)
    key, value = key.copy(), value.copy()
    rng = np.random.default_rng(2)
    for array in (key, value):
        array[rng.integers(HEADS, size=64), rng.integers(500, size=64), rng.integers(DIM, size=64)] = np.tile(SPECIAL, 4)
    cache, _ = filled(query, key, value, prompt, tolerance=0.05)
    for found, given in ((cache.keys(), key), (cache.values(), value)):
        nan = np.isnan(given)
        np.testing.assert_array_equal(found.view(np.uint32)[~nan], given.view(np.uint32)[~nan])
        assert np.isnan(found[nan]).all()


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("tolerance", [0.05, 0.01, 0.0005])
def test_what_is_rounded_is_within_the_tolerance(isa, tolerance, offset):
    """Keys with an offset of 300 are off by a half when they are rounded to bfloat16."""
    query, key, value = tokens(1500, seed=3, offset=offset)
    _, out = filled(query, key, value, 1200, tolerance=tolerance)
    assert relative_error(out, exact(query, key, value, 1200)) <= 1.3 * tolerance


def test_the_largest_numbers_are_not_infinite(isa):
    query, key, value = tokens(600, seed=4)
    value[0, 100, 3] = value[1, 200, 5] = np.finfo(np.float32).max
    cache, out = filled(query, key, value, 590, tolerance=0.05)
    wanted = exact(query, key, value, 590)
    assert relative_error(out[:GROUP, :, 3], wanted[:GROUP, :, 3]) < 1e-4
    assert relative_error(out[GROUP:, :, 5], wanted[GROUP:, :, 5]) < 1e-4
    assert (SavedFile.of(cache).arrays["segment"].reshape(-1, 5)[:, 4] == 2).any()


def test_infinite_values_reach_those_who_see_them(isa):
    query, key, value = tokens(600, seed=5)
    value[0, 100, 3], value[1, 200, 5] = np.inf, np.nan
    _, out = filled(query, key, value, 590, tolerance=0.05)
    assert (out[:GROUP, :, 3] == np.inf).all() and np.isnan(out[GROUP:, :, 5]).all()
    out[:GROUP, :, 3] = out[GROUP:, :, 5] = 0
    assert np.isfinite(out).all()
