"""A saved cache: goes on as the saved one would have, is refused when damaged or foreign, and never harms who opens it."""

import copy
import gc
import json
import os
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
from helpers import SavedFile, assert_same_bits, decode, head_error, index_bytes, resealed, run_python
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from safetensors.numpy import load_file
from test_cache import DIM, QUANTIZED, SINKS, SMALL, CacheMachine, run, tokens

import icecore
from icecore import _array_file, _native

KVCache = icecore.KVCache
opens = pytest.mark.parametrize("opener", [KVCache.load, KVCache.view])
TOKENS = tokens(420)


def sample(end=350, **options):
    """Several segments, open rows, a segment in the making, sums of queries."""
    cache = KVCache(2, DIM, **SMALL | {"k": 24} | options)
    run(cache, *TOKENS, [end - 50] + [1] * 50)
    return cache


def read(data, own):
    """The cache of a file's bytes, by the rules of `load` or of `view`."""
    return KVCache._read(np.frombuffer(bytearray(data), np.uint8), "it", own)


def refuses(data, match="", owns=(True, False)):
    for own in owns:
        with pytest.raises(ValueError, match=f"it is not a usable cache file: .*{match}"):
            read(data, own)


# ---- There and back ----


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_what_comes_back_goes_on_with_the_same_bits(tmp_path, isa, dtype):
    cache = sample(dtype=dtype, seed=5)
    cache.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == index_bytes(cache)
    twins = {
        "load": KVCache.load(tmp_path / "a"),
        "view": KVCache.view(str(tmp_path / "a")),
        "fork of a view": KVCache.view(tmp_path / "a").fork(),
        "pickle": pickle.loads(pickle.dumps(cache)),
        "pickle of a view": pickle.loads(pickle.dumps(KVCache.view(tmp_path / "a"))),
        "deepcopy": copy.deepcopy(cache),
    }
    expected = run(cache, *TOKENS, [1] * 70)
    for threads, twin in zip([1, 2] * 3, twins.values(), strict=True):
        assert twin.validate()
        assert repr(twin).replace("350", "420") == repr(cache)
        assert len(twin) == 350
        with icecore.threads(threads):
            for found, own in zip(run(twin, *TOKENS, [1] * 70), expected, strict=True):
                assert_same_bits(found, own)
        assert twin.validate()
        assert index_bytes(twin) == index_bytes(cache)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_how_far_to_open_is_kept(tmp_path, isa, dtype):
    """And the metric: the same bits until the next query is measured; what is measured then begins anew."""
    cache = sample(355, k=None, tolerance=0.2, dtype=dtype)
    cache.save(tmp_path / "a")
    twins = [KVCache.load(tmp_path / "a"), KVCache.view(tmp_path / "a").fork(), pickle.loads(pickle.dumps(cache))]
    expected = run(cache, *TOKENS, [1] * 4)
    for twin in twins:
        for found, own in zip(run(twin, *TOKENS, [1] * 4), expected, strict=True):
            assert_same_bits(found, own)
        run(twin, *TOKENS, [1] * 21)
    assert dtype != "float32" or (expected[2] < cache.stats["sealed"] - SINKS).any()
    fresh = KVCache(2, DIM, tolerance=0.2, **SMALL)
    fresh.append(TOKENS[1][:, :380], TOKENS[2][:, :380])
    info = fresh.attend(TOKENS[0][:, 379:380], return_info=True)[1]
    np.testing.assert_array_equal(info.near_keys, fresh.stats["sealed"] - SINKS)  # nothing is known
    exact = decode(icecore.attention(*TOKENS, causal=True))[:, 380:]
    for twin in twins:
        out = run(twin, *TOKENS, [1] * 40)[0]
        assert head_error(out, exact).max() < 2 * 0.2 + 0.01 * (dtype != "float32")
        assert twin.validate()


def test_a_cache_that_is_truncated_before_what_it_measured_can_be_loaded(tmp_path):
    cache = sample(355, k=None, tolerance=0.2)
    cache.truncate(10)
    cache.save(tmp_path / "a")
    assert len(KVCache.load(tmp_path / "a")) == 10


def test_a_view_takes_no_memory_and_reads_the_file(tmp_path):
    """But for what is known of queries, which is as much whatever the tokens."""
    cache = KVCache(2, DIM, k=24, **SMALL)
    cache.append(*tokens(20000)[1:])
    cache.save(tmp_path / "unseen")
    assert KVCache.view(tmp_path / "unseen").nbytes == 0
    cache.attend(TOKENS[0][:, :1])
    cache.save(tmp_path / "a")
    view, loaded = KVCache.view(tmp_path / "a"), KVCache.load(tmp_path / "a")
    assert view.nbytes < 0.02 * loaded.nbytes
    assert loaded.nbytes > 0.9 * (tmp_path / "a").stat().st_size - 4096
    assert view.stats | {"bytes": 0} == cache.stats | {"bytes": 0}


def test_the_file_lives_as_long_as_a_fork_does(tmp_path):
    cache = sample()
    cache.save(tmp_path / "a")
    view = KVCache.view(tmp_path / "a")
    batch = KVCache.view(tmp_path / "a").fork()
    fork = view.fork().fork()
    (tmp_path / "a").unlink()
    del view
    gc.collect()
    expected = run(cache, *TOKENS, [1] * 70)[0]
    assert_same_bits(run(fork, *TOKENS, [1] * 70)[0], expected)
    assert_same_bits(run(batch, *TOKENS, [70])[0], run(sample(), *TOKENS, [70])[0])


@pytest.mark.parametrize("change", [
    lambda cache: cache.truncate(347),
    lambda cache: cache.truncate(100),
    lambda cache: cache.truncate(SINKS - 1),
    lambda cache: cache.evict(300),
    lambda cache: (cache.evict(300), cache.truncate(320)),
    lambda cache: (cache.evict(300), cache.truncate(2)),
    lambda cache: cache.truncate(0),
], ids=range(7))  # fmt: skip
@opens
def test_changed_before_or_after_saving_is_the_same(tmp_path, opener, change):
    cache = sample()
    cache.save(tmp_path / "before")
    change(cache)
    cache.save(tmp_path / "after")
    before, after = opener(tmp_path / "before"), opener(tmp_path / "after")
    change(before)
    assert before.validate()
    rest = [1] * (400 - len(cache))
    expected = run(cache, *TOKENS, rest)[0]
    for twin in (before, after):
        assert_same_bits(run(twin, *TOKENS, rest)[0], expected)
        assert twin.stats["evicted"] == cache.stats["evicted"]
        assert twin.validate()


@pytest.mark.parametrize("count", [0, 1, SINKS, 31, 33])
@opens
def test_small_ones(tmp_path, opener, count):
    for sinks in (0, SINKS, 100):
        cache = KVCache(2, DIM, value_dim=3, window=8, sinks=sinks)
        cache.append(TOKENS[1][:, :count], TOKENS[2][:, :count, :3])
        cache.save(tmp_path / "a")
        twin = opener(tmp_path / "a")
        assert twin.validate()
        for c in (cache, twin):
            c.append(TOKENS[1][:, count : count + 40], TOKENS[2][:, count : count + 40, :3])
        assert_same_bits(twin.attend(TOKENS[0][:, :40]), cache.attend(TOKENS[0][:, :40]))


@opens
def test_a_prompt_that_was_never_asked(tmp_path, opener):
    """Its queries are in the file: the first question opens what it would have opened before."""
    prompt, steps = tokens(2000), tokens(20, seed=1)
    cache = KVCache(2, DIM, tolerance=0.1, **SMALL)
    cache.append(*prompt[1:], prompt[0])
    cache.save(tmp_path / "a")
    twin = opener(tmp_path / "a")
    for i in range(20):
        step = [a[:, i : i + 1] for a in steps]
        for c in (cache, twin):
            c.append(*step[1:])
        (out, info), (expected, expected_info) = (c.attend(step[0], return_info=True) for c in (twin, cache))
        assert_same_bits(out, expected)
        assert_same_bits(info.near_keys, expected_info.near_keys)
    assert info.near_keys.max() < 1000


@opens
def test_sequences_that_share_segments(tmp_path, opener):
    """They are written once, and go their own ways."""
    one = KVCache(2, DIM, batch=1, k=24, **SMALL)
    query, key, value = (a[None] for a in TOKENS)
    one.append(key[:, :, :300], value[:, :, :300])
    one.attend(query[:, :, 290:300])
    one.save(tmp_path / "one")
    one.reorder([0] * 5)
    one.save(tmp_path / "five")
    own = 5 * 2 * (SINKS + one.stats["open"] + 10) * 2 * DIM * 4  # open rows and ten queries
    assert (tmp_path / "five").stat().st_size < (tmp_path / "one").stat().st_size + own + 4096
    twin = opener(tmp_path / "five")
    assert twin.batch == 5
    twin.reorder([4, 1, 0])
    one.reorder([4, 1, 0])
    keys, values = (np.concatenate([a[:, :, 300:], b, c]) for a, b, c in [
        (key, tokens(120, seed=8)[1][None], tokens(120, seed=9)[1][None]),
        (value, tokens(120, seed=8)[2][None], tokens(120, seed=9)[2][None]),
    ])  # fmt: skip
    queries = np.repeat(query[:, :, 300:], 3, axis=0)
    for cache in (one, twin):
        cache.append(keys, values)
    expected = one.attend(queries)
    assert_same_bits(twin.attend(queries), expected)
    twin.save(tmp_path / "apart")
    apart = opener(tmp_path / "apart")
    assert apart.validate()
    assert_same_bits(apart.attend(queries[:, :, -1:]), twin.attend(queries[:, :, -1:]))


def test_from_one_instruction_set_to_another(tmp_path):
    """Means are bfloat16 where the processor multiplies it, and are converted."""
    sets = [name for name in _native.usable_isas() if name in ("scalar", "avx512_bf16", "amx")]
    if len(sets) < 2:
        pytest.skip("needs a processor that multiplies bfloat16")
    exact = {}
    try:
        for writer in sets:
            icecore.set_isa(writer)
            cache = sample(dtype="bfloat16")
            cache.save(tmp_path / writer)
            exact[writer] = run(cache, *TOKENS, [1] * 50)[0]
        for writer in sets:
            for reader in sets:
                icecore.set_isa(reader)
                for opener in (KVCache.load, KVCache.view):
                    cache = opener(tmp_path / writer)
                    out = run(cache, *TOKENS, [1] * 50)[0]
                    assert cache.validate()
                    np.testing.assert_allclose(out, exact[writer], atol=0.1)
                    if reader == writer:
                        assert_same_bits(out, exact[writer])
                    assert read(index_bytes(cache), own=True).validate()
    finally:
        icecore.set_isa(None)


def test_radii_hold_all_keys_when_means_are_converted(tmp_path):
    """Distances are those in the segment's metric, which here weighs components very differently."""
    if "avx512_bf16" not in _native.usable_isas():
        pytest.skip("needs a processor that multiplies bfloat16")
    rng = np.random.default_rng(0)
    rows = 1e-3 * rng.standard_normal((2, 300, 16)) + rng.standard_normal((2, 8, 16))[:, rng.integers(8, size=300)]
    rows = (rows * np.exp2(np.linspace(-3, 3, 16))).astype(np.float32)
    try:
        icecore.set_isa("scalar")
        cache = KVCache(2, 16, dtype="bfloat16", window=32, k=10)
        cache.append(rows, rows)
        cache.attend(rows[:, -1:])
        cache.save(tmp_path / "scalar")
        icecore.set_isa("avx512_bf16")
        arrays = SavedFile.of(KVCache.load(tmp_path / "scalar")).arrays
    finally:
        icecore.set_isa(None)
    assert arrays["cell.mean_key"].dtype == ml_dtypes.bfloat16
    count, cells, *_ = arrays["segment"].reshape(-1, 5)[0]
    keys, means = (arrays[name].reshape(-1, 16).astype(np.float64) for name in ("keys", "cell.mean_key"))
    means += arrays["centre"].reshape(-1, 16)[0]
    cell = np.repeat(np.arange(cells), np.diff(arrays["cell.offset"].reshape(-1)[: cells + 1]))
    metric = arrays["metric"].reshape(-1, 16)[0]
    distance = np.linalg.norm((keys[:count] - means[cell]) * metric, axis=1)
    assert np.all(distance <= arrays["cell.radius"].reshape(-1)[cell] * (1 + 1e-5))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_any_safetensors_reader_opens_it(tmp_path, dtype):
    cache = sample(dtype=dtype)
    cache.save(tmp_path / "a.safetensors")
    arrays = load_file(tmp_path / "a.safetensors")
    stored = np.dtype(getattr(ml_dtypes, "bfloat16" if dtype in QUANTIZED else dtype, dtype))  # of open rows
    rows = 2 * (cache.stats["sealed"] - SINKS)
    if dtype in QUANTIZED:  # codes, then a scale of two bytes for each 16
        row = QUANTIZED[dtype] * DIM // 8 + 2 * (DIM // 16)
        assert (arrays["keys"].shape, arrays["keys"].dtype) == ((rows * row,), np.uint8)
    else:
        assert (arrays["keys"].shape, arrays["keys"].dtype) == ((rows, DIM), stored)
    sealed = cache.stats["sealed"]
    np.testing.assert_array_equal(arrays["open.keys"].reshape(2, -1, DIM), TOKENS[1][:, sealed:350].astype(stored))
    np.testing.assert_array_equal(arrays["sinks.values"].reshape(2, -1, DIM), TOKENS[2][:, :SINKS].astype(stored))


def test_arrays_are_aligned():
    for width in (1, 7, 64):
        cache = KVCache(3, width, value_dim=5, dtype="bfloat16", **SMALL)
        cache.append(np.ones((3, 150, width), np.float32), np.ones((3, 150, 5), np.float32))
        cache.attend(np.ones((3, 1, width), np.float32))
        data = index_bytes(cache)
        (length,) = struct.unpack_from("<Q", data)
        assert (8 + length) % 64 == 0
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                assert entry["data_offsets"][0] % {"BF16": 2, "F32": 4, "I32": 4, "I64": 8}[entry["dtype"]] == 0
    assert SavedFile.parse(data).arrays["keys"].shape[1] == 64
    assert json.loads(data[8 : 8 + length])["keys"]["data_offsets"][0] % 64 == 0


# ---- Writing ----


def test_the_file_is_whole_or_old(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    old, new = sample(), sample(dtype="bfloat16")
    old.save(path)
    view, data = KVCache.view(path), path.read_bytes()
    expected = run(old, *TOKENS, [1] * 20)[0]

    def fail(*_):
        raise OSError("no space left")

    for module, name in ((os, "fsync"), (os, "replace"), (_array_file, "_header"), (_array_file.zlib, "crc32")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match="no space left"):
                new.save(path)
        assert [*tmp_path.iterdir()] == [path]
        assert path.read_bytes() == data
    new.save(path)
    assert [*tmp_path.iterdir()] == [path]
    assert_same_bits(run(view, *TOKENS, [1] * 20)[0], expected)  # of the old file
    assert KVCache.load(path).dtype == "bfloat16"


# ---- Damage ----


@pytest.fixture(scope="module")
def small():
    return index_bytes(sample(100))


def test_truncated(small):
    (length,) = struct.unpack_from("<Q", small)
    for place in {0, 1, 7, 8, 100, length, *range(0, len(small), 499), len(small) - 1}:
        refuses(small[:place])
    refuses(small + b"\0")
    refuses(small[1:])


def test_flipped_bits(small):
    start = 8 + struct.unpack_from("<Q", small)[0]
    generator = np.random.default_rng(0)
    for place in [*range(0, start, 3), *generator.integers(start, len(small), 200)]:
        flipped = bytearray(small)
        flipped[place] ^= 1 << int(generator.integers(8))
        refuses(flipped, "" if place < start else "its data are damaged", owns=(True, False) if place < start else (True,))


def test_foreign_files(tmp_path):
    index = icecore.Index(3)
    index.add(np.ones((5, 3)))
    refuses(index_bytes(index), "it holds 'icecore.index', not a cache")
    for data in (b"", b"short", b"\0" * 1000, b"\xff" * 1000, struct.pack("<Q", 2) + b"{}"):
        refuses(data)
    for opener in (KVCache.load, KVCache.view):
        with pytest.raises(FileNotFoundError):
            opener(tmp_path / "absent")
    index.save(tmp_path / "a")
    with pytest.raises(ValueError, match="a is not a usable cache file: it holds"):
        KVCache.view(tmp_path / "a")
    with pytest.raises(ValueError, match=r"it holds 'icecore\.cache', not an index"):
        icecore.Index._read(np.frombuffer(index_bytes(sample(60)), np.uint8), "it", verify=True)


WRONG_PARAMETERS = {
    "num_kv_heads": [0, 1, 3, 2**40, 2.0, None, "absent"],
    "dim": [DIM // 2, 0, 577, "16", "absent"],
    "value_dim": [DIM + 1, -1],
    "dtype": ["bfloat16", "float64", None, 3, []],
    "k": [0, 0.5, "absent"],
    "tolerance": [0.1, "x"],
    "plan": [{}, "x", {"heads": []}, "absent"],
    "window": [SMALL["window"] + 1, 0, 2**40, None],
    "sinks": [0, 3, 5, 2**31],
    "seed": [-1, 0.5],
    "batch": [1, 2, 0, 2**40, 2**62, "2"],
    "extra": [1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG_PARAMETERS.items() for v in values], ids=str)
def test_parameters_that_do_not_fit(small, name, value):
    def change(header):
        own = json.loads(header["__metadata__"]["parameters"]) | {name: value}
        header["__metadata__"]["parameters"] = json.dumps({k: v for k, v in own.items() if v != "absent"})

    if (name, value) == ("batch", 1):  # one sequence, with a first axis
        assert read(resealed(small, change), own=True).batch == 1
    else:
        refuses(resealed(small, change))


def test_other_versions(small):
    refuses(resealed(small, lambda header: header["__metadata__"].update(version="3")), "of version '3'; .* reads version 7")


# ---- Files made to harm: the checksums are right ----


def edits_of_arrays():
    """{what: change of the arrays by name}."""

    def put(name, place, value):
        return lambda arrays: arrays[name].reshape(-1).__setitem__(place, value)

    def resize(name, count):
        return lambda arrays: arrays.update({name: np.resize(arrays[name].reshape(-1), count)})

    large = (2**31, 2**40, 2**62, -(2**63))
    for i, name in enumerate(["largest segment", "block", "cell size", "means"]):
        for value in (-1, 1, 2, *large):
            yield f"header: {name} is {value}", put("header", i, value)
    for i, name in enumerate(["length", "evicted", "sealed"]):
        for value in (-1, 3, 64, 101, 2000, *large):
            if name != "evicted" or value not in (3, 64):  # these may be
                yield f"sequence: {name} is {value}", put("sequence", i, value)
    for i, name in enumerate(["group", "known", "last", "renewed", "kept", "unmeasured", "sums"], 3):
        for value in (-1, *large):
            if name != "known":  # all numbers but 0 mean that it is
                yield f"sequence: {name} is {value}", put("sequence", i, value)
    yield "sequence: another group", put("sequence", 3, 2)
    yield "sequence: no sums", put("sequence", 9, 0)
    yield "sequence: no kept queries", put("sequence", 7, 0)
    for place, value in ((0, -1), (1, 0), (2, -1), (-1, 101), (-1, 2**62)):
        yield f"query.position: {place} is {value}", put("query.position", place, value)
    for place, wrong in ((0, (0, -1, np.nan, np.inf)), (1, (np.nan, -np.inf)), (2, (2, 0.5, np.nan)), (3, (3, -1, np.nan))):
        for value in wrong:
            yield f"rule: {place} is {value}", put("rule", place, value)
    for value in (-1, 0, 1, 5, *large):
        yield f"head: {value}", put("head", 1, value)
    for value in (-2, -1, 100, 2**31 - 1, -(2**31)):
        yield f"level: {value}", put("level", 0, value)
    for i, name in enumerate(["keys", "cells", "parents"]):
        for value in (-1, 0, 1000, *large):
            yield f"segment: {name} {value}", put("segment", i, value)
    for value in (-1, 1, 2, *large):
        yield f"segment: less means is {value}", put("segment", 3, value)
    for value in (-1, 0, 2, 3, *large):
        yield f"header: offset is {value}", put("header", 4, value)
    for name in ("cell.offset", "parent.offset"):
        for place in (0, 1, -1):
            for value in (-1, 0 if place else 1, 2**40, -(2**63), 2**63 - 1):
                yield f"{name} {place} is {value}", put(name, place, value)
    for value in (-1, 60, 2**31 - 1, -(2**31)):
        yield f"order names {value}", put("order", 3, value)
    for name, wrong in (("metric", (0, -1, np.nan, np.inf)), ("component_variance", (-1, np.nan, np.inf))):
        for value in wrong:
            yield f"{name} is {value}", put(name, 1, value)
    yield "order names a key twice", lambda arrays: arrays["order"].__setitem__(3, arrays["order"][4])
    for name in SavedFile.parse(index_bytes(sample(100))).arrays:
        yield f"{name} is shorter", lambda arrays, name=name: arrays.update({name: arrays[name].reshape(-1)[:-1]})
        yield f"{name} is longer", resize(name, 30000)
        yield f"{name} is empty", resize(name, 0)
        yield f"{name} is missing", lambda arrays, name=name: arrays.pop(name)
        yield f"{name} has another type", lambda arrays, name=name: arrays.update({name: arrays[name].view(np.uint8)})
    yield "an extra array", lambda arrays: arrays.update(extra=np.zeros(3, np.uint8))
    yield "an endless name", lambda arrays: arrays.update({"n" * 5000: np.zeros(3, np.uint8)})


@pytest.mark.parametrize(("what", "change"), [pytest.param(*edit, id=edit[0]) for edit in edits_of_arrays()])
def test_files_made_to_harm(small, what, change):
    file = SavedFile.parse(small)
    change(file.arrays)
    refuses(file.bytes(), ".")


HARMFUL = """
import sys, numpy as np, icecore
sys.path.insert(0, {tests!r})
from helpers import SavedFile
from test_cache_file import TOKENS, read, sample
from test_cache import run
from helpers import index_bytes
file = SavedFile.of(sample(200, dtype={dtype!r}, **{budget!r}))
opened = 0
rng = np.random.default_rng(0)
for name, array in file.arrays.items():
    for change in range(9):
        flat = array.copy().reshape(-1)
        if change < 6 and flat.dtype.kind not in "fV":
            continue
        places = [slice(None), slice(5, 6), slice(None, None, 3)][change % 3]
        if change < 6:
            flat[places] = [np.nan, np.inf, -np.inf, 3e38, -3e38, 0][change]
        else:  # noise
            raw = flat.view(np.uint8)
            raw[rng.integers(0, len(raw), 1 + change % 3 * 20)] = rng.integers(0, 256, 1 + change % 3 * 20)
        arrays = dict(file.arrays) | {{name: flat.reshape(array.shape)}}
        for own in (True, False):
            try:
                cache = read(SavedFile(file.metadata, arrays).bytes(), own)
            except ValueError:
                continue
            opened += 1
            fork = cache.fork()
            run(cache, *TOKENS, [1] * 40)
            fork.truncate(90)
            run(fork, *TOKENS, [10, 60])
            fork.evict(100)
            run(fork, *TOKENS, [40])
            read(index_bytes(fork), own=False)
assert opened > 50
print("safe")
"""


@pytest.mark.parametrize(
    ("dtype", "budget"),
    [("float32", {"k": 24}), ("bfloat16", {"k": None, "tolerance": 0.05}), ("int8", {"k": 24}), ("int4", {"k": 24})],
    ids=str,
)
def test_numbers_that_no_cache_holds(dtype, budget):
    """NaN, infinities and noise wherever numbers are: calls end, and touch nothing else."""
    code = HARMFUL.format(tests=os.path.dirname(__file__), dtype=dtype, budget=budget)
    done = run_python(code, timeout=600)
    assert (done.returncode, done.stdout) == (0, "safe\n"), done.stderr[-2000:]


def test_pickles_are_checked():
    rebuild, (cls, data) = sample(60).__reduce__()
    assert cls is KVCache
    for damaged in (data[:-1], data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]):
        with pytest.raises(ValueError, match="pickled data is not a usable cache file"):
            rebuild(KVCache, damaged)


# ---- Everything in any order ----


class FileMachine(CacheMachine):
    """The caches of test_cache.py, which are also saved, and opened in place of the saved ones or beside them."""

    @rule(which=st.integers(0, 9), own=st.booleans(), beside=st.booleans())
    def save_and_open(self, which, own, beside):
        i = self.pick(which)
        cache, *rest = self.pairs[i]
        opened = read(index_bytes(cache), own)
        if beside and len(self.pairs) < 4:
            self.pairs.append((opened, *rest))
        else:
            self.pairs[i] = opened, *rest


TestFilesInAnyOrder = FileMachine.TestCase
TestFilesInAnyOrder.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


OVERWRITTEN = """
import numpy as np, icecore
from icecore import _array_file
cache, rows = icecore.KVCache(1, 8, k=16), np.ones((1, 5000, 8), np.float32)
cache.append(rows, rows)
cache.attend(rows[:, -1:])
cache.save({path!r})
parse = _array_file.parse
def overwritten(*arguments, **options):
    open({path!r}, "wb").close()  # by another process, in place: no byte of the old file is left
    return parse(*arguments, **options)
_array_file.parse = overwritten
print(len(icecore.KVCache.load({path!r})))
"""


def test_a_file_that_is_overwritten_in_place_while_it_is_loaded_is_loaded_as_it_was(tmp_path):
    done = run_python(OVERWRITTEN.format(path=str(tmp_path / "cache")))
    assert (done.returncode, done.stdout) == (0, "5000\n"), done.stderr[-2000:]
