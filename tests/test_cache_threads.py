"""KVCache: interrupted, and used from several threads."""

import signal
import threading
import time

import numpy as np
import pytest

import icecore


@pytest.fixture
def alarm():
    """Calls a function after so many seconds, in this thread."""
    before = signal.getsignal(signal.SIGALRM)

    def set_alarm(seconds, handler):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_an_interrupted_truncation_of_a_batch_truncates_all_or_none(alarm):
    key = np.random.default_rng(0).standard_normal((6, 2, 9000, 64)).astype(np.float32)
    cache = icecore.KVCache(2, 64, batch=6, k=24)
    cache.append(key, key)
    cache.attend(key[:, :, :1])
    whole, interrupted = cache.fork(), 0
    started = time.perf_counter()
    whole.fork().truncate(6001)
    seconds = time.perf_counter() - started
    for share in (0.2, 0.4, 0.6, 0.8):
        cache = whole.fork()
        alarm(max(share * seconds, 1e-4), signal.default_int_handler)
        try:
            cache.truncate(6001)
        except KeyboardInterrupt:
            interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert cache.validate()
        assert len(cache) in (6001, 9000)
    assert interrupted or seconds < 0.01


def test_a_batch_is_one_cache_for_threads():
    """Each position holds one call's token in all sequences."""
    cache = icecore.KVCache(1, 8, batch=8)
    zero = np.zeros((8, 1, 1, 8), np.float32)

    def append(number):
        for _ in range(300):
            cache.append(zero, np.full((8, 1, 1, 8), number, np.float32))

    threads = [threading.Thread(target=append, args=[number]) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sums = cache.attend(np.zeros((8, 1, 600, 8), np.float32))[:, 0, :, 0] * np.arange(1, 601)  # all keys are alike: means
    held = np.rint(np.diff(sums, axis=1))
    np.testing.assert_array_equal(held, np.broadcast_to(held[0], held.shape))
    assert set(held[0]) == {1.0, 2.0}


def test_a_cache_is_saved_as_it_was_when_the_call_began(tmp_path, monkeypatch):
    """Whatever becomes of it before the file is written, or meanwhile."""
    token = np.random.default_rng(0).standard_normal((4, 1, 5, 8)).astype(np.float32)
    cache = icecore.KVCache(1, 8, batch=4)
    cache.append(token, token)
    save = icecore._array_file.save

    def late(form, parameters, give, path):
        cache.reorder([0, 1])
        cache.append(token[:2], token[:2])
        save(form, parameters, give, path)

    monkeypatch.setattr(icecore._array_file, "save", late)
    cache.save(tmp_path / "cache")
    saved = icecore.KVCache.load(tmp_path / "cache")
    assert (saved.batch, len(saved)) == (4, 5)
    np.testing.assert_array_equal(saved.keys(), token)
    assert (cache.batch, len(cache)) == (2, 10)


def test_a_signal_handler_that_uses_the_cache_it_interrupted_is_refused(alarm):
    query = np.random.default_rng(0).standard_normal((1, 12000, 64)).astype(np.float32)
    refused = []

    def look(*_):
        for use in (lambda: len(cache), lambda: cache.append(query, query), cache.fork, cache.keys, cache.validate):
            try:
                use()
            except RuntimeError as error:
                refused.append(str(error))

    for seconds in (0.02, 0.005, 0.001):
        cache = icecore.KVCache(1, 64, k=10**6)
        cache.append(query, query)
        alarm(seconds, look)
        cache.attend(query)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if refused:
            break
    assert len(refused) == 5
    assert all("at work in this thread" in message for message in refused)
    assert len(cache) == 12000
    assert cache.validate()


@pytest.mark.parametrize("batch", [None, 3])
def test_after_an_interruption_all_heads_of_a_sequence_forget_the_same(alarm, batch):
    """Some are sealed further than others then, and their segments end elsewhere."""
    key = np.random.default_rng(0).standard_normal((batch or 1, 16, 9000, 32)).astype(np.float32)
    key = key if batch else key[0]
    seconds = 0.0
    for share in (0.0, 0.3, 0.6, 0.9):
        cache = icecore.KVCache(16, 32, k=10**6, sinks=0, batch=batch)
        cache.append(key[..., :4500, :], key[..., :4500, :])
        cache.attend(key[..., :1, :])
        cache.append(key[..., 4500:, :], key[..., 4500:, :])
        started = time.perf_counter()
        if share:
            alarm(share * seconds, signal.default_int_handler)
        try:
            cache.attend(key[..., :1, :])
        except KeyboardInterrupt:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = seconds or time.perf_counter() - started
        assert cache.evict(2048) <= cache.stats["evicted"] <= 2048
        info = cache.attend(key[..., -1:, :], return_info=True)[1]
        assert all(len(np.unique(near)) == 1 for near in info.near_keys.reshape(batch or 1, 16))
        assert cache.validate()
        assert cache.evict(4096) >= 2048
