"""KVCache.keys() and values(): what is read back."""

import threading

import numpy as np
import pytest
from helpers import assert_same_bits, decode, encode
from test_cache import DIM, QUANTIZED, SINKS, SMALL, as_stored, run, tokens

import icecore


@pytest.mark.parametrize("chunks", [[70], [500], [1] * 500, [450] + [1] * 50], ids=len)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_read_back_is_what_was_appended_rounded_to_the_storage(isa, dtype, chunks):
    query, key, value = tokens(sum(chunks), dim=40, value_dim=21)
    cache = icecore.KVCache(2, 40, value_dim=21, dtype=dtype, k=24, **SMALL)
    run(cache, query, key, value, chunks)
    for stored, given in ((cache.keys(), key), (cache.values(), value)):
        assert stored.dtype == np.float32
        assert_same_bits(stored, decode(encode(given, dtype)).astype(np.float32))


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("count", [70, 200, 333])
def test_what_a_quantized_cache_reads_back_is_what_it_attends_to(isa, count, dtype):
    query, key, value = tokens(count, dim=40, value_dim=24)
    cache = icecore.KVCache(2, 40, value_dim=24, dtype=dtype, k=24, **SMALL)
    run(cache, query, key, value, [count // 2] + [1] * (count - count // 2))
    for stored, given in ((cache.keys(), key), (cache.values(), value)):
        np.testing.assert_allclose(stored, as_stored(dtype, given, cache.stats["sealed"]), rtol=2e-7)


def test_sequences_of_a_batch_are_read_back_together():
    query, key, value = tokens(100)
    cache = icecore.KVCache(2, DIM, batch=3, **SMALL)
    keys, values = (np.stack([a, 2 * a, 3 * a]) for a in (key, value))
    assert cache.keys().shape == cache.values().shape == (3, 2, 0, DIM)
    cache.append(keys, values)
    cache.attend(np.stack([query] * 3)[:, :, -1:])
    assert_same_bits(cache.keys(), keys)
    assert_same_bits(cache.values(), values)
    stored = cache.keys()
    stored[:] = 0  # a copy
    assert_same_bits(cache.keys(), keys)


def test_evicted_tokens_are_not_read_back_and_the_sinks_are():
    query, key, value = tokens(500)
    cache = icecore.KVCache(2, DIM, **SMALL)
    run(cache, query, key, value, [400] + [1] * 100)
    first = cache.evict(300)
    assert SINKS < first <= 300 and cache.stats["held"] == SINKS + 500 - first
    kept = np.r_[:SINKS, first:500]
    assert_same_bits(cache.keys(), key[:, kept])
    assert_same_bits(cache.values(), value[:, kept])


def test_nan_and_inf_are_read_back_as_they_came(isa):
    query, key, value = tokens(200)
    key[:, [3, 50, 199], 2], value[:, 100] = [np.nan, np.inf, -np.inf], np.nan
    cache = icecore.KVCache(2, DIM, **SMALL)
    run(cache, query, key, value, [200])
    assert_same_bits(cache.keys(), key)
    assert_same_bits(cache.values(), value)


def test_reading_back_waits_for_other_threads_and_sees_whole_appends():
    cache, zero = icecore.KVCache(2, 8, window=64, sinks=4), np.zeros((2, 1, 8), np.float32)

    def append():
        for number in range(1000):
            cache.append(zero + number, zero)
            cache.attend(zero)

    thread = threading.Thread(target=append)
    thread.start()
    while thread.is_alive():
        stored = cache.keys()
        np.testing.assert_array_equal(stored, np.broadcast_to(np.arange(stored.shape[1])[:, None], stored.shape))
    thread.join()


def test_reading_back_without_memory_leaves_the_cache_as_it_was(monkeypatch):
    query, key, value = tokens(100)
    cache = icecore.KVCache(2, DIM, **SMALL)
    run(cache, query, key, value, [100])
    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", lambda *_: (_ for _ in ()).throw(MemoryError()))
        for read in (cache.keys, cache.values):
            with pytest.raises(MemoryError):
                read()
    assert_same_bits(cache.keys(), key)
    assert cache.validate()
