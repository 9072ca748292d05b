"""Wrong arguments raise errors that name the argument and its value; `out` stays as it is."""

import ml_dtypes
import numpy as np
import pytest
from helpers import inputs
from numpy.lib.stride_tricks import as_strided

import icecore
from icecore.selectors import PDCI, Pages

QUERY, KEY, VALUE = inputs((2, 4, 5, 8), (2, 2, 20, 8), 6)  # (B, H, L, d), (B, H_k, S, d), (B, H_k, S, dv)
OUT_SHAPE = (2, 4, 5, 6)


def fails(error, message, *, arrays=(QUERY, KEY, VALUE), **options):
    """The call raises `error`, whose text matches `message`, and leaves `out` alone."""
    out = options.pop("out", None)
    if out is None and arrays[0] is QUERY:
        out = np.full(OUT_SHAPE, 7, np.float32)
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(error, match=message):
        icecore.attention(*arrays, out=out, **options)
    if before is not None:
        np.testing.assert_array_equal(out, before)


# ---- Arrays ----

BAD_SHAPES = {
    "query of one dimension": (QUERY[0, 0, 0], KEY, VALUE, r"query has 1 dimensions \(8,\)"),
    "query of five dimensions": (QUERY[None], KEY, VALUE, r"query has 5 dimensions \(1, 2, 4, 5, 8\)"),
    "key of one dimension": (QUERY, KEY[0, 0, 0], VALUE, r"key has 1 dimensions \(8,\)"),
    "value is a number": (QUERY, KEY, np.float32(1), r"value has 0 dimensions \(\)"),
    "key of fewer dimensions": (QUERY, KEY[0], VALUE[0], r"key has shape \(2, 20, 8\), .*\(2, 4, 5, 8\)"),
    "value of fewer dimensions": (QUERY, KEY, VALUE[0], r"value has shape \(2, 20, 6\)"),
    "another dim": (QUERY, KEY[..., :7], VALUE, r"key has dim 7 .*query has 8"),
    "another length": (
        QUERY,
        KEY,
        VALUE[:, :, :19],
        r"value has shape \(2, 2, 19, 6\).*\(2, 2, 20, 8\)",
    ),
    "another batch": (QUERY, KEY[:1], VALUE[:1], r"key has batch 1 .*query has 2"),
    "other heads of values": (QUERY, KEY, VALUE[:, :1], r"value has shape \(2, 1, 20, 6\)"),
    "heads that do not divide": (QUERY[:, :3], KEY, VALUE, r"query has 3 heads and key has 2"),
    "no key heads": (QUERY, KEY[:, :0], VALUE[:, :0], r"query has 4 heads and key has 0"),
    "dim 0": (QUERY[..., :0], KEY[..., :0], VALUE, r"query has a last axis of 0; expected 1 to 576"),
    "value dim 0": (QUERY, KEY, VALUE[..., :0], r"value has a last axis of 0; expected 1 to 576"),
    "dim 577": (*inputs((3, 577), (4, 577), 6), r"query has a last axis of 577; expected 1 to 576"),
    "value dim 577": (*inputs((3, 8), (4, 8), 577), r"value has a last axis of 577; expected 1 to 576"),
}


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_shapes(case):
    *arrays, message = BAD_SHAPES[case]
    fails(ValueError, message, arrays=arrays)


@pytest.mark.parametrize(
    "dtype", ["int32", "int64", "uint8", "bool", "complex64", "object", ">f4", ">f8", "longdouble"]
)
def test_dtypes(dtype):
    arrays = [a.astype(dtype) for a in (QUERY, KEY, VALUE)]
    fails(TypeError, "query has (dtype|byte order)", arrays=arrays)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.uint16, np.int32])
@pytest.mark.parametrize("which", [1, 2])
def test_mixed_dtypes(which, dtype):
    arrays = [QUERY, KEY, VALUE]
    arrays[which] = arrays[which].astype(dtype)
    fails(TypeError, rf"{('key', 'value')[which - 1]} has dtype {np.dtype(dtype)}", arrays=arrays)


def test_ragged_lists():
    with pytest.raises(ValueError):
        icecore.attention([[1.0, 2.0], [3.0]], KEY, VALUE)


def test_arrays_are_positional():
    with pytest.raises(TypeError, match="positional"):
        icecore.attention(query=QUERY, key=KEY, value=VALUE)


# ---- Options ----

BAD_OPTIONS = [
    ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"k": -1}, ValueError, "k must be at least 1, got -1"),
    ({"k": 2.5}, TypeError, "k must be an integer, got float"),
    ({"k": 2.0}, TypeError, "k must be an integer, got float"),
    ({"k": True}, TypeError, "k must be an integer, got a bool"),
    ({"k": "64"}, TypeError, "k must be an integer, got str"),
    ({"k": KEY}, TypeError, "positional"),
    ({"k": [[1.0]]}, TypeError, "positional"),
    ({"window": -1}, ValueError, "window must be at least 0, got -1"),
    ({"window": 1.5}, TypeError, "window must be an integer, got float"),
    ({"sinks": -3}, ValueError, "sinks must be at least 0, got -3"),
    ({"sinks": "4"}, TypeError, "sinks must be an integer, got str"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"seed": 0.5}, TypeError, "seed must be an integer, got float"),
    ({"k": 4, "window": 7}, ValueError, "window=7 with k or tolerance needs causal=True"),
    ({"scale": np.nan}, ValueError, r"scale must lie from -1e\+30 to 1e\+30, got nan"),
    ({"scale": -np.inf}, ValueError, r"scale must lie from -1e\+30 to 1e\+30, got -inf"),
    ({"scale": "big"}, TypeError, "scale must be a number, got str"),
    ({"scale": True}, TypeError, "scale must be a number, got bool"),
    ({"causal": "x"}, TypeError, "causal must be a bool, got 'x'"),
    ({"causal": 2}, TypeError, "causal must be a bool, got 2"),
    ({"causal": None}, TypeError, "causal must be a bool, got None"),
    ({"causal": np.ones(2, bool)}, TypeError, "causal must be a bool, got ndarray"),
    ({"window": np.array([1, 2])}, TypeError, r"window must be an integer, got ndarray; a pair is a tuple \(left, right\)"),
    ({"window": "4"}, TypeError, "window must be an integer, got str; a pair"),
    ({"scale": "0.5"}, TypeError, "scale must be a number, got str"),
    ({"scale": 1j}, TypeError, "scale must be a number, got complex"),
    ({"scale": np.ones(3)}, TypeError, "scale must be a number, got ndarray"),
    ({"scale": 10**400}, ValueError, "scale must lie from"),
    ({"scale": 3e38}, ValueError, r"scale .* 3e\+38"),  # not finite in units of log 2
    ({"scale": 1e300}, ValueError, r"scale .* 1e\+300"),  # not finite in float32
    ({"num_threads": 0}, ValueError, "num_threads must be from 1 to 4096, got 0"),
    ({"num_threads": -1}, ValueError, "num_threads must be from 1 to 4096, got -1"),
    ({"num_threads": 10**6}, ValueError, "num_threads must be from 1 to 4096, got 1000000"),
    ({"num_threads": True}, TypeError, "num_threads must be an integer, got a bool"),
    ({"num_threads": "a"}, TypeError, "num_threads must be an integer, got str"),
    ({"num_threads": 1.0}, TypeError, "num_threads must be an integer, got float"),
    ({"attn_mask": np.ones((5, 19), bool)}, ValueError, r"attn_mask has shape \(5, 19\).*\(2, 4, 5, 20\)"),
    ({"attn_mask": np.ones((1, 2, 4, 5, 20))}, ValueError, r"attn_mask has shape \(1, 2, 4, 5, 20\)"),
    ({"attn_mask": np.ones((5, 20), np.int64)}, TypeError, "attn_mask has dtype int64"),
    ({"attn_mask": np.ones((5, 20), np.complex64)}, TypeError, "attn_mask has dtype complex64"),
    ({"attn_mask": "causal"}, (TypeError, ValueError), "attn_mask"),
]


def describe(options):
    return ", ".join(f"{name}={getattr(value, 'shape', value)}" for name, value in options.items())[:40]


@pytest.mark.parametrize(
    ("options", "error", "message"), [pytest.param(*case, id=describe(case[0])) for case in BAD_OPTIONS]
)
def test_options(options, error, message):
    fails(error, message, **options)


@pytest.mark.parametrize("selector", [None, Pages, PDCI])
@pytest.mark.parametrize("k", [2**59, 2**61, 2**80])
def test_any_large_k_is_all_keys(k, selector):
    budget = {"k": k} if selector is None else {"selector": selector(k)}
    out = icecore.attention(QUERY, KEY, VALUE, **budget)
    np.testing.assert_allclose(out, icecore.attention(QUERY, KEY, VALUE), atol=1e-6)


# ---- out ----


def strided(*strides):
    return as_strided(np.zeros(500, np.float32), OUT_SHAPE, strides)


BAD_OUTS = {
    "list": ([[0.0]], TypeError, "out must be a NumPy array, got list"),
    "shape": (
        np.zeros(QUERY.shape, "f4"),
        ValueError,
        r"out has shape \(2, 4, 5, 8\); expected \(2, 4, 5, 6\)",
    ),
    "dimensions": (np.zeros((8, 5, 6), "f4"), ValueError, r"out has shape \(8, 5, 6\)"),
    "dtype": (np.zeros(OUT_SHAPE), TypeError, "out has dtype float64; .*float32"),
    "byte order": (np.zeros(OUT_SHAPE, ">f4"), TypeError, "out has dtype >f4"),
    "repeated rows": (strided(96, 24, 0, 4), ValueError, "out overlaps itself"),
    "overlapping rows": (strided(480, 120, 20, 4), ValueError, "out overlaps itself"),
}


@pytest.mark.parametrize("case", BAD_OUTS)
def test_out(case):
    out, error, message = BAD_OUTS[case]
    fails(error, message, out=out)


def test_read_only_out():
    out = np.zeros(OUT_SHAPE, np.float32)
    out.flags.writeable = False
    fails(ValueError, "out is read-only", out=out)


def sharing(total, *offsets):
    """Float32 arrays in one buffer: (offset, shape) each."""
    buffer = np.ones(total, np.float32)
    return [buffer[offset : offset + np.prod(shape)].reshape(shape) for offset, shape in offsets]


@pytest.mark.parametrize("shift", [0, 8, 39, -47])  # out's 48 numbers against the 40 or 48 of the input
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_out_that_shares_memory_with_an_input(name, shift):
    arrays = dict(zip(("query", "key", "value"), inputs((6, 8), (5, 8), 8), strict=True))
    out, arrays[name] = sharing(200, (100 + shift, (6, 8)), (100, arrays[name].shape))
    fails(ValueError, f"out overlaps {name}", arrays=tuple(arrays.values()), out=out)


def test_out_that_shares_memory_with_the_mask():
    out, mask = sharing(200, (0, (6, 8)), (47, (6, 5)))
    query, key, value = inputs((6, 8), (5, 8), 8)
    fails(ValueError, "out overlaps attn_mask", arrays=(query, key, value), out=out, attn_mask=mask)


def test_out_may_interleave_with_an_input():
    """Rows of one wide buffer, query on the left and out on the right, share no number."""
    buffer = np.random.default_rng(0).standard_normal((6, 16), np.float32)
    query, out = buffer[:, :8], buffer[:, 8:]
    key, value = inputs((1, 8), (5, 8), 8)[1:]
    icecore.attention(query, key, value, out=out)
    np.testing.assert_array_equal(out, icecore.attention(query, key, value))


# ---- Sizes beyond memory: views that repeat one row ----


def repeated(length, dtype=np.float32):
    return np.broadcast_to(np.ones((1, 8), dtype), (length, 8))


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"k": 4}, {"selector": PDCI(4)}], ids=describe
)
def test_more_queries_than_memory(options):
    with pytest.raises((MemoryError, ValueError)):
        icecore.attention(repeated(2**55), repeated(10), repeated(10), **options)


@pytest.mark.parametrize("options", [{}, {"selector": PDCI(4)}], ids=describe)
def test_more_keys_than_memory_in_float64(options):
    row = np.ones((1, 8))
    with pytest.raises((MemoryError, ValueError)):
        icecore.attention(row, repeated(2**55, float), repeated(2**55, float), **options)


@pytest.mark.parametrize("keys", [2**40, 2**55])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("budget", [{"k": 4}, {"selector": PDCI(4)}], ids=describe)
def test_more_keys_than_a_segment_takes(keys, causal, budget):
    query = np.ones((3, 8), np.float32)
    with pytest.raises((MemoryError, ValueError)):
        icecore.attention(query, repeated(keys), repeated(keys), **budget, causal=causal)


def test_empty_arrays_of_huge_shapes():
    query = np.empty((2**20, 2**20, 0, 8), np.float32)
    assert icecore.attention(query, query, query).shape == query.shape


# ---- Masked arrays, and arrays that are numbers ----


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_masked_arrays_are_refused(name):
    arrays = [np.ma.masked_array(a, a > 2) if n == name else a for n, a in (("query", QUERY), ("key", KEY), ("value", VALUE))]
    fails(TypeError, f"{name} is a masked array", arrays=arrays)


def test_other_masked_arrays_are_refused():
    hidden = np.ma.masked_array(np.ones((5, 20), bool), True)
    fails(TypeError, "attn_mask is a masked array", attn_mask=hidden)
    with pytest.raises(TypeError, match="indices is a masked array"):
        icecore.attend_indices(QUERY, KEY, VALUE, np.ma.masked_array(np.zeros((5, 1), int), True))
    with pytest.raises(TypeError, match="keys is a masked array"):
        icecore.KVCache(2, 8).append(np.ma.masked_array(KEY[0]), KEY[0])
    with pytest.raises(TypeError, match="vectors is a masked array"):
        icecore.Index(8).add(np.ma.masked_array(KEY[0, 0]))


def test_numbers_may_be_arrays_without_dimensions():
    options = {"tolerance": 0.05, "scale": 0.1, "causal": False}
    expected = icecore.attention(QUERY, KEY, VALUE, **options)
    given = icecore.attention(QUERY, KEY, VALUE, **{name: np.array(number) for name, number in options.items()})
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("options", [{"k": 4}, {"tolerance": 0.05}, {"k": 4, "causal": True}], ids=str)
def test_more_keys_than_cells_can_number_are_refused(options):
    query = np.zeros((1, 1, 1), np.float32)
    keys = np.broadcast_to(query, (1, 2**31, 1))
    with pytest.raises(ValueError, match="key has 2147483648 rows; expected at most 2147483647"):
        icecore.attention(query, keys, keys, **options)


def test_more_tokens_than_a_cache_can_number_are_refused():
    token = np.zeros((1, 1, 1), np.float32)
    cache = icecore.KVCache(1, 1)
    cache.append(token, token)
    tokens = np.broadcast_to(token, (1, 2**31 - 1, 1))
    with pytest.raises(ValueError, match="keys has 2147483647 tokens, the cache 1; expected at most 2147483647 together"):
        cache.append(tokens, tokens)
    assert len(cache) == 1
