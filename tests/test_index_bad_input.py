"""Wrong arguments to an index raise errors that name the argument and its value; the index stays as it is."""

import numpy as np
import pytest
from helpers import index_bytes, normal

import icecore

DIM = 4
MANY = 2**55


@pytest.fixture(params=[{}, {"metric": "l2", "num_composite": 1, "num_levels": 1, "dtype": "float16"}], ids=str)
def index(request):
    """A segment, an open block and a gap between the ids 0 .. 1299, unchanged at the end."""
    index = icecore.Index(DIM, **request.param)
    index.add(normal(0, 1200, DIM))
    index.add(normal(1, 100, DIM))
    index.remove([7])
    before, stats = index_bytes(index), index.stats
    yield index
    after = index.stats
    # a failed addition may leave free slots behind
    assert {**after, "slots": 0, "bytes": 0} == {**stats, "slots": 0, "bytes": 0}
    if after["slots"] == stats["slots"]:
        assert index_bytes(index) == before
    assert index.validate()


# ---- The constructor ----

BAD_PARAMETERS = [
    ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
    ({"dim": -3}, ValueError, "dim must be at least 1, got -3"),
    ({"dim": 16385}, ValueError, "dim must be at most 16384, got 16385"),
    ({"dim": 2**70}, ValueError, "dim must be at most 16384, got"),
    ({"dim": 4.0}, TypeError, "dim must be an integer, got float"),
    ({"dim": True}, TypeError, "dim must be an integer, got a bool"),
    ({"dim": "4"}, TypeError, "dim must be an integer, got str"),
    ({"metric": "angular"}, ValueError, "metric must be one of ip, l2, cosine, got 'angular'"),
    ({"metric": None}, ValueError, "metric must be one of ip, l2, cosine, got None"),
    ({"metric": 1}, ValueError, "metric must be one of ip, l2, cosine, got 1"),
    ({"metric": []}, (TypeError, ValueError), "metric"),
    ({"num_composite": -1}, ValueError, "num_composite must be at least 0, got -1"),
    ({"num_composite": 65}, ValueError, "num_composite must be at most 64, got 65"),
    ({"num_composite": 1.5}, TypeError, "num_composite must be an integer, got float"),
    ({"num_simple": 0}, ValueError, "num_simple must be at least 1, got 0"),
    ({"num_simple": 65}, ValueError, "num_simple must be at most 64, got 65"),
    ({"num_simple": None}, TypeError, "num_simple must be an integer, got NoneType"),
    ({"num_levels": 0}, ValueError, "num_levels must be at least 1, got 0"),
    ({"num_levels": 9}, ValueError, "num_levels must be at most 8, got 9"),
    ({"num_levels": "2"}, TypeError, "num_levels must be an integer, got str"),
    ({"promotion": 0}, ValueError, r"promotion must be between 0 and 1, got 0\.0"),
    ({"promotion": 1}, ValueError, r"promotion must be between 0 and 1, got 1\.0"),
    ({"promotion": -0.1}, ValueError, "promotion must be between 0 and 1, got -0.1"),
    ({"promotion": np.nan}, ValueError, "promotion must be between 0 and 1, got nan"),
    ({"promotion": "half"}, (TypeError, ValueError), "promotion"),
    ({"promotion": []}, (TypeError, ValueError), "promotion"),
    ({"dtype": "float64"}, ValueError, "dtype must be one of float32, float16, bfloat16, got 'float64'"),
    ({"dtype": np.int8}, ValueError, "dtype must be one of float32, float16, bfloat16, got"),
    ({"dtype": "nonsense"}, ValueError, "dtype must be one of .*'nonsense'"),
    ({"dtype": None}, (TypeError, ValueError), "dtype must be one of .*None"),
    ({"dtype": 7}, (TypeError, ValueError), "dtype must be one of .*7"),
    ({"seed": 1.5}, TypeError, "seed must be an integer, got float"),
    ({"seed": "1"}, TypeError, "seed must be an integer, got str"),
    ({"seed": True}, TypeError, "seed must be an integer, got a bool"),
    ({"seed": -5}, ValueError, "seed must be at least 0, got -5"),
    ({"capacity": -1}, ValueError, "capacity must be at least 0, got -1"),
    ({"capacity": 2.0}, TypeError, "capacity must be an integer, got float"),
    ({"capacity": 2**60}, MemoryError, "memory"),
    ({"width": 3}, TypeError, "width"),
]


def describe(options):
    return ", ".join(f"{name}={value!r}" for name, value in options.items())[:40]


def cases(table):
    return pytest.mark.parametrize(
        ("options", "error", "message"), [pytest.param(*case, id=describe(case[0])) for case in table]
    )


@cases(BAD_PARAMETERS)
def test_parameters(options, error, message):
    with pytest.raises(error, match=message):
        icecore.Index(**{"dim": DIM, **options})


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype("float16")], ids=repr)
def test_a_dtype_by_any_name(dtype):
    assert icecore.Index(DIM, dtype=dtype).dtype == "float16"


@pytest.mark.parametrize("seed", [0, 2**64, 2**200, np.int64(5)])
def test_any_integer_from_0_on_is_a_seed(seed):
    icecore.Index(DIM, num_composite=1, seed=seed).add(np.ones((3, DIM)))


def test_options_are_named():
    with pytest.raises(TypeError, match="positional"):
        icecore.Index(DIM, "l2")


# ---- Vectors and queries ----

BAD_VECTORS = {
    "a number": (3.0, ValueError, r"has shape \(\); expected \(n, 4\) or \(4,\)"),
    "another dim": (np.ones((3, 5)), ValueError, r"has shape \(3, 5\); expected \(n, 4\) or \(4,\)"),
    "one of another dim": (np.ones(3), ValueError, r"has shape \(3,\); expected \(n, 4\) or \(4,\)"),
    "three dimensions": (np.ones((2, 3, 4)), ValueError, r"has shape \(2, 3, 4\); expected"),
    "none of no dim": (np.ones((3, 0)), ValueError, r"has shape \(3, 0\); expected"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], ValueError, None),
    "bool": (np.ones((2, 4), bool), TypeError, "has dtype bool; expected real numbers"),
    "complex": (np.ones((2, 4), complex), TypeError, "has dtype complex128; expected real numbers"),
    "object": (np.ones((2, 4), object), TypeError, "has dtype object; expected real numbers"),
    "text": ([list("1234")], TypeError, "has dtype <U1; expected real numbers"),
    "None": (None, TypeError, "has dtype object; expected real numbers"),
    "uint16": (np.ones((2, 4), np.uint16), TypeError, "has dtype uint16, .*bfloat16"),
    "NaN": ([[0, 1, 2, 3], [0, 1, np.nan, 3]], ValueError, "holds .* in row 1; expected finite numbers"),
    "infinity": ([[0, 1, 2, np.inf]], ValueError, "holds .* in row 0; expected finite numbers"),
    "minus infinity": ([0, 1, 2, -np.inf], ValueError, "holds .* in row 0; expected finite numbers"),
    "beyond float32": ([[0.0] * 4] * 5 + [[0, 1e39, 0, 0]], ValueError, "holds .* in row 5; expected finite numbers"),
}


@pytest.mark.parametrize("case", BAD_VECTORS)
@pytest.mark.parametrize("argument", ["vectors", "queries", "queries of tune"])
def test_vectors(index, argument, case):
    array, error, message = BAD_VECTORS[case]
    call = {
        "vectors": index.add,
        "queries": lambda array: index.search(array, 3),
        "queries of tune": lambda array: index.tune(array, 3),
    }[argument]
    with pytest.raises(error, match=f"{argument.split()[0]} {message}" if message else None):
        call(array)


@pytest.mark.parametrize(
    ("dtype", "fits", "too_large"), [("float16", 65519, 65520), ("bfloat16", 3.395e38, 3.4e38), ("float32", 3.4e38, 3.5e38)]
)
def test_numbers_beyond_the_dtype(dtype, fits, too_large):
    index = icecore.Index(DIM, dtype=dtype)
    index.add([fits, -fits, 0, 0])
    assert np.isfinite(index[0]).all()
    for value in (too_large, -too_large):
        expected = f"a number that {dtype} cannot hold" if dtype != "float32" else "beyond float32"
        with pytest.raises(ValueError, match=f"vectors holds .*{expected} in row 1; expected finite"):
            index.add([[0, 0, 0, 0], [0, value, 0, 0]])
    assert len(index) == 1
    if dtype != "float32":
        assert index.search(np.full(DIM, too_large, np.float32), 1).counts == 1


# ---- ids ----

BAD_IDS = {
    "too few": ([5000, 5001], ValueError, "ids has 2 entries for 3 vectors; expected as many"),
    "too many": ([5000, 5001, 5002, 5003], ValueError, "ids has 4 entries for 3 vectors; expected as many"),
    "two dimensions": ([[5000, 5001, 5002]], ValueError, r"ids has shape \(1, 3\); expected one dimension"),
    "present": ([5000, 5001, 3], ValueError, "ids holds 3, which is in the index already"),
    "present in the open block": ([5000, 5001, 1299], ValueError, "ids holds 1299, which is in the index already"),
    "repeated": ([5000, 5001, 5000], ValueError, "ids holds 5000 more than once"),
    "float": ([5000.0, 5001, 5002], TypeError, "ids has dtype float64; expected integers"),
    "bool": ([True, False, True], TypeError, "ids has dtype bool; expected integers"),
    "text": (["a", "b", "c"], TypeError, "ids has dtype <U1; expected integers"),
    "beyond int64": (np.uint64([2**63, 1, 2]), ValueError, f"ids holds {2**63}; expected at most {2**63 - 1}"),
    "beyond uint64": ([2**64, 1, 2], TypeError, "ids has dtype object; expected integers"),
}


@pytest.mark.parametrize("case", BAD_IDS)
def test_ids_to_add(index, case):
    ids, error, message = BAD_IDS[case]
    with pytest.raises(error, match=message):
        index.add(np.ones((3, DIM)), ids)


@pytest.mark.parametrize("place", [0, 1000, 1999])
def test_one_bad_id_of_many(index, place):
    """More at once than the open block takes: nothing is added."""
    before, contents = index.ids, index[index.ids]
    for bad, message in ((5, "is in the index already|in the index already"), (99_999, "more than once")):
        ids = np.arange(50_000, 52_000)
        ids[place] = bad
        if bad == 99_999:
            ids[place - 1] = bad
        with pytest.raises(ValueError, match=f"ids holds {bad}.*({message})"):
            index.add(normal(3, 2000, DIM), ids)
        np.testing.assert_array_equal(index.ids, before)
        np.testing.assert_array_equal(index[before], contents)


BAD_REMOVALS = {
    "absent": ([1, 5000], KeyError, "id 5000 is not in the index"),
    "removed": ([1, 7], KeyError, "id 7 is not in the index"),
    "negative": (-1, KeyError, "id -1 is not in the index"),
    "repeated": ([1, 2, 1], ValueError, "ids holds 1 more than once"),
    "repeated in the open block": ([1290, 1290], ValueError, "ids holds 1290 more than once"),
    "float": ([1.0], TypeError, "ids has dtype float64; expected integers"),
    "bool": (np.ones(1300, bool), TypeError, "ids has dtype bool; expected integers"),
    "two dimensions": ([[1, 2]], ValueError, r"ids has shape \(1, 2\); expected one dimension"),
    "text": ("a", TypeError, "ids has dtype <U1; expected integers"),
    "None": (None, TypeError, "ids has dtype object; expected integers"),
}


@pytest.mark.parametrize("case", BAD_REMOVALS)
@pytest.mark.parametrize("how", ["remove", "del"])
def test_ids_to_remove(index, how, case):
    ids, error, message = BAD_REMOVALS[case]
    with pytest.raises(error, match=message):
        index.remove(ids) if how == "remove" else index.__delitem__(ids)


@pytest.mark.parametrize("case", [c for c in BAD_REMOVALS if "repeated" not in c])
def test_ids_to_read(index, case):
    ids, error, message = BAD_REMOVALS[case]
    with pytest.raises(error, match=message.replace("ids has", "id has")):
        index[ids]


def test_in_takes_one_integer(index):
    for id in ([1, 2], [], [[1]]):
        with pytest.raises(ValueError, match=r"id has shape .*; expected one"):
            id in index  # noqa: B015
    for id in (1.0, "a", None, True):
        with pytest.raises(TypeError, match=r"id has dtype .*; expected integers"):
            id in index  # noqa: B015


def test_progress_is_called(index):
    for progress in (5, "text"):
        with pytest.raises(TypeError):
            index.add(normal(0, 3000, DIM), progress=progress)
    assert len(index) == 1299


# ---- search ----

BAD_SEARCHES = [
    ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"k": -5}, ValueError, "k must be at least 1, got -5"),
    ({"k": 2.0}, TypeError, "k must be an integer, got float"),
    ({"k": None}, TypeError, "k must be an integer, got NoneType"),
    ({"k": True}, TypeError, "k must be an integer, got a bool"),
    ({"k": MANY}, (MemoryError, ValueError), None),
    ({"k": 2**62}, (MemoryError, ValueError), None),
    ({"k": 2**80}, (MemoryError, ValueError), None),
    ({"num_threads": 0}, ValueError, "num_threads must be from 1 to 4096, got 0"),
    ({"num_threads": 1.0}, TypeError, "num_threads must be an integer, got float"),
    ({"filter": [1.0]}, TypeError, "filter has dtype float64; expected integers"),
    ({"filter": [[1]]}, ValueError, r"filter has shape \(1, 1\); expected one dimension, or a row for each of 3 queries"),
    ({"filter": np.ones((1, 3, 1), int)}, ValueError, r"filter has shape \(1, 3, 1\); expected one dimension or two"),
    ({"filter": {1, 2}}, TypeError, "filter is a set, which has no order; expected an array"),
    ({"filter": [[1], [2], [3, 4]]}, ValueError, "filter is no array .*inhomogeneous"),
    ({"exclude": ["a"]}, TypeError, "exclude has dtype <U1; expected integers"),
    ({"exclude": np.ones((2, 1300), bool)}, ValueError, r"exclude has shape \(2, 1300\); expected one dimension, or a row"),
    *[
        (options, error, message)
        for name in ("visit", "retrieve", "field_of_view")
        for options, error, message in (
            ({name: 0}, ValueError, f"{name} must be at least 1, got 0"),
            ({name: -1}, ValueError, f"{name} must be at least 1, got -1"),
            ({name: 1.5}, TypeError, f"{name} must be an integer, got float"),
            ({name: "8"}, TypeError, f"{name} must be an integer, got str"),
        )
    ],
]


@cases(BAD_SEARCHES)
def test_search(index, options, error, message):
    with pytest.raises(error, match=message):
        index.search(normal(5, 3, DIM), **{"k": 3, **options})


@pytest.mark.parametrize("name", ["visit", "retrieve", "field_of_view"])
@pytest.mark.parametrize("value", [2**31, 2**62, 2**80])
def test_any_large_budget_is_no_bound(index, name, value):
    result = index.search(normal(5, 3, DIM), 4, **{name: value})
    assert (result.counts == 4).all()


def outs(**changes):
    arrays = {"ids": np.zeros((3, 2), np.int64), "scores": np.zeros((3, 2), np.float32), "counts": np.zeros(3, np.int64)}
    return tuple({**arrays, **changes}.values())


def read_only(array):
    array.flags.writeable = False
    return array


BAD_OUTS = {
    "one array": (outs()[:1], "out holds 1 arrays; expected ids, scores"),
    "four arrays": (outs() + outs()[:1], "out holds 4 arrays; expected ids, scores"),
    "shape": (outs(ids=np.zeros((3, 3), np.int64)), r"out: ids must be an array of shape \(3, 2\) and dtype int64"),
    "transposed": (outs(scores=np.zeros((2, 3), "f4")), r"out: scores must be .* shape \(3, 2\) and dtype float32"),
    "dtype": (outs(ids=np.zeros((3, 2), np.int32)), "out: ids must be .* int64"),
    "float64": (outs(scores=np.zeros((3, 2))), "out: scores must be .* float32"),
    "byte order": (outs(ids=np.zeros((3, 2), ">i8")), "out: ids must be .* int64"),
    "counts": (outs(counts=np.zeros((3, 1), np.int64)), r"out: counts must be .* \(3,\)"),
    "list": (outs(ids=[[0, 0]] * 3), "out: ids must be an array"),
    "strided": (outs(ids=np.zeros((3, 4), np.int64)[:, ::2]), "out: ids must be contiguous and writable"),
    "read-only": (outs(scores=read_only(np.zeros((3, 2), "f4"))), "out: scores must be contiguous and writable"),
}


@pytest.mark.parametrize("case", BAD_OUTS)
def test_out(index, case):
    out, message = BAD_OUTS[case]
    before = [np.array(a) for a in out]
    with pytest.raises(ValueError, match=message):
        index.search(normal(5, 3, DIM), 2, out=out)
    for array, old in zip(out, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_out_that_shares_memory(index):
    memory = np.zeros(100, np.int64)
    ids, scores = memory[:6].reshape(3, 2), memory[3:6].view(np.float32).reshape(3, 2)
    with pytest.raises(ValueError, match="out: ids and scores share memory"):
        index.search(normal(5, 3, DIM), 2, out=(ids, scores))
    with pytest.raises(ValueError, match="share memory"):
        index.search(normal(5, 3, DIM), 2, out=(ids, np.zeros((3, 2), "f4"), memory[4:7]))
    queries = normal(5, 3, DIM)
    with pytest.raises(ValueError, match="share"):
        index.search(queries, DIM, out=(np.zeros((3, DIM), np.int64), queries))


def test_out_for_one_query(index):
    with pytest.raises(ValueError, match=r"out: ids must be an array of shape \(2,\)"):
        index.search(normal(5, DIM), 2, out=outs())


def test_an_empty_index():
    index = icecore.Index(DIM)
    with pytest.raises(ValueError, match="the index is empty; add vectors before searching"):
        index.search(np.ones(DIM), 1)
    with pytest.raises(ValueError, match="the index is empty; add vectors before tuning"):
        index.tune(np.ones(DIM), 1)
    with pytest.raises(KeyError, match="id 0 is not"):
        index[0]
    with pytest.raises(KeyError, match="id 0 is not"):
        index.remove(0)


# ---- The rest ----

BAD_TUNINGS = [
    ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"recall": 0}, ValueError, r"recall must be in \(0, 1\], got 0"),
    ({"recall": 1.01}, ValueError, r"recall must be in \(0, 1\], got 1.01"),
    ({"recall": np.nan}, ValueError, r"recall must be in \(0, 1\], got nan"),
    ({"recall": "most"}, TypeError, "recall"),
    ({"queries": np.empty((0, DIM))}, ValueError, "queries is empty; expected a sample"),
    ({"num_threads": 0}, ValueError, "num_threads must be from 1 to 4096, got 0"),
]


@cases(BAD_TUNINGS)
def test_tune(index, options, error, message):
    with pytest.raises(error, match=message):
        index.tune(**{"queries": normal(5, 3, DIM), "k": 3, **options})


@pytest.mark.parametrize("num_threads", [0, -1, 10**6, 1.5, "2", True])
def test_num_threads(index, num_threads):
    for call in (
        lambda: index.add(normal(0, 2000, DIM), num_threads=num_threads),
        lambda: index.compact(num_threads=num_threads),
    ):
        with pytest.raises((TypeError, ValueError), match="num_threads must be"):
            call()


def test_reserve(index):
    for capacity, error, message in (
        (-1, ValueError, "capacity must be at least 0, got -1"),
        (1.5, TypeError, "capacity must be an integer, got float"),
        ("9", TypeError, "capacity must be an integer, got str"),
        (2**40, MemoryError, "memory"),
        (2**62, MemoryError, "memory"),
        (2**90, MemoryError, "memory"),
    ):
        with pytest.raises(error, match=message):
            index.reserve(capacity)


def test_more_vectors_than_memory(index):
    rows = np.broadcast_to(np.ones((1, DIM), np.float32), (MANY, DIM))
    with pytest.raises((MemoryError, ValueError)):
        index.add(rows)
    with pytest.raises((MemoryError, ValueError)):
        index.search(rows, 3)


def test_an_index_is_no_array(index):
    for name in ("dim", "metric", "dtype", "nbytes", "stats", "ids"):
        with pytest.raises(AttributeError):
            setattr(index, name, 3)
