"""Files made to harm who opens an index: the checksums are right, and what they say cannot be."""

import io
import os

import numpy as np
import pytest
from helpers import VARIANTS, SavedFile, index_bytes, normal, run_python
from test_index_file import DIM, Index, index_of, opened, opens, refuses, sample, variants

from icecore import _array_file
from icecore._index import FILE
from icecore._index_arguments import check_parameters

# ---- Files made to harm: the checksums are right ----


def edits_of_arrays():
    """{what: (variant, change of the arrays by name)}."""

    def put(name, place, value):
        def change(arrays):
            arrays[name].reshape(-1)[place] = value

        return change

    def resize(name, count):
        def change(arrays):
            arrays[name] = np.resize(arrays[name].reshape(-1), count)

        return change

    def rename(old, new):
        def change(arrays):
            pairs = [(new if name == old else name, array) for name, array in arrays.items()]
            arrays.clear()
            arrays.update(pairs)

        return change

    def retype(name, dtype):
        return lambda arrays: arrays.update({name: arrays[name].view(dtype)})

    scan, three, lists = "scan ip", "scan l2, three levels", "lists l2, two levels"
    header = {"used": 0, "removed": 1, "next_id": 2, "open": 4, "slots": 5}
    for field, place in header.items():
        for value in (-1, 0, 1, 3489, 4000, 2**31, 2**40, 2**62, -(2**63)):
            if (field != "next_id" or value < 3600) and (field, value) != ("removed", 0):
                yield f"header: {field} is {value}", scan, put("header", place, value)
    for name in ("ids", "state", "home", "open", "vectors", "segment0.order", "segment0.layer1.offset", "segment0.layer1.code"):
        yield f"{name} is shorter", scan, lambda arrays, name=name: arrays.update({name: arrays[name][:-1]})
        yield f"{name} is longer", scan, resize(name, 30000)
        yield f"{name} is empty", scan, resize(name, 0)
        yield f"{name} is missing", scan, lambda arrays, name=name: arrays.pop(name)
        yield f"{name} is misnamed", scan, rename(name, name + "x")
    yield "header is shorter", scan, resize("header", 5)
    yield "header is longer", scan, resize("header", 7)
    yield "types: ids", scan, retype("ids", np.float32)
    yield "types: order", scan, retype("segment0.order", np.float32)
    yield "types: scale", scan, retype("segment0.layer0.scale", np.int32)
    yield "types: vectors", scan, retype("vectors", np.float16)
    yield "an extra array", scan, lambda arrays: arrays.update(extra=np.zeros(3, np.uint8))
    yield "an extra array of a segment", scan, lambda arrays: arrays.update({"segment0.more": np.zeros(3, np.uint8)})
    yield (
        "an array of a segment that is not there",
        scan,
        lambda arrays: arrays.update({"segment9.order": np.zeros(3, np.int32)}),
    )
    yield "segment 200", scan, rename("segment0.shape", "segment200.shape")
    yield "segment -1", scan, rename("segment0.shape", "segment-1.shape")
    yield "segment 01", scan, rename("segment0.shape", "segment01.shape")
    yield "an endless name", scan, lambda arrays: arrays.update({"n" * 5000: np.zeros(3, np.uint8)})
    yield "a name that is cut to another", scan, rename("home", "home\0x")
    yield "lists where there are none", scan, lambda arrays: arrays.update({"segment0.lists.row": np.zeros(1100, np.int32)})
    for value in (3, 255, 128):
        yield f"a state of {value}", scan, put("state", 5, value)
    yield "a used slot is free", scan, put("state", 5, 0)
    yield "a used slot is removed", scan, put("state", 5, 2)
    yield "an open slot is removed", scan, put("state", 3485, 2)
    for value in (1, 7, 199, 200, 255):
        yield f"a home of {value}", scan, put("home", 5, value)
    yield "an open slot at home in a segment", scan, put("home", 3485, 0)
    yield "an id twice", scan, lambda arrays: arrays["ids"].__setitem__(5, arrays["ids"][6])
    yield "an id in two segments", scan, lambda arrays: arrays["ids"].__setitem__(5, arrays["ids"][2000])
    yield "an id in a segment and the open block", scan, lambda arrays: arrays["ids"].__setitem__(5, arrays["ids"][3485])
    yield "an id above the next", scan, put("ids", 5, 10**6)
    for value in (-1, 3600, 2**31 - 1, -(2**31)):
        yield f"open names slot {value}", scan, put("open", 3, value)
        yield f"order names slot {value}", scan, put("segment0.order", 3, value)
        yield f"order of segment 1 names slot {value}", scan, put("segment1.order", 2000, value)
    yield "open names a slot twice", scan, lambda arrays: arrays["open"].__setitem__(3, arrays["open"][4])
    yield "open names a free slot", scan, put("open", 3, 3555)
    yield "open names a slot of a segment", scan, put("open", 3, 5)
    yield "order names a slot twice", scan, lambda arrays: arrays["segment0.order"].__setitem__(3, arrays["segment0.order"][4])
    yield "order names a slot of another segment", scan, put("segment0.order", 3, 2000)
    yield "order names a free slot", scan, put("segment0.order", 3, 3555)
    yield "order names an open slot", scan, put("segment0.order", 3, 3485)
    for layer in (0, 1, 2):
        for place in (0, 1, -1):
            for value in (-1, 1, 2**40, -(2**63), 2**63 - 1, 3000):
                if (place, value) != (1, 1):
                    yield (
                        f"offset {place} of layer {layer} is {value}",
                        three,
                        put(f"segment1.layer{layer}.offset", place, value),
                    )
    yield "offsets fall", three, lambda arrays: arrays["segment1.layer2.offset"].__setitem__(slice(3, 5), [40, 10])
    for place in range(5):
        for value in (0, -1, 1101, 2**31, 2**62, -(2**63)):
            yield f"shape {place} is {value}", three, put("segment0.shape", place, value)
    yield "shape is shorter", three, resize("segment0.shape", 2)
    yield "shape is longer", three, resize("segment0.shape", 20)
    yield "shape is empty", three, resize("segment0.shape", 0)
    for value in (np.nan, -1, 0, np.inf, 2.0**127):
        yield f"scale is {value}", scan, put("segment0.scale", 0, value)
    yield "scale is none", scan, resize("segment0.scale", 0)
    for value in (np.nan, -1, 1, -np.inf):
        yield f"lifting is {value}", scan, put("segment0.lifting", 0, value)
    yield "radius is shorter", scan, resize("segment0.layer1.radius", 3)
    yield "radius is missing", scan, lambda arrays: arrays.pop("segment0.layer1.radius")
    yield "spread is shorter", scan, resize("segment0.layer1.spread", 3)
    yield "lifting is none", scan, resize("segment0.lifting", 0)
    for value in (1.0, np.nan, np.inf):
        yield f"lifting of distances is {value}", three, put("segment0.lifting", 0, value)
    for value in (-1, 1100, 2**31 - 1, -(2**31)):
        yield f"lists name row {value}", lists, put("segment0.lists.row", 7, value)
    yield "lists name a row of another cell", lists, lambda arrays: arrays["segment0.lists.row"].__setitem__(0, 1099)
    row = "segment0.lists.row"
    yield "lists name a row twice", lists, lambda arrays: arrays[row].__setitem__(1, arrays[row][0])
    for name in ("row", "projection", "sorted"):
        yield f"lists.{name} is shorter", lists, resize(f"segment0.lists.{name}", 100)
        yield f"lists.{name} is missing", lists, lambda arrays, name=name: arrays.pop(f"segment0.lists.{name}")


@pytest.fixture(scope="module")
def files():
    names = ("scan ip", "scan l2, three levels", "lists l2, two levels")
    return {name: SavedFile.of(sample(**VARIANTS[name])) for name in names}


def test_a_file_written_again_is_the_same(tmp_path, files):
    """What follows is refused for what is wrong with it, not for how it was written."""
    for file in files.values():
        for opener in (Index.load, Index.view):
            index = opened(file.bytes(), tmp_path / "a", opener)
            assert index.validate()
            assert len(index) == 3490


@pytest.mark.parametrize(("what", "variant", "change"), [pytest.param(*edit, id=edit[0]) for edit in edits_of_arrays()])
def test_files_made_to_harm(files, what, variant, change):
    """`load` and `view` refuse them, with a reason."""
    arrays = {name: array.copy() for name, array in files[variant].arrays.items()}
    change(arrays)
    data = np.frombuffer(bytearray(SavedFile(files[variant].metadata, arrays).bytes()), np.uint8)
    for verify in (True, False):
        if not verify and what in ONLY_LOAD:
            continue
        with pytest.raises(ValueError, match=r"it is not a usable index file: .+"):
            index = index_of(data, verify)
            if verify:
                index.copy()


#: Harmless to read, and found by `load` alone, as it would take reading every id.
ONLY_LOAD = {
    "an id twice",
    "an id in two segments",
    "an id in a segment and the open block",
    "an id above the next",
    *(f"header: next_id is {value}" for value in (0, 1, 3489)),
}


HARMFUL = """
import sys, numpy as np, icecore
sys.path.insert(0, {tests!r})
from helpers import VARIANTS, SavedFile, clusters
index = icecore.Index(6, **VARIANTS[{variant!r}])
index.add(clusters(0, 2000, 6))
file = SavedFile.of(index)
queries = clusters(1, 20, 6)
for name in file.arrays:
    if file.arrays[name].dtype != np.float32:
        continue
    for value in (np.nan, np.inf, -np.inf, 3e38, -3e38, 0, 1e-45):
        for places in (slice(None), slice(5, 6), slice(None, None, 3), slice(1000, None)):
            arrays = {{n: a.copy() for n, a in file.arrays.items()}}
            arrays[name].reshape(-1)[places] = value
            data = np.frombuffer(bytearray(SavedFile(file.metadata, arrays).bytes()), np.uint8)
            try:
                index = icecore.Index._read(data, "it", True).copy()
            except ValueError:
                continue
            budgets = [{{}}, {{"visit": 50}}, {{"visit": 3000}}, {{"retrieve": 30}}, {{"field_of_view": 2}}]
            for options in (*budgets, {{"exact": True}}):
                for k in (1, 30, 700):
                    result = index.search(queries, k, **options)
                    for ids, count in zip(result.ids, result.counts):
                        assert ((ids[:count] >= 0) & (ids[:count] < 2000)).all(), (name, value, options)
            try:
                index.validate()
            except ValueError:
                pass
print("safe")
"""


@variants
def test_numbers_that_no_index_holds(variant):
    """NaN, infinities and lists out of order, wherever numbers are: searches end, and name vectors that exist."""
    code = HARMFUL.format(tests=os.path.dirname(__file__), variant=variant)
    done = run_python(code, timeout=100)
    assert (done.returncode, done.stdout) == (0, "safe\n"), done.stderr[-2000:]


def test_pickles_are_checked():
    """A damaged pickle is refused as a file is."""
    index = sample()
    rebuild, (cls, data) = index.__reduce__()
    assert cls is Index
    for damaged in (data[:-1], data + b"x", b"", data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]):
        with pytest.raises(ValueError, match="pickled data is not a usable index file"):
            rebuild(Index, damaged)


def test_a_subclass_comes_back_as_one(tmp_path):
    class Own(Index):
        pass

    index = Own(3)
    index.add(np.ones((5, 3)))
    index.save(tmp_path / "a")
    assert all(type(other) is Own for other in (Own.load(tmp_path / "a"), Own.view(tmp_path / "a"), index.copy()))


def test_the_file_of_an_index_in_a_file(tmp_path):
    """An index may be written behind something else."""
    index, file = sample(), io.BytesIO(b"prefix")
    file.seek(6)
    _array_file.write(FILE, index._parameters, index._native.write, file)
    assert file.getvalue()[6:] == index_bytes(index)


# ---- More segments than an index has ----


def one_vector_segments(count):
    """A file whose arrays all fit one another: `count` vectors, each in a segment of its own."""
    vectors = np.float32(normal(0, count, DIM))
    arrays = [("header", "l", np.array([count, 0, count, count, 0, count]))]
    arrays += [("vectors", "f", vectors), ("ids", "l", np.arange(count))]
    for n in range(count):
        arrays += [(f"segment{n}.shape", "l", np.array([1, 1, 1])), (f"segment{n}.layer0.offset", "l", np.array([0, 1]))]
    for n in range(count):
        arrays += [(f"segment{n}.order", "i", np.array([n], np.int32)), (f"segment{n}.layer0.mean", "f", vectors[n].copy())]
        numbers = "layer0.scale", "layer0.bias", "layer0.radius", "layer0.spread", "lifting"
        arrays += [(f"segment{n}.{name}", "f", np.zeros(1, np.float32)) for name in numbers]
        arrays += [(f"segment{n}.scale", "f", np.ones(1, np.float32))]
        arrays += [(f"segment{n}.layer0.code", "b", np.full(8, 128, np.uint8)[: -(-DIM // 4) * 4])]
    arrays += [("open", "i", np.empty(0, np.int32)), ("state", "b", np.ones(count, np.uint8))]
    arrays += [("home", "b", np.arange(count, dtype=np.uint8))]

    def give(take):
        take([(name, kind, array.size) for name, kind, array in arrays], None)
        for _, _, array in arrays:
            if array.size:
                take(None, array.tobytes())

    return give


def saved_segments(path, count):
    parameters = check_parameters(DIM, "l2", 0, 7, 1, None, "float32", 0)
    _array_file.save(FILE, parameters, one_vector_segments(count), path)


@pytest.mark.parametrize("count", [101, 199, 200])
@opens
def test_a_file_with_more_segments_than_an_index_ever_has_is_refused(tmp_path, count, opener):
    saved_segments(tmp_path / "x.ice", count)
    with pytest.raises(ValueError, match="more segments"):
        opener(tmp_path / "x.ice")


def test_an_index_goes_on_from_the_most_segments_that_a_file_may_have(tmp_path):
    saved_segments(tmp_path / "x.ice", 100)
    index = Index.load(tmp_path / "x.ice")
    index.validate()
    for i in range(3):
        index.add(normal(i + 1, 1024, DIM))
        index.validate()
    assert len(index) == 100 + 3 * 1024
    assert index.stats["segments"] < 10


# ---- Vectors that add refuses ----


@variants
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_vectors_that_are_not_finite_are_refused_as_add_refuses_them(tmp_path, variant, value, dtype):
    index = sample(dtype=dtype, **VARIANTS[variant])
    whole = SavedFile.of(index)
    for slot in (0, 3489):  # of a segment, and of the open block
        file = SavedFile(whole.metadata, {name: array.copy() for name, array in whole.arrays.items()})
        file.arrays["vectors"][slot, 1] = value
        refuses(file.bytes(), tmp_path / "a", match=f"the vector of slot {slot} is not finite")
        with pytest.raises(ValueError, match="is not finite"):
            Index.view(tmp_path / "a").validate()
