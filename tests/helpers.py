"""What several test files need: data, dtypes, error bounds, the core's functions behind the public face."""

import json
import os
import struct
import subprocess
import sys
import zlib
from typing import NamedTuple

import ml_dtypes
import numpy as np

from icecore import _native, reference
from icecore.reference.cells import key_metric, moments_scale, summarize_tree
from icecore.reference.dense import alibi_bias, per_query_head
from icecore.reference.search import true_scores

#: Names of the dtypes of the fast path; "bits" is bfloat16 as uint16.
DTYPES = ("float32", "float16", "bfloat16", "bits")

#: Bits of a code in segments that hold rows as codes.
QUANTIZED = {_native.INT8: 8, _native.INT4: 4}

#: How many times more than usual the tests of random sequences and of killed processes try.
TEST_FACTOR = max(1, int(os.environ.get("ICECORE_TEST_FACTOR") or 1))

FLOAT32_ROUNDOFF = 2.0**-24
#: Of 2^x where weights are rounded to a shorter type anyway.
EXP2_OF_ROUNDED = 3e-6
# dtype name: (roundoff, spacing of the smallest numbers)
_PRECISION = {
    "float64": (2.0**-53, 0.0),
    "float32": (FLOAT32_ROUNDOFF, 2.0**-126),
    "float16": (2.0**-11, 2.0**-24),
    "bfloat16": (2.0**-8, 2.0**-126),
    "uint16": (2.0**-8, 2.0**-126),
}


#: Instruction sets whose panels multiply bfloat16.
NATIVE_BFLOAT16 = ("avx512_bf16", "amx")


def normal(seed, *shape, dtype="float32"):
    """Standard normal numbers."""
    return encode(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def inputs(query_shape, key_shape, value_dim, dtype="float32", seed=0):
    """Random (query, key, value): value has the key's shape but for its last axis."""
    shapes = (query_shape, key_shape, (*key_shape[:-1], value_dim))
    return tuple(normal((seed, i), *shape, dtype=dtype) for i, shape in enumerate(shapes))


def encode(array, dtype):
    """`array` in one of DTYPES, or float64."""
    if dtype == "bits":
        return array.astype(ml_dtypes.bfloat16).view(np.uint16)
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def decode(array):
    """float64; uint16 holds the bits of bfloat16."""
    array = np.asarray(array)
    return (array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array).astype(np.float64)


def as_four(array):
    """(batch, heads, length, dim): leading axes of 1 added."""
    return array[(None,) * (4 - array.ndim)]


def relative_error(actual, expected):
    """Norm of the difference over the norm of what is expected."""
    return np.linalg.norm(decode(actual) - expected) / np.linalg.norm(expected)


def mean_row_error(actual, expected):
    """Mean over queries of the relative error of each output row."""
    difference = np.linalg.norm(decode(actual) - expected, axis=-1)
    return np.mean(difference / np.linalg.norm(expected, axis=-1))


def head_error(actual, expected):
    """What a tolerance is of: sum |difference| / sum |expected| over the rows of each head."""
    difference, size = (np.linalg.norm(a, axis=-1).sum(axis=-1) for a in (decode(actual) - decode(expected), decode(expected)))
    return difference / size


def assert_same_bits(actual, expected):
    """Equal arrays; NaN equals NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    same = actual == expected
    if actual.dtype.kind != "u":
        same |= np.isnan(actual) & np.isnan(expected)
    assert same.all(), f"{np.count_nonzero(~same)} of {same.size} numbers differ"


def rounding_bound(query, key, value, weight_roundoff=0.0, attn_mask=None, scale=None, softcap=None, **options):
    """Bounds on the error of exact attention in float32: of out (B, H, L, dv) and of lse (B, H, L).

    With u the roundoff of float32, a score, which is a sum of d products scale q_t k_t, is wrong by about
    u sqrt(d) times the sum of their magnitudes (rounding errors are independent and add as a random walk); a
    mask and ALiBi add one rounding each, and a soft cap, which brings scores nearer to one another, 3e-7 of the
    smaller of score and cap. An error e in every score changes each weight by the factor exp(e) and so the
    result by at most 2 e sum_j p_j |v_j|. The sums over S keys add u sqrt(S) of that, the exponential a few
    u, and weights that are rounded to a shorter type their `weight_roundoff`.
    """
    dim, keys = query.shape[-1], key.shape[-2]
    scale = 1 / np.sqrt(dim) if scale is None else scale
    size = abs(scale) * np.abs(query) @ np.abs(per_query_head(key, query.shape[1])).swapaxes(-1, -2)
    if attn_mask is not None and attn_mask.dtype != np.bool_:
        size = size + np.where(np.isfinite(attn_mask), np.abs(decode(attn_mask)), 0.0)
    if (slopes := options.get("alibi_slopes")) is not None:
        size = size - alibi_bias(slopes, np.arange(query.shape[2]) + keys - query.shape[2], keys)
    size = size.max(axis=-1, initial=0.0)  # (B, H, L)
    score = FLOAT32_ROUNDOFF * (np.sqrt(dim) + 4) * size
    if softcap is not None:
        score += 3e-7 * np.minimum(size, softcap)
    if (sinks := options.get("sink_logits")) is not None:  # one more score, rounded in units of log2
        score += 4 * FLOAT32_ROUNDOFF * np.abs(np.where(np.isfinite(sinks), sinks, 0.0))[:, None]
    sums = FLOAT32_ROUNDOFF * (np.sqrt(keys) + 16)
    total, lse = reference.attention(query, key, np.abs(value), attn_mask=attn_mask, scale=scale, softcap=softcap, **options)
    on_lse = score + sums + FLOAT32_ROUNDOFF * np.abs(np.where(np.isfinite(lse), lse, 0.0))
    on_lse += EXP2_OF_ROUNDED if weight_roundoff else 0.0
    return (2 * score + sums + weight_roundoff)[..., None] * total, on_lse


def assert_within(actual, expected, bound, name):
    excess = np.abs(actual - expected) / bound
    assert np.all(excess <= 1), f"{name}: {np.nanmax(excess):.3g} of its bound, {np.isnan(excess).sum()} NaN"


def assert_exact(result, query, key, value, **options):
    """`result` = (out, lse) is exact attention up to rounding, in the dtype of `out`."""
    out, lse = result
    assert out.dtype == query.dtype
    assert lse.dtype == np.float32
    assert out.shape == (*query.shape[:-1], value.shape[-1])
    assert lse.shape == query.shape[:-1]
    roundoff, smallest = _PRECISION[out.dtype.name]
    # kernels for native bfloat16 round the weights before they multiply the values
    weight_roundoff = roundoff if out.dtype.name in ("bfloat16", "uint16") else 0.0
    out, query, key, value = (as_four(decode(a)) for a in (out, query, key, value))
    lse = lse.reshape(out.shape[:-1]).astype(np.float64)
    expected, expected_lse = reference.attention(query, key, value, **options)
    on_out, on_lse = rounding_bound(query, key, value, weight_roundoff, **options)
    nothing = np.isneginf(expected_lse)
    np.testing.assert_array_equal(np.isneginf(lse), nothing)
    assert not out[nothing].any()
    assert_within(out, expected, on_out + roundoff * (np.abs(expected) + on_out) + smallest, "out")
    assert_within(lse[~nothing], expected_lse[~nothing], on_lse[~nothing], "lse")


class NearFar(NamedTuple):
    """Arrays of (B, H, L, dv) and (B, H, L)."""

    out: np.ndarray
    lse: np.ndarray
    near_keys: np.ndarray
    captured_mass: np.ndarray


class Measured(NamedTuple):
    """What a call with a tolerance measured: arrays of (B, H)."""

    error: np.ndarray
    standard_error: np.ndarray
    rows: np.ndarray


def full_moments(moments, ndim):
    """Second moments in float32, (..., d, d); diagonals, of one axis less than `ndim`, are filled up."""
    array = np.asarray(moments, np.float32)
    if array.ndim < ndim:
        array = array[..., None] * np.eye(array.shape[-1], dtype=np.float32)
    return np.ascontiguousarray(array)


def near_far(
    query,
    key,
    value,
    *,
    k=1,
    threshold=None,
    tolerance=None,
    head_tolerance=None,
    moments=None,
    rounding=False,
    causal=False,
    block=1,
    sinks=0,
    attn_mask=None,
    key_ranges=None,
    cell_size=32,
    scale=None,
    softcap=None,
    sink_logits=None,
    seed=0,
    threads=0,
    prices=(0, 0),
    return_measured=False,
):
    """The core's near/far path, however short the input: arguments as `reference.near_far_attention`.

    threshold : float or (H,), optional
    tolerance : float, optional; head_tolerance : (H,), optional
        Thresholds are measured, from `threshold` on where it is given.
    prices : (float, float)
        Of a near key and of a node, in keys of exact attention.
    moments : (H_k, d, d) or, diagonals, (H_k, d), optional
    return_measured : bool
        Return `Measured` as well.
    """
    query, key, value = (as_four(np.ascontiguousarray(a)) for a in (query, key, value))
    native = {"float32": _native.FLOAT32, "float16": _native.FLOAT16}.get(query.dtype.name, _native.BFLOAT16)
    shape = query.shape[:-1]
    out = np.empty((*shape, value.shape[-1]), query.dtype)
    result = NearFar(out, *(np.empty(shape, dtype) for dtype in (np.float32, np.int32, np.float32)))
    measured = Measured(*(np.empty(shape[:2], dtype) for dtype in (np.float32, np.float32, np.int32)))
    keep = bias = None
    if attn_mask is not None:
        mask = np.broadcast_to(attn_mask, (*shape, key.shape[2]))
        keep, bias = (mask.view(np.uint8), None) if mask.dtype == np.bool_ else (None, mask)
    query, key, value, out = (a if a.dtype == np.float32 else a.view(np.uint16) for a in (query, key, value, out))
    problem = _native.Problem(
        dtype=native,
        query=query,
        key=key,
        value=value,
        out=out,
        lse=result.lse,
        scale=1 / np.sqrt(query.shape[-1]) if scale is None else scale,
        softcap=softcap or 0.0,
        sink_logits=None if sink_logits is None else np.asarray(sink_logits, np.float32),
        causal=causal,
        sinks=sinks,
        ranges=None if key_ranges is None else np.broadcast_to(key_ranges, (*shape[::2], 2)),
        keep=keep,
        bias=bias,
        threads=threads,
    )
    options = _native.NearFar(
        near_keys=k,
        tolerance=tolerance or 0.0,
        head_tolerance=None if head_tolerance is None else np.asarray(head_tolerance, np.float32),
        head_threshold=None if threshold is None else np.full(shape[1], threshold, np.float32),
        near_price=prices[0],
        node_price=prices[1],
        moments=None if moments is None else full_moments(moments, 3),
        rounding=rounding,
        block=block,
        cell_size=cell_size if np.ndim(cell_size) == 0 else 1,
        head_cell_size=None if np.ndim(cell_size) == 0 else np.asarray(cell_size, np.int64),
        seed=seed,
    )
    report = {"near_count": result.near_keys, "captured_mass": result.captured_mass}
    if return_measured:
        report |= {"error": measured.error, "standard_error": measured.standard_error, "error_rows": measured.rows}
    _native.attend_near_far(problem, options, _native.Report(**report))
    return (result, measured) if return_measured else result


def quantized_rows(rows, dim, bits):
    """Codes and scales of rows (n, bytes) as segments hold them: as `reference.quantize` has them."""
    groups = -(-dim // 16)
    codes = rows[:, : dim if bits == 8 else 8 * groups]
    scales = np.ascontiguousarray(rows[:, codes.shape[1] :]).view(np.uint16).astype(np.uint32) << 16
    if bits == 4:  # byte i of a group: code i, and in its high half code i + 8
        codes = codes.reshape(len(rows), groups, 8)
        codes = np.stack([codes << 4, codes & 0xF0], axis=2).reshape(len(rows), -1).view(np.int8) >> 4
    return codes.view(np.int8), scales.view(np.float32)


def segment(key, value, cell_size, seed, storage=_native.FLOAT32, moments=None):
    """The arrays of a sealed segment of the core, by name; "cell" and "parent" are dicts of arrays.

    With storage=INT8 or INT4 keys and values are pairs of codes and scales. moments: (d, d) or a diagonal (d,).
    """
    key, value = (np.ascontiguousarray(a, np.float32) for a in (key, value))
    types = {"offset": np.int64, "order": np.int32}
    width = {"keys": key, "mean_key": key, "values": value, "mean_value": value}

    def arrays(raw):
        if isinstance(raw, dict):
            return {name: arrays(data) if isinstance(data, dict) else shaped(name, data) for name, data in raw.items()}
        return raw

    def shaped(name, data):
        if storage in QUANTIZED and name in ("keys", "values"):
            return quantized_rows(np.frombuffer(data, np.uint8).reshape(len(key), -1), width[name].shape[1], QUANTIZED[storage])
        array = np.frombuffer(data, types.get(name, np.float32))
        return array.reshape(-1, width[name].shape[1]) if name in width else array

    moments = None if moments is None else full_moments(moments, 2)
    return arrays(_native.build_segment(key, value, storage, moments, cell_size, seed))


def cell_members(arrays):
    """The input rows of each cell of a `segment`."""
    return np.split(arrays["order"], arrays["cell"]["offset"][1:-1])


def core_tree(key, value, cell_size, seed, moments=None):
    """The core's partition with the oracle's summaries: `tree_of` for `reference.near_far_attention`."""
    arrays = segment(key, value, cell_size, seed, moments=moments)
    parent = np.repeat(np.arange(len(arrays["parent"]["offset"]) - 1), np.diff(arrays["parent"]["offset"]))
    metric = key_metric(np.float64(key)) if moments is None else moments_scale(full_moments(moments, 2))
    has_apart = bool(np.isnan(arrays["parent"]["log2_weight"][-1]))
    return summarize_tree(key, value, cell_members(arrays), parent, metric, has_apart=has_apart)


def run_python(code, timeout=120, **environment):
    """Runs `code` in an interpreter of its own; the completed process with its output as text."""
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


# ---- The index ----

#: Variants of an index: the ways in which segments are searched.
VARIANTS = {
    "scan ip": {"metric": "ip"},
    "scan l2, one level": {"metric": "l2", "num_levels": 1},
    "scan l2, three levels": {"metric": "l2", "num_levels": 3},
    "lists ip": {"metric": "ip", "num_composite": 2, "num_simple": 3, "num_levels": 1},
    "lists l2, two levels": {"metric": "l2", "num_composite": 1, "num_simple": 4},
}

_FILE_TYPES = {
    np.dtype(np.uint8): "U8",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


class SavedFile(NamedTuple):
    """A saved index or cache taken apart: `metadata` (dict of str) and `arrays` (dict by name, in the order of the file)."""

    metadata: dict
    arrays: dict

    @classmethod
    def parse(cls, data):
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        metadata, arrays = header.pop("__metadata__"), {}
        types = {name: dtype for dtype, name in _FILE_TYPES.items()}
        for name, entry in header.items():
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            arrays[name] = np.frombuffer(data[first:last], types[entry["dtype"]]).reshape(entry["shape"]).copy()
        return cls(metadata, arrays)

    @classmethod
    def of(cls, saved):
        return cls.parse(index_bytes(saved))

    def bytes(self):
        """The file again, with checksums of what it now holds."""
        metadata, entries, body = dict(self.metadata), {}, b""
        for name, array in self.arrays.items():
            piece = np.ascontiguousarray(array).tobytes()
            offsets = [len(body), len(body) + len(piece)]
            entries[name] = {"dtype": _FILE_TYPES[array.dtype], "shape": [*array.shape], "data_offsets": offsets}
            body += piece
        metadata["checksum"] = f"{zlib.crc32(body):08x}"
        text = seal_header({"__metadata__": metadata, **entries})
        return struct.pack("<Q", len(text)) + text + body


def seal_header(header):
    """The bytes of a header, which is padded and holds its own checksum."""

    def text():
        plain = json.dumps(header, separators=(",", ":")).encode()
        return plain + b" " * (-(8 + len(plain)) % 64)

    header["__metadata__"]["header_checksum"] = "00000000"
    header["__metadata__"]["header_checksum"] = f"{zlib.crc32(text()):08x}"
    return text()


def resealed(data, change):
    """The file with `change` made to its header, and the checksum of that."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = seal_header(header)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def index_bytes(saved):
    """What `save` of an index or a cache would write."""
    return saved.__reduce__()[1][1]


def index_contents(index):
    """{id: bytes of the vector}."""
    ids = index.ids
    return {int(id): row.tobytes() for id, row in zip(ids, index[ids], strict=True)}


def clusters(seed, count, dim, *, centers=20, spread=0.3):
    """Normal vectors around some centers."""
    generator = np.random.default_rng(seed)
    around = generator.standard_normal((centers, dim))[generator.integers(centers, size=count)]
    return (around + spread * generator.standard_normal((count, dim))).astype(np.float32)


def recall(found, expected):
    """Share of the expected ids (n, k) that were found."""
    hits = sum(len(set(row) & set(wanted)) for row, wanted in zip(found.tolist(), expected.tolist(), strict=True))
    return hits / expected.size


def score_bound(vectors, query, metric):
    """(n,) bounds on the rounding of scores in float32: a random walk of dim roundings, with room."""
    vectors, query = np.asarray(vectors, np.float64), np.asarray(query, np.float64)
    size = ((vectors - query) ** 2).sum(axis=1) if metric == "l2" else np.abs(vectors) @ np.abs(query)
    return 4 * FLOAT32_ROUNDOFF * (np.sqrt(vectors.shape[1]) + 4) * size + 1e-40


def assert_present(result, index, queries):
    """All that was found is in the index, once, with its own score, best first; the rest is -1 and NaN."""
    for ids, scores, count, query in zip(*result, queries, strict=True):
        assert (ids[count:] == -1).all()
        assert np.isnan(scores[count:]).all()
        ids, scores = ids[:count], scores[:count]
        assert len(set(ids.tolist())) == count
        vectors = index[ids]
        true, bound = true_scores(vectors, query.astype(np.float64), index.metric), score_bound(vectors, query, index.metric)
        assert (np.abs(scores - true) <= bound).all()
        better = scores if index.metric == "l2" else -scores
        assert (np.diff(better) >= 0).all()
        assert (np.diff(ids)[np.diff(better) == 0] > 0).all()


def assert_nearest(result, ids, vectors, queries, k, metric):
    """The k best of all `vectors` (float64 oracle), up to vectors whose scores differ by rounding."""
    row_of = {id: row for row, id in enumerate(np.asarray(ids).tolist())}
    for found, scores, count, query in zip(*result, queries, strict=True):
        assert count == min(k, len(vectors))
        rows = [row_of[id] for id in found[:count].tolist()]
        assert len(set(rows)) == count
        assert (found[count:] == -1).all()
        assert np.isnan(scores[count:]).all()
        query = query.astype(np.float64)
        _, expected = reference.search_exact(vectors, query, k, metric)
        true, bound = true_scores(vectors, query, metric), score_bound(vectors, query, metric)
        np.testing.assert_array_less(np.abs(scores[:count] - true[rows]), bound[rows] + 1e-45)
        np.testing.assert_array_less(np.abs(true[rows] - expected), 2 * bound[rows] + 1e-45)


def assert_same_result(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(np.asarray(one), np.asarray(other))
