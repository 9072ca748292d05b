"""KVCache: queries that it has seen say in which metric cells are formed, and how far to open."""


import numpy as np
import pytest
from helpers import assert_same_bits, decode, head_error, inputs, mean_row_error
from hostile_inputs import clustered, idle, two_regimes
from test_cache import BUDGETS, DIM, SINKS, SMALL, run, tokens, whole

import icecore

SPREAD = np.exp2(np.linspace(-2, 2, DIM)).astype(np.float32)


def skewed(count, group=9, seed=0):
    """Tokens whose queries make little of the largest components of keys; 72 of a window's queries are looked at."""
    query, key, value = tokens(count, group=group, seed=seed)
    return query * SPREAD, key / SPREAD, value


@pytest.mark.parametrize("how", ["attended", "in chunks", "one by one", "appended"])
@pytest.mark.parametrize("sinks", [0, SINKS, 16])
def test_a_cache_that_saw_the_same_queries_is_attention(how, sinks):
    query, key, value = skewed(600)
    cache = icecore.KVCache(2, DIM, k=24, window=64, sinks=sinks)
    if how == "appended":
        cache.append(key[:, :500], value[:, :500], query[:, :500])
    else:
        run(cache, query, key, value, {"attended": [500], "in chunks": [100, 33, 300, 67], "one by one": [1] * 500}[how])
    out, _, near = run(cache, query, key, value, [1] * 100)
    expected = whole(query, key, value, block=64, sinks=sinks, moments=None)
    assert np.mean(near == expected.near_keys[0, :, 500:]) > 0.99  # sums differ by rounding, and so may a key's cell
    assert mean_row_error(out, expected.out[0, :, 500:]) < 2e-3


def test_a_cache_that_saw_no_queries_goes_by_its_keys():
    """As attention to the last token's query alone does."""
    query, key, value = skewed(500)
    cache = icecore.KVCache(2, DIM, k=24, window=64, sinks=SINKS)
    cache.append(key, value)
    expected = whole(query[:, -1:], key, value, block=64, moments=None)
    out, info = cache.attend(query[:, -1:], return_info=True)
    np.testing.assert_allclose(out, expected.out[0], atol=1e-5)
    np.testing.assert_array_equal(info.near_keys, expected.near_keys[0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("tolerance", [0.1, 0.02])
@pytest.mark.parametrize("how", ["attended", "one by one", "appended", "unseen"])
def test_a_tolerance_is_kept(dtype, tolerance, how):
    query, key, value = tokens(1200)
    query /= 2
    exact = decode(icecore.attention(query, key, value, causal=True))
    cache, begin = icecore.KVCache(2, DIM, tolerance=tolerance, dtype=dtype, window=64, sinks=SINKS), 0
    if how in ("appended", "unseen"):
        begin = 1000
        cache.append(key[:, :begin], value[:, :begin], query[:, :begin] if how == "appended" else None)
    out, _, near = run(cache, query, key, value, [1] * (1200 - begin) if begin or how == "one by one" else [400, 1, 500, 299])
    rounding = 0 if dtype == "float32" else 0.008
    assert head_error(out, exact[:, begin:]).max() < 1.5 * tolerance + rounding
    assert near[:, -100:].mean() < 0.75 * 1100  # and it is not exact


def decoded_errors(arrays, prompt, end, tolerance):
    """Of each token prompt .. end - 1, decoded one by one: |out - exact| and |exact|."""
    query, key, value = (array[:, :end] for array in arrays)
    exact = decode(icecore.attention(query, key, value, causal=True))[0, prompt:]
    cache = icecore.KVCache(1, 64, tolerance=tolerance)
    cache.append(key[:, :prompt], value[:, :prompt], query[:, :prompt])
    out, _, _ = run(cache, query, key, value, [1] * (end - prompt))
    return np.linalg.norm(decode(out)[0] - exact, axis=-1), np.linalg.norm(exact, axis=-1)


@pytest.mark.parametrize("tolerance", [0.05, 0.02])
def test_a_tolerance_is_kept_after_a_prompt_that_ends_on_one_topic(tolerance):
    """Runs of 64 tokens: what the last ones ask for is not all that will be asked for."""
    error, size = decoded_errors(clustered(0, 4096), 3072, 4096, tolerance)
    assert error.sum() < 1.3 * tolerance * size.sum()  # 0.15 x measured, 5 x and more by the last queries alone


@pytest.mark.parametrize("kind", [two_regimes, idle])
def test_decoding_notices_that_queries_are_of_another_kind(kind):
    """At once that they are longer than all that were measured, else within a window."""
    change = 4096
    error, size = decoded_errors(kind(0, 8192), 3072, change + 512, 0.05)
    at_first, later = slice(change - 3072, change - 3008), slice(change - 2816, None)
    if kind is two_regimes:
        assert error[at_first].sum() < 0.05 * size[at_first].sum()
    else:
        assert error[at_first].sum() > 0.5 * size[at_first].sum()  # which nothing told before
    assert error[later].sum() < 0.25 * size[later].sum()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_caches_of_16_bits_measure_against_what_they_hold(isa, dtype):
    """The rows as they were given are not theirs to read any more."""
    query, key, value = tokens(1200)
    query /= 2
    exact = decode(icecore.attention(query, key, value, causal=True))
    results = []
    for _ in range(2):
        cache = icecore.KVCache(2, DIM, tolerance=0.05, dtype=dtype, window=64, sinks=SINKS)
        out, _, _ = run(cache, query, key.copy(), value.copy(), [400, 1, 500, 299])
        info = cache.attend(query[:, -1:], return_info=True)[1]
        assert head_error(out, exact).max() < 1.5 * 0.05
        assert ((0 < info.error) & (info.error < 1.5 * 0.05)).all()
        results.append((out, info.error))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_measured_error_is_about_the_true_one():
    query, key, value = tokens(1500)
    query /= 2
    exact = decode(icecore.attention(query, key, value, causal=True))
    cache = icecore.KVCache(2, DIM, tolerance=0.05, window=64, sinks=SINKS)
    out, _, _ = run(cache, query, key, value, [500, 500, 500])
    info = cache.attend(query[:, -1:], return_info=True)[1]
    assert info.error.shape == info.error_standard_error.shape == info.error_rows.shape == (6,)
    assert (info.error_rows >= 32).all()
    # rows of the first windows have next to nothing far; of those that were measured, the queries of few decide
    true = head_error(out[:, 256:], exact[:, 256:])
    assert (np.abs(info.error - true) < 3 * info.error_standard_error + 0.3 * true).all()
    by_k = icecore.KVCache(2, DIM, k=24, **SMALL)
    run(by_k, query, key, value, [1500])
    assert by_k.attend(query[:, -1:], return_info=True)[1].error is None


@pytest.mark.parametrize("window, group", [(16, 1), (32, 3), (64, 1), (256, 3)])
def test_steps_are_measured_now_and_then_however_much_is_sealed(window, group):
    """One in about 100, half as many where 32 windows are sealed, and so on: more are between them than queries are kept."""
    query, key, value = tokens(3800, group=group)
    cache = icecore.KVCache(2, DIM, tolerance=0.1, window=window, sinks=SINKS)
    run(cache, query / 2, key, value, [2400])
    rows = []
    for _ in range(14):
        run(cache, query / 2, key, value, [1] * 100)
        rows.append(cache.attend(query[:, -1:], return_info=True)[1].error_rows[0])
    spacing = max(window // max(32 // group, 8), 1)  # between queries that are kept
    between = -(-96 // spacing) * spacing * (1 + 3800 // window // 32)
    assert max(1300 // between - 1, 1) <= rows[-1] - rows[0] <= 1300 // 90 + 33  # thoroughly once


def test_until_eight_tokens_queries_are_known_all_is_opened():
    query, key, value = tokens(1000)
    query /= 2
    cache = icecore.KVCache(2, DIM, tolerance=0.1, window=64, sinks=SINKS)
    cache.append(key[:, :900], value[:, :900])
    exact = decode(icecore.attention(query, key, value, causal=True))
    for i in range(900, 908):
        sealed = cache.stats["sealed"] if i > 900 else (900 // 64 - 1) * 64
        out, _, near = run(cache, query, key, value, [1])
        np.testing.assert_array_equal(near, sealed - SINKS)
        np.testing.assert_allclose(out[:, 0], exact[:, i], atol=1e-5)
    assert run(cache, query, key, value, [1])[2].mean() < 0.7 * (sealed - SINKS)


def test_with_another_number_of_query_heads_nothing_is_known():
    query, key, value = tokens(1000)
    query /= 2
    cache = icecore.KVCache(2, DIM, tolerance=0.1, window=64, sinks=SINKS)
    run(cache, query, key, value, [990])
    assert run(cache, query, key, value, [1])[2].mean() < 0.7 * 800
    near = cache.attend(query[::3, -1:], return_info=True)[1].near_keys
    np.testing.assert_array_equal(near, cache.stats["sealed"] - SINKS)


def test_sequences_of_a_batch_are_measured_by_themselves():
    """One with keys in a few places, one without structure."""
    second = inputs((6, 1000, DIM), (2, 1000, DIM), DIM)
    query, key, value = (np.stack(pair) for pair in zip(tokens(1000), second, strict=True))
    exact = decode(icecore.attention(query, key, value, causal=True))
    cache = icecore.KVCache(2, DIM, tolerance=0.05, window=64, sinks=SINKS, batch=2)
    cache.append(key, value)
    out, info = cache.attend(query, return_info=True)
    assert head_error(out, exact).max() < 1.5 * 0.05
    assert info.error.shape == (2, 6)
    near = info.near_keys[:, :, 500:].mean(axis=(1, 2))
    assert near.max() > 1.5 * near.min()
    for i in range(2):
        alone = icecore.KVCache(2, DIM, tolerance=0.05, window=64, sinks=SINKS)
        alone.append(key[i], value[i])
        assert_same_bits(alone.attend(query[i]), out[i])


def test_what_was_measured_is_kept_by_forks():
    query, key, value = tokens(1000)
    query /= 2
    cache = icecore.KVCache(2, DIM, tolerance=0.05, window=64, sinks=SINKS)
    run(cache, query, key, value, [700])
    fork = cache.fork()
    for _ in range(3):
        results = [run(c, query, key, value, [50, 1, 1, 1, 1]) for c in (cache, fork)]
        for one, other in zip(*results, strict=True):
            assert_same_bits(other, one)
        infos = [c.attend(query[:, len(c) - 1 : len(c)], return_info=True)[1] for c in (cache, fork)]
        for name in ("error", "error_standard_error", "error_rows"):
            assert_same_bits(getattr(infos[1], name), getattr(infos[0], name))


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_queries_that_are_not_finite_spoil_their_own_rows_alone(garbage, budget):
    """Neither the metric nor the thresholds of later rows."""
    query, key, value = skewed(700)
    query /= 2
    exact = decode(icecore.attention(query, key, value, causal=True))
    odd = np.arange(700) % 97 == 15  # some of them are looked at
    spoiled = np.where(odd[:, None], np.float32(garbage), query)
    cache = icecore.KVCache(2, DIM, window=64, sinks=SINKS, **budget)
    out, _, near = run(cache, spoiled, key, value, [300] + [1] * 400)
    assert not np.isfinite(out[:, odd]).any()
    assert np.isfinite(out[:, ~odd]).all()
    clean, _, expected = run(icecore.KVCache(2, DIM, window=64, sinks=SINKS, **budget), query, key, value, [300] + [1] * 400)
    errors = [head_error(a[:, ~odd], exact[:, ~odd]).max() for a in (out, clean)]
    assert errors[0] < 1.3 * errors[1] + 0.01
    assert near[:, ~odd].mean() < 1.3 * expected[:, ~odd].mean() + 10


def test_queries_of_nothing_but_zeros():
    query, key, value = tokens(500)
    query[:, 100:400] = 0
    exact = decode(icecore.attention(query, key, value, causal=True))
    for budget in BUDGETS.values():
        cache = icecore.KVCache(2, DIM, window=64, sinks=SINKS, **budget)
        cache.append(key[:, :300], value[:, :300], query[:, :300])
        out, _, _ = run(cache, query, key, value, [1] * 200)
        if "tolerance" in budget:
            assert head_error(out, exact[:, 300:]).max() < 1.5 * budget["tolerance"]
        assert np.isfinite(out).all()


def test_a_step_finds_the_one_key_that_it_asks_for(isa):
    """Rows that need no single key say nothing about the one that does: with a tolerance a step looks for such keys itself."""
    random = np.random.default_rng(0)
    query, key, value = inputs((4, 4100, 64), (2, 4100, 64), 64)
    query /= 2
    cache = icecore.KVCache(2, 64, tolerance=0.05)
    cache.append(key[:, :4000], value[:, :4000], query[:, :4000])
    run(cache, query, key, value, [1] * 50)
    for place in random.integers(20, 3000, 20):
        asked = np.repeat(key[:, place : place + 1], 2, axis=0) * np.float32(1.2)  # a score of 9.6: three quarters of the mass
        fork = cache.fork()
        fork.append(key[:, 4050:4051], value[:, 4050:4051])
        out = fork.attend(asked)
        exact = icecore.attention(asked, key[:, :4051], value[:, :4051])
        assert mean_row_error(out, decode(exact)) < 0.1
