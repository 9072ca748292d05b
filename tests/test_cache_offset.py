"""KVCache on keys that share a large offset: short storage loses little more than float32, whatever becomes of the cache."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from helpers import SavedFile, assert_same_bits, decode, head_error, index_bytes, quantized_rows

import icecore
from icecore import reference

DIM, WINDOW = 64, 128
SHORT = ["bfloat16", "float16", "int8"]
BIASED = [25, 30, 57, 62]
STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "int8": 1 / 127, "int4": 1 / 7}
BITS = {"int8": 8, "int4": 4}
STORED = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def rotated(rows, base):
    """Rotary embedding of rows (..., n, d) at positions 0 .. n - 1."""
    angle = np.arange(rows.shape[-2])[:, None] * base ** (-np.arange(DIM // 2) / (DIM // 2))
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = np.split(rows, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def biased(count, norm, base=None, heads=1, seed=0):
    """query (2 heads, count, d), key, value (heads, count, d) about topics; keys with a bias of that norm, before rotation."""
    random = np.random.default_rng(seed)
    topic = (1.5 if base is None else 1.0) * random.standard_normal((40, DIM))
    at = topic[np.repeat(random.integers(0, 40, -(-count // 64)), 64)[:count]]
    query, key = (at + 0.7 * random.standard_normal((n, count, DIM)) for n in (2 * heads, heads))
    bias = np.zeros(DIM)
    bias[BIASED] = [300, -210, 240, 150]
    key = key + bias * norm / np.linalg.norm(bias)
    query[..., BIASED] += 1
    if base:
        query, key = rotated(query, base), rotated(key, base)
    return query.astype(np.float32), key.astype(np.float32), random.standard_normal((heads, count, DIM)).astype(np.float32)


def filled(query, key, value, dtype, chunk=None, **options):
    """A cache of all these tokens, and the outputs of the last chunk's queries."""
    cache = icecore.KVCache(len(key), DIM, dtype=dtype, **options)
    count = key.shape[1]
    for first in range(0, count, chunk or count):
        rows = slice(first, first + (chunk or count))
        cache.append(key[:, rows], value[:, rows])
        out = cache.attend(query[:, rows])
    return cache, out


def holds_float32(cache):
    """Whether open tokens are float32, as they are where the offset is large or not known yet."""
    return SavedFile.of(cache).arrays["open.keys"].dtype == np.float32


def sampled(**options):
    """A cache with segments, open tokens and a segment in the making, its tokens, and how many of them it holds."""
    query, key, value = biased(900, 460, 1e4, heads=2)
    cache, _ = filled(query[:, :800], key[:, :800], value[:, :800], window=WINDOW, chunk=80, **options)
    return cache, (query, key, value)


def go_on(cache, query, key, value, first, end):
    outs = []
    for i in range(first, end):
        cache.append(key[:, i : i + 1], value[:, i : i + 1])
        outs.append(cache.attend(query[:, i : i + 1]))
    return np.concatenate(outs, axis=1)


# ---- The promise ----


@pytest.mark.parametrize("norm", [155, 460, 925])
@pytest.mark.parametrize("base", [None, 1e4, 1e6])
def test_an_offset_costs_short_storage_less_than_a_hundredth(base, norm):
    query, key, value = biased(4096, norm, base)
    exact = icecore.attention(*(a.astype(np.float64) for a in (query[:, -64:], key, value)), causal=True)
    error = {
        dtype: head_error(filled(query, key, value, dtype, chunk=512)[1][:, -64:], exact).max() for dtype in ["float32", *SHORT]
    }
    for dtype in SHORT:
        assert error[dtype] < error["float32"] + 0.01, error


@pytest.mark.parametrize("norm", [155, 925])
def test_an_offset_costs_int4_no_more_than_without_one(norm):
    """Though each merge rounds keys less the mean of their cell anew: those differences are smaller than keys."""
    error = {}
    for own in (0, norm):
        query, key, value = biased(8192, own)
        exact = icecore.attention(*(a.astype(np.float64) for a in (query[:, -64:], key, value)), causal=True)
        error[own] = head_error(filled(query, key, value, "int4", chunk=512, k=10**6)[1][:, -64:], exact).max()
    assert error[norm] < 1.5 * error[0], error


@pytest.mark.parametrize("options", [{"k": 64}, {"tolerance": 0.02}], ids=["k", "tolerance"])
@pytest.mark.parametrize("dtype", SHORT)
def test_single_steps_and_long_chunks_lose_as_little(isa, dtype, options):
    query, key, value = biased(700, 925, 1e4, heads=2)
    exact = icecore.attention(*(a.astype(np.float64) for a in (query[:, 600:], key, value)), causal=True)
    for chunk in (100, 1):
        error = {}
        for own in ("float32", dtype):
            cache, _ = filled(query[:, :600], key[:, :600], value[:, :600], own, chunk, window=WINDOW, **options)
            error[own] = head_error(go_on(cache, query, key, value, 600, 700), exact).max()
        assert error[dtype] < error["float32"] + 0.01, error


# ---- What is kept ----


@pytest.mark.parametrize("dtype", [*SHORT, "int4"])
def test_sealed_keys_are_rounded_less_the_mean_of_their_cell(dtype):
    query, key, value = biased(2 * WINDOW + 8, 460, 1e4)
    cache, _ = filled(query, key, value, dtype, window=WINDOW, sinks=0, k=16)
    arrays = SavedFile.of(cache).arrays
    members = np.split(arrays["order"], arrays["cell.offset"][1:-1])
    mean, rows = reference.relative_rows(key[0], members, dtype)
    np.testing.assert_allclose(arrays["cell.mean_key"].reshape(mean.shape), mean, rtol=1e-6, atol=1e-4)
    stored = arrays["keys"].reshape(WINDOW, -1)
    if dtype in BITS:
        stored = reference.dequantize(*quantized_rows(stored, DIM, BITS[dtype]), BITS[dtype])
    else:
        stored = decode(stored.view(STORED[dtype]))
    step = np.abs(np.concatenate(rows)).max() * STEP[dtype]
    np.testing.assert_allclose(stored, np.concatenate(rows), atol=step + 1e-4)
    assert np.abs(stored - np.concatenate(rows)).mean() < step / 100  # another mean's last digits may round the other way


@pytest.mark.parametrize("dtype", SHORT)
def test_what_is_read_back_is_nearer_to_the_keys_than_rounded_ones(dtype):
    """Each merge rounds a key's difference from the mean of its cell; open keys are the bits that came."""
    cache, (_, key, _) = sampled(dtype=dtype, k=64)
    key, sealed, stored = key[:, :800], cache.stats["sealed"], cache.keys()
    assert_same_bits(stored[:, sealed:], key[:, sealed:])
    rounded = decode(key.astype(STORED.get(dtype, ml_dtypes.bfloat16)))
    assert np.abs(stored - key).mean() < 0.5 * np.abs(rounded - key).mean()


@pytest.mark.parametrize("size", [0, 3, 8, 40, 300])
@pytest.mark.parametrize("turns", [False, True])
def test_what_counts_as_an_offset_is_what_the_oracle_says(size, turns):
    _, key, value = biased(100, size, 1e4 if turns else None, seed=size)
    at_once, one_by_one = (icecore.KVCache(1, DIM, dtype="bfloat16") for _ in range(2))
    at_once.append(key, value)
    for i in range(100):
        one_by_one.append(key[:, i : i + 1], value[:, i : i + 1])
    assert holds_float32(at_once) == holds_float32(one_by_one) == reference.has_offset(key[0, :64])
    assert reference.has_offset(key[0, :64]) == (size > 30)


def test_a_component_that_never_changes_is_no_offset_unless_it_is_large():
    random = np.random.default_rng(0)
    key = random.standard_normal((1, 64, DIM)).astype(np.float32)
    for constant, large in ((0, False), (8, False), (100, True)):
        key[..., 3] = constant
        cache = icecore.KVCache(1, DIM, dtype="int8")
        cache.append(key, key)
        assert holds_float32(cache) == reference.has_offset(key[0]) == large


@pytest.mark.parametrize("dtype", SHORT)
def test_open_tokens_are_float32_where_the_offset_is_large_and_as_before_where_not(dtype):
    _, key, value = biased(200, 460, 1e4)
    sizes = {}
    for name, rows in (("large", key), ("small", value)):
        for own in (dtype, "float32"):
            cache = icecore.KVCache(1, DIM, dtype=own)
            cache.append(rows, value)
            sizes[name, own] = cache.nbytes
    assert sizes["large", dtype] == sizes["large", "float32"] == 2 * sizes["small", dtype]


@pytest.mark.parametrize(("dtype", "element", "bound"), [("bfloat16", 2, 1.6), ("int8", 4, 0.55), ("int4", 4, 0.45)])
def test_memory_stays_bounded_while_segments_merge(dtype, element, bound):
    """As a share of the keys and values in `dtype`, of quantized ones in float32; from 8192 tokens on."""
    cache = icecore.KVCache(1, DIM, dtype=dtype, k=8)
    random = np.random.default_rng(0)
    for count in range(64, 12000, 64):
        key = random.standard_normal((1, 64, DIM)).astype(np.float32)
        key[..., 3] += 300
        cache.append(key, key)
        cache.attend(key[:, -1:])
        assert count < 8192 or cache.nbytes <= bound * count * 2 * DIM * element


@pytest.mark.parametrize("norm", [0, 460])
def test_tokens_one_by_one_are_tokens_at_once(norm):
    """Also while too few are there to tell whether they have an offset."""
    query, key, value = biased(150, norm, 1e4)
    for count in (10, 63, 64, 150):
        outs = []
        for chunk in (1, 37, count):
            cache = icecore.KVCache(1, DIM, dtype="bfloat16")
            for first in range(0, count, chunk):
                rows = slice(first, min(first + chunk, count))
                cache.append(key[:, rows], value[:, rows])
            outs.append(cache.attend(query[:, count - 1 : count]))
        assert_same_bits(outs[1], outs[0])
        assert_same_bits(outs[2], outs[0])


@pytest.mark.parametrize("norm", [0, 460])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", SHORT)
def test_tokens_that_are_refused_round_nothing(dtype, batch, norm):
    """Though with them the cache could tell whether its keys have an offset."""
    query, key, value = (np.stack([a] * batch) for a in biased(80, norm))
    cache = icecore.KVCache(1, DIM, dtype=dtype, batch=batch)
    cache.append(key[:, :, :40], value[:, :, :40])
    before, size = cache.attend(query[:, :, 39:40]), cache.nbytes
    value[-1, 0, 79, 5] = 3.4e38  # of the last sequence
    with pytest.raises(ValueError, match=r"values holds 3\.4e\+38"):
        cache.append(key[:, :, 40:], value[:, :, 40:])
    assert cache.validate()
    assert (len(cache), cache.nbytes) == (40, size)
    assert_same_bits(cache.attend(query[:, :, 39:40]), before)
    whole = icecore.KVCache(1, DIM, dtype=dtype, batch=batch)
    value[-1, 0, 79, 5] = 0
    cache.append(key[:, :, 40:], value[:, :, 40:])
    whole.append(key, value)
    assert_same_bits(cache.attend(query[:, :, -1:]), whole.attend(query[:, :, -1:]))


@pytest.mark.parametrize("dtype", SHORT)
def test_with_a_large_offset_storage_holds_no_larger_numbers(dtype):
    _, key, value = biased(100, 460)
    cache = icecore.KVCache(1, DIM, dtype=dtype)
    cache.append(key, value)
    assert holds_float32(cache)
    for name in ("keys", "values"):
        token = {"keys": key[:, :1].copy(), "values": value[:, :1].copy()}
        token[name][0, 0, 3] = 3.4e38
        with pytest.raises(ValueError, match=rf"{name} holds 3\.4e\+38"):
            cache.append(**token)


def test_an_emptied_cache_looks_at_its_new_tokens():
    _, key, value = biased(200, 460)
    cache = icecore.KVCache(1, DIM, dtype="bfloat16")
    for rows, large in ((key, True), (value, False), (key, True)):
        cache.append(rows, value)
        assert holds_float32(cache) == large
        cache.truncate(0)


# ---- What becomes of it ----


@pytest.mark.parametrize("dtype", SHORT)
def test_copies_and_files_go_on_with_the_same_bits(tmp_path, isa, dtype):
    cache, tokens = sampled(dtype=dtype, k=64)
    cache.save(tmp_path / "a")
    twins = [opener(tmp_path / "a") for opener in (icecore.KVCache.load, icecore.KVCache.view)]
    twins += [cache.fork(), pickle.loads(pickle.dumps(cache))]
    outs = [go_on(twin, *tokens, 800, 900) for twin in twins]
    expected = go_on(cache, *tokens, 800, 900)
    for twin, out in zip(twins, outs, strict=True):
        assert_same_bits(out, expected)
        assert twin.validate()
        assert index_bytes(twin) == index_bytes(cache)


@pytest.mark.parametrize("dtype", SHORT)
def test_truncated_and_evicted_it_stays_as_good(dtype):
    cache, (query, key, value) = sampled(dtype=dtype, tolerance=0.02)
    exact = icecore.attention(*(a.astype(np.float64) for a in (query[:, :640], key[:, :640], value[:, :640])), causal=True)
    cache.truncate(600)
    assert cache.validate()
    out = go_on(cache, query, key, value, 600, 640)
    assert head_error(out, exact[:, 600:]).max() < 0.03
    evicted = cache.evict(256)
    assert evicted > 0
    assert cache.validate()
    seen = np.r_[:16, evicted:700]
    out = go_on(cache, query, key, value, 640, 700)[:, -1:]
    exact = icecore.attention(*(a.astype(np.float64) for a in (query[:, 699:700], key[:, seen], value[:, seen])))
    assert head_error(out, exact).max() < 0.03


def test_sequences_of_which_one_has_an_offset_share_a_file():
    query, key, value = biased(500, 460, 1e4)
    plain = biased(500, 0, 1e4, seed=1)
    cache = icecore.KVCache(1, DIM, dtype="bfloat16", window=WINDOW, batch=2, k=64)
    both = [np.stack([a, b]) for a, b in zip((query, key, value), plain, strict=True)]
    for first in range(0, 400, 80):
        rows = slice(first, first + 80)
        cache.append(both[1][:, :, rows], both[2][:, :, rows])
        cache.attend(both[0][:, :, rows])
    read = pickle.loads(pickle.dumps(cache))
    assert read.validate()
    outs = []
    for own in (cache, read):
        own.append(both[1][:, :, 400:], both[2][:, :, 400:])
        outs.append(own.attend(both[0][:, :, 400:]))
    assert_same_bits(outs[1][0], outs[0][0])
    assert head_error(outs[1][1], outs[0][1]).max() < 0.03


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_key_that_is_not_finite_is_seen_by_those_who_see_it(dtype, wrong):
    query, key, value = biased(600, 460, 1e4)
    key[0, 200, 5] = wrong
    cache, _ = filled(query, key, value, dtype, chunk=100, window=WINDOW, k=16)
    spoilt = np.isnan(icecore.attention(query[:, -1:], key, value))
    assert spoilt.any()
    assert np.isnan(cache.attend(query[:, -1:]))[spoilt].all()
    assert np.isfinite(filled(query[:, :200], key[:, :200], value[:, :200], dtype, chunk=100, window=WINDOW, k=16)[1]).all()
