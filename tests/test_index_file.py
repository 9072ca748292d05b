"""A saved index: comes back as it was, is refused when it is damaged or foreign, and never harms who opens it."""

import copy
import json
import os
import pickle
import struct
import threading

import numpy as np
import pytest
from helpers import (
    VARIANTS,
    SavedFile,
    assert_same_result,
    clusters,
    index_bytes,
    index_contents,
    normal,
    resealed,
    run_python,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import icecore
from icecore import _array_file

DIM = 6
Index = icecore.Index

variants = pytest.mark.parametrize("variant", VARIANTS)
opens = pytest.mark.parametrize("opener", [Index.load, Index.view])


def sample(**options):
    """Two segments, an open block, removed vectors and free slots."""
    vectors = clusters(0, 4000, DIM)
    index = Index(DIM, **options)
    index.add(vectors[:1100])
    index.compact()
    index.add(vectors[1100:3500])
    index.add(vectors[3500:3600])
    index.remove(np.arange(50, 150))
    index.remove(np.arange(3550, 3560))
    stats = index.stats
    assert (stats["segments"], stats["open"], stats["removed"], stats["count"]) == (2, 90, 100, 3490)
    assert stats["slots"] == 3600
    return index


QUERIES = clusters(1, 30, DIM)


def saved(index, path):
    index.save(path)
    return path.read_bytes()


def opened(data, path, opener):
    path.write_bytes(data)
    return opener(path)


def index_of(data, load):
    """The index of a file's bytes, by the rules of `load` or of `view`."""
    return Index._loaded(data, "it") if load else Index._read(data, "it", verify=False)


def refuses(data, path, opener=Index.load, match=""):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"is not a usable index file: .*{match}") as caught:
        opener(path)
    assert str(path) in str(caught.value)


# ---- There and back ----


@variants
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trips(tmp_path, variant, dtype):
    index = sample(dtype=dtype, seed=3, **VARIANTS[variant])
    data = saved(index, tmp_path / "a")
    assert data == index_bytes(index)
    copies = {
        "load": Index.load(tmp_path / "a"),
        "view": Index.view(str(tmp_path / "a")),
        "pickle": pickle.loads(pickle.dumps(index)),
        "copy": index.copy(),
        "copy of a view": Index.view(tmp_path / "a").copy(),
        "copy.copy": copy.copy(index),
        "view of a copy": pickle.loads(pickle.dumps(Index.view(tmp_path / "a"))),
    }
    for name, twin in copies.items():
        assert twin.validate()
        assert repr(twin) == repr(index)
        assert index_contents(twin) == index_contents(index)
        np.testing.assert_array_equal(twin.ids, index.ids)
        searches = [{}, {"field_of_view": 2}, {"exact": True}, {"filter": np.arange(0, 4000, 3)}]
        if "lists" not in variant:  # where removed vectors take pops, which are made up for on average
            searches.append({"visit": 300})
        for options in searches:
            assert_same_result(twin.search(QUERIES, 7, **options), index.search(QUERIES, 7, **options))
        own, other = SavedFile.of(twin), SavedFile.parse(data)
        assert own.metadata == other.metadata
        for array, expected in zip(own.arrays.values(), other.arrays.values(), strict=True):
            assert array.tobytes() == expected.tobytes()
        read_only = name == "view"
        assert twin.stats["read_only"] == read_only
        if not read_only:
            twin.add(normal(2, 3, DIM))
            np.testing.assert_array_equal(twin.ids[np.isin(twin.ids, index.ids, invert=True)].size, 3)
    # what grows from one file is the same
    grown = [Index.load(tmp_path / "a"), Index.view(tmp_path / "a").copy(), pickle.loads(pickle.dumps(index))]
    for twin in grown:
        twin.add(normal(3, 3000, DIM))
        twin.remove(np.arange(500, 1500))
        for row in normal(4, 300, DIM):
            twin.add(row)
        assert twin.validate()
    assert index_bytes(grown[0]) == index_bytes(grown[1]) == index_bytes(grown[2])


@pytest.mark.parametrize(
    "index",
    [
        Index(3),
        Index(1, metric="l2", dtype="bfloat16", num_levels=8, promotion=0.3, seed=2**64 - 1),
        Index(16384),
        Index(3, num_composite=64, num_simple=1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_small_ones(tmp_path, index, count):
    index = index.copy()
    index.add(normal(0, count, index.dim), np.arange(count) * -7)
    data = saved(index, tmp_path / "a")
    for opener in (Index.load, Index.view):
        twin = opener(tmp_path / "a")
        assert twin.validate()
        assert repr(twin) == repr(index)
        assert index_contents(twin) == index_contents(index)
        assert index_bytes(twin) == data


def test_a_large_id_and_the_next_one(tmp_path):
    index = Index(2)
    index.add(np.ones((2, 2)), [-(2**63), 2**62])
    index.save(tmp_path / "a")
    twin = Index.load(tmp_path / "a")
    assert set(twin) == {-(2**63), 2**62}
    assert twin.add(np.ones(2)).tolist() == [2**62 + 1]


def test_merges_begin_anew(tmp_path):
    index = Index(DIM)
    vectors = clusters(0, 9000, DIM)
    index.add(vectors[:2048])
    index.add(vectors[2048:4096])
    assert index.stats["merging"] == 2
    index.save(tmp_path / "a")
    twin = Index.load(tmp_path / "a")
    assert twin.stats["merging"] == 2
    assert Index.view(tmp_path / "a").stats["merging"] == 0
    for row in vectors[4096:]:
        twin.add(row)
    assert twin.stats["segments"] < 5
    assert twin.validate()


@variants
@pytest.mark.parametrize("gone", [30, 2990])
def test_removed_vectors_are_in_no_file_and_take_no_room(tmp_path, variant, gone):
    vectors = normal(0, 3500, DIM)
    index = Index(DIM, **VARIANTS[variant])
    index.add(vectors[:3000])
    index.add(vectors[3000:])
    removed = np.concatenate([np.arange(0, gone), np.arange(3100, 3200)])
    for part in np.array_split(removed, 7):
        index.remove(part)
    for twin in (index, index.copy()):
        data = saved(twin, tmp_path / "a")
        assert not any(vectors[id].tobytes() in data for id in removed)
        assert all(vectors[id].tobytes() in data for id in index.ids[:50])
        assert len(SavedFile.parse(data).arrays["ids"]) == len(index)
    loaded = Index.load(tmp_path / "a")
    assert loaded.stats["slots"] == len(loaded) == len(index)
    assert loaded.validate()
    assert index_contents(loaded) == index_contents(index)
    assert_same_result(loaded.search(QUERIES, 7), index.search(QUERIES, 7))


def test_any_safetensors_reader_opens_it(tmp_path):
    index = sample(dtype="float16")
    index.save(tmp_path / "a.safetensors")
    arrays = load_file(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "icecore.index"
    assert metadata["version"] == "3"
    assert json.loads(metadata["parameters"]) == index._parameters
    assert arrays["vectors"].shape == (3490, DIM)
    assert arrays["vectors"].dtype == np.float16
    used = arrays["state"] == 1
    np.testing.assert_array_equal(arrays["ids"][used], index.ids)
    np.testing.assert_array_equal(arrays["vectors"][used], index[index.ids])


@variants
def test_arrays_are_aligned(variant):
    data = index_bytes(sample(dtype="bfloat16", **VARIANTS[variant]))
    (length,) = struct.unpack_from("<Q", data)
    assert (8 + length) % 64 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % {"U8": 1, "BF16": 2, "F32": 4, "I32": 4, "I64": 8}[entry["dtype"]] == 0


# ---- Writing ----


def test_the_file_is_whole_or_old(tmp_path, monkeypatch):
    """A write that fails leaves the old file, and nothing beside it."""
    old, index = sample(), sample(metric="l2")
    path = tmp_path / "index"
    data = saved(old, path)

    def fail(*_):
        raise OSError("no space left")

    for module, name in ((os, "fsync"), (os, "replace"), (_array_file, "write"), (_array_file, "_header")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match="no space left"):
                index.save(path)
        assert [*tmp_path.iterdir()] == [path]
        assert path.read_bytes() == data
    calls = []

    def interrupt(piece, before):
        calls.append(piece)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return before

    with monkeypatch.context() as patch:
        patch.setattr(_array_file.zlib, "crc32", interrupt)
        with pytest.raises((KeyboardInterrupt, TypeError)):
            index.save(path)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == data
    assert index.validate()
    assert saved(index, path) != data
    assert [*tmp_path.iterdir()] == [path]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    Index(3).save(tmp_path / "index")
    assert (tmp_path / "index").stat().st_mode == plain.stat().st_mode


def test_places_that_cannot_be_written(tmp_path):
    index = sample()
    for path in (tmp_path / "absent" / "index", tmp_path):
        with pytest.raises(OSError):
            index.save(path)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(TypeError):
        index.save(None)


@opens
def test_places_that_cannot_be_read(tmp_path, opener):
    with pytest.raises(FileNotFoundError):
        opener(tmp_path / "absent")
    with pytest.raises(OSError):
        opener(tmp_path)


def test_saving_over_the_file_of_a_view(tmp_path):
    one, other = sample(), sample(metric="l2")
    one.save(tmp_path / "a")
    view = Index.view(tmp_path / "a")
    expected = one.search(QUERIES, 5)
    other.save(tmp_path / "a")
    assert_same_result(view.search(QUERIES, 5), expected)
    view.save(tmp_path / "a")
    assert_same_result(Index.load(tmp_path / "a").search(QUERIES, 5), expected)
    assert view.validate()


# ---- Views ----


@variants
def test_a_view_is_read_only(tmp_path, variant):
    index = sample(**VARIANTS[variant])
    data = saved(index, tmp_path / "a")
    view = Index.view(tmp_path / "a")
    for change in (
        lambda: view.add(np.ones(DIM)),
        lambda: view.add(normal(0, 2000, DIM)),
        lambda: view.remove(0),
        lambda: view.__delitem__(0),
        lambda: view.clear(),
        lambda: view.compact(),
        lambda: view.reserve(10**5),
    ):
        with pytest.raises(ValueError, match=r"read-only view of a file; copy\(\) gives one"):
            change()
    assert view.validate()
    assert (tmp_path / "a").read_bytes() == data
    assert 0 in view
    assert 50 not in view
    assert list(view) == list(index)
    np.testing.assert_array_equal(view[3], index[3])
    view.tune(QUERIES, 3)
    twin = view.copy()
    twin.remove(0)
    twin.compact()
    assert twin.validate()
    assert 0 in view


def test_a_view_takes_little_memory(tmp_path):
    index = Index(64)
    index.add(normal(0, 20000, 64))
    index.save(tmp_path / "a")
    view = Index.view(tmp_path / "a")
    assert view.nbytes < index.nbytes / 50


def test_threads_that_share_a_view(tmp_path):
    """The ids are entered when they are first needed, by whoever comes first."""
    index = sample()
    index.save(tmp_path / "a")
    for _ in range(20):
        view, errors = Index.view(tmp_path / "a"), []
        expected = index.search(QUERIES, 5)

        def use(view=view, errors=errors, expected=expected):
            try:
                assert 0 in view
                assert_same_result(view.search(QUERIES, 5), expected)
                np.testing.assert_array_equal(view[[0, 3]], index[[0, 3]])
                assert view.validate()
                view.search(QUERIES, 5, filter=[1, 2])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]


# ---- Damage ----


@pytest.fixture(scope="module")
def small():
    """The bytes of small files: they are read thousands of times."""
    data = {}
    for name, options in VARIANTS.items():
        index = Index(2, promotion=0.02, **options)
        index.add(clusters(0, 1024, 2))
        index.add(clusters(1, 20, 2))
        index.remove([3, 1030])
        data[name] = index_bytes(index)
    return data


@opens
def test_truncated(tmp_path, small, opener):
    data = small["scan ip"]
    (length,) = struct.unpack_from("<Q", data)
    entries = json.loads(data[8 : 8 + length])
    del entries["__metadata__"]
    borders = {8 + length + offset for entry in entries.values() for offset in entry["data_offsets"]}
    places = {0, 1, 7, 8, 9, 100, length, *(b + d for b in borders for d in (-1, 0, 1))} | {*range(0, len(data), 997)}
    for place in sorted(places):
        if 0 <= place < len(data):
            refuses(data[:place], tmp_path / "a", opener)
    for more in (b"\0", b"x" * 1000, data):
        refuses(data + more, tmp_path / "a", opener)
    refuses(data[1:], tmp_path / "a", opener)


@opens
def test_a_flipped_bit_in_the_header(tmp_path, small, opener):
    data = small["lists ip"]
    (length,) = struct.unpack_from("<Q", data)
    generator = np.random.default_rng(0)
    for place in range(8 + length):
        for bit in generator.choice(8, 2, replace=False) if place >= 8 else range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(ValueError):
                index_of(np.frombuffer(flipped, np.uint8), opener is Index.load)
    refuses(bytes(flipped), tmp_path / "a", opener)


@variants
def test_a_flipped_bit_in_the_data(small, variant):
    """`load` knows by the checksum."""
    data = small[variant]
    start = 8 + struct.unpack_from("<Q", data)[0]
    generator = np.random.default_rng(0)
    for place in [*generator.integers(start, len(data), 400), start, len(data) - 1]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(generator.integers(8))
        with pytest.raises(ValueError, match="its data are damaged"):
            Index._read(np.frombuffer(flipped, np.uint8), "it", verify=True)


DAMAGED_VIEW = """
import json, struct, numpy as np, icecore
data = bytes.fromhex(open({path!r}).read())
start = 8 + struct.unpack_from("<Q", data)[0]
entries = json.loads(data[8:start])
del entries["__metadata__"]
rng = np.random.default_rng({seed})
queries = np.concatenate([rng.standard_normal((40, 2)), np.zeros((1, 2))]).astype(np.float32)
opened = 0
for turn in range({turns}):
    damaged = bytearray(data)
    names = [n for n in entries if entries[n]["data_offsets"][0] < entries[n]["data_offsets"][1]]
    first, last = entries[names[turn % len(names)]]["data_offsets"]
    for place in rng.integers(first, last, {places}) + start:
        damaged[place] = {change}
    try:
        view = icecore.Index._read(np.frombuffer(damaged, np.uint8), "it", verify=False)
    except ValueError:
        continue
    opened += 1
    for use in (view.validate, lambda: view.copy().validate(), lambda: view[view.ids[:50]]):
        try:
            use()
        except (ValueError, KeyError):
            pass
    budgets = [{{}}, {{"visit": 30}}, {{"visit": 700}}, {{"retrieve": 20}}, {{"field_of_view": 1}}]
    budgets += [{{"visit": 300, "retrieve": 5}}, {{"exact": True}}, {{"field_of_view": 10**6, "retrieve": 10**6}}]
    for options in (*budgets, {{"filter": np.arange(500)}}):
        for k in (1, 10, 400):
            result = view.search(queries, k, **options)
            assert (result.counts <= k).all()
    grown = view.copy()
    try:
        grown.add(rng.standard_normal((1100, 2)))
        grown.remove(grown.ids[:300])
        grown.compact()
        grown.search(queries, 5)
    except (ValueError, KeyError):
        pass
assert opened
print("safe")
"""


@variants
@pytest.mark.parametrize(
    ("places", "change"),
    [(1, "damaged[place] ^ 1 << int(rng.integers(8))"), (30, "int(rng.integers(256))"), (100, "255"), (10, "127")],
    ids=["a flipped bit", "noise", "NaN", "large"],
)
def test_a_damaged_view_is_safe(tmp_path, small, variant, places, change):
    """Its data's checksum is not read: searches may find what is wrong, but they end and touch nothing else."""
    (tmp_path / "hex").write_text(small[variant].hex())
    code = DAMAGED_VIEW.format(path=str(tmp_path / "hex"), seed=places, turns=20, places=places, change=change)
    done = run_python(code, timeout=60)
    assert (done.returncode, done.stdout) == (0, "safe\n"), done.stderr[-2000:]


# ---- Foreign files ----


@opens
def test_foreign_files(tmp_path, opener):
    path = tmp_path / "a"
    for data, match in (
        (b"", "too short"),
        (b"short", "too short"),
        (b"A text about something, and longer than a header's length.\n", "not a safetensors file"),
        (pickle.dumps({"vectors": [1, 2, 3] * 100}), ""),
        (b"\0" * 1000, ""),
        (b"\xff" * 1000, "not a safetensors file"),
        (struct.pack("<Q", 2) + b"{}", ""),
        (struct.pack("<Q", 2) + b"[]", ""),
        (struct.pack("<Q", 4) + b"null", ""),
        (struct.pack("<Q", 50) + b"[" * 50, ""),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, ""),
        (struct.pack("<Q", 20) + b'{"__metadata__": {}}', ""),
        (struct.pack("<Q", 22) + b'{"__metadata__": null}', ""),
        (struct.pack("<Q", 2**63) + b"x" * 100, "not a safetensors file"),
    ):
        refuses(data, path, opener, match)
    for metadata in (None, {"format": "pt"}, {"format": "icecore.index"}):
        save_file({"vectors": np.ones((3, 4), np.float32)}, path, metadata)
        refuses(path.read_bytes(), path, opener)
    np.save(tmp_path / "b.npy", np.ones(100))
    refuses((tmp_path / "b.npy").read_bytes(), path, opener)
    refuses(saved(sample(), path)[8:], path, opener)


@opens
@pytest.mark.parametrize("version", ["0", "1", "2", "10", "", 3])
def test_other_versions(tmp_path, opener, version):
    data = resealed(index_bytes(sample()), lambda header: header["__metadata__"].update(version=version))
    refuses(data, tmp_path / "a", opener, match=f"of version {version!r}; this icecore reads version 3")


def edits_of_header():
    """{what: change} that no writer makes."""

    def parameters(**changes):
        def change(header):
            own = json.loads(header["__metadata__"]["parameters"]) | changes
            header["__metadata__"]["parameters"] = json.dumps({k: v for k, v in own.items() if v != "absent"})

        return change

    def metadata(**changes):
        return lambda header: header["__metadata__"].update(changes)

    def entry(name, **changes):
        return lambda header: header[name].update(changes)

    for name, values in {
        "dim": [0, -1, 5, 7, 12, 10**6, 6.0, None, "6", [6], True, "absent"],
        "metric": ["l2", "angular", 0, None, [], {}, "absent"],
        "num_composite": [1, -1, 65, None, 0.5, "absent"],
        "num_simple": [0, 65, "7", "absent"],
        "num_levels": [0, 1, 3, 9, None, "absent"],
        "promotion": [0, 1, -1, "0.5x", [], float("nan"), 10**400, "absent"],
        "dtype": ["float16", "bfloat16", "float64", None, 3, [], {}, "absent"],
        "seed": [None, 0.5, "1", "absent"],
        "extra": [1],
    }.items():
        for value in values:
            yield f"{name}={value!r}", parameters(**{name: value})
    for value in ("null", "[]", "3", "{}", "", "{", 3, None, {}, '{"dim": 6, "dim": 7}'):
        yield f"parameters are {value!r}", metadata(parameters=value)
    for value in ("icecore.segment", None, 7, [], ""):
        yield f"format={value!r}", metadata(format=value)
    for value in ([0, 10], [8, 4], [-8, 0], [0], [0, 48, 50], "0", None, [0.0, 48.0], [0, 2**70], [True, False], [[0], [48]]):
        yield f"offsets of the first are {value!r}", entry("header", data_offsets=value)
    for value in ([7], [-6], [2**63], [2**62, 4], [6.0], ["6"], 6, None, [6, 1, 0], [[6]], [2, 2]):
        yield f"shape of the first is {value!r}", entry("header", shape=value)
    for value in ("F64", "I32", "i64", None, 5, [], {}, "BOOL"):
        yield f"dtype of the first is {value!r}", entry("header", dtype=value)
    for value in (None, [], 3, "x", {}):
        yield f"the first is {value!r}", lambda header, value=value: header.update(header=value)
    yield "no dtype", lambda header: header["header"].pop("dtype")
    yield "no offsets", lambda header: header["header"].pop("data_offsets")
    yield "an array absent", lambda header: header.pop("home")
    yield "the first absent", lambda header: header.pop("header")
    yield (
        "an array of no bytes",
        lambda header: header.update(
            more={"dtype": "F32", "shape": [0], "data_offsets": [header["home"]["data_offsets"][1]] * 2}
        ),
    )


@pytest.mark.parametrize(("what", "change"), [pytest.param(*edit, id=edit[0]) for edit in edits_of_header()])
@opens
def test_headers_that_do_not_fit(tmp_path, opener, what, change):
    refuses(resealed(index_bytes(sample()), change), tmp_path / "a", opener)


def test_a_name_used_twice(tmp_path):
    data = index_bytes(Index(3))
    (length,) = struct.unpack_from("<Q", data)
    text = data[8 : 8 + length].replace(b'"header":', b'"header":{"dtype":"I64","shape":[0],"data_offsets":[0,0]},"header":', 1)
    refuses(struct.pack("<Q", len(text)) + text + data[8 + length :], tmp_path / "a", match="twice")
