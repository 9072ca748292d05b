"""What several test files need: data, dtypes, error bounds, the core's functions behind the public face."""

import os
import subprocess
import sys
from typing import NamedTuple

import ml_dtypes
import numpy as np

from icecore import _native, reference
from icecore.reference.cells import summarize
from icecore.reference.dense import per_query_head

#: Names of the dtypes of the fast path; "bits" is bfloat16 as uint16.
DTYPES = ("float32", "float16", "bfloat16", "bits")

FLOAT32_ROUNDOFF = 2.0**-24
# dtype name: (roundoff, spacing of the smallest numbers)
_PRECISION = {
    "float64": (2.0**-53, 0.0),
    "float32": (FLOAT32_ROUNDOFF, 2.0**-126),
    "float16": (2.0**-11, 2.0**-24),
    "bfloat16": (2.0**-8, 2.0**-126),
    "uint16": (2.0**-8, 2.0**-126),
}


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


def assert_same_bits(actual, expected):
    """Equal arrays; NaN equals NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    same = actual == expected
    if actual.dtype.kind != "u":
        same |= np.isnan(actual) & np.isnan(expected)
    assert same.all(), f"{np.count_nonzero(~same)} of {same.size} numbers differ"


def rounding_bound(query, key, value, weight_roundoff=0.0, attn_mask=None, scale=None, **options):
    """Bounds on the error of exact attention in float32: of out (B, H, L, dv) and of lse (B, H, L).

    With u the roundoff of float32, a score, which is a sum of d products scale q_t k_t, is wrong by about
    u sqrt(d) times the sum of their magnitudes (rounding errors are independent and add as a random walk); a
    mask adds one rounding. An error e in every score changes each weight by the factor exp(e) and so the
    result by at most 2 e sum_j p_j |v_j|. The sums over S keys add u sqrt(S) of that, the exponential a few
    u, and weights that are rounded to a shorter type their `weight_roundoff`.
    """
    dim, keys = query.shape[-1], key.shape[-2]
    scale = 1 / np.sqrt(dim) if scale is None else scale
    size = abs(scale) * np.abs(query) @ np.abs(per_query_head(key, query.shape[1])).swapaxes(-1, -2)
    if attn_mask is not None and attn_mask.dtype != np.bool_:
        size = size + np.where(np.isfinite(attn_mask), np.abs(decode(attn_mask)), 0.0)
    score = FLOAT32_ROUNDOFF * (np.sqrt(dim) + 4) * size.max(axis=-1, initial=0.0)  # (B, H, L)
    sums = FLOAT32_ROUNDOFF * (np.sqrt(keys) + 16)
    total, lse = reference.attention(query, key, np.abs(value), attn_mask=attn_mask, scale=scale, **options)
    on_lse = score + sums + FLOAT32_ROUNDOFF * np.abs(np.where(np.isfinite(lse), lse, 0.0))
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


def near_far(
    query,
    key,
    value,
    *,
    k,
    far_field=True,
    causal=False,
    block=1,
    sinks=0,
    visit=None,
    cell_size=32,
    scale=None,
    seed=0,
    threads=0,
):
    """The core's near/far path, however short the input: arguments as `reference.near_far_attention`."""
    query, key, value = (as_four(np.ascontiguousarray(a)) for a in (query, key, value))
    native = {"float32": _native.FLOAT32, "float16": _native.FLOAT16}.get(query.dtype.name, _native.BFLOAT16)
    shape = query.shape[:-1]
    out = np.empty((*shape, value.shape[-1]), query.dtype)
    result = NearFar(out, *(np.empty(shape, dtype) for dtype in (np.float32, np.int32, np.float32)))
    stored = [a if a.dtype == np.float32 else a.view(np.uint16) for a in (query, key, value, out)]
    _native.attend_near_far(
        native,
        *stored,
        result.lse,
        1 / np.sqrt(query.shape[-1]) if scale is None else scale,
        causal,
        sinks,
        k,
        visit or k,
        far_field,
        block,
        cell_size,
        seed,
        result.near_keys,
        result.captured_mass,
        threads,
    )
    return result


def segment(key, value, cell_size, seed):
    """The arrays of a sealed segment of the core, by name."""
    key, value = (np.ascontiguousarray(a, np.float32) for a in (key, value))
    raw = _native.build_segment(key, value, cell_size, seed)
    integers = {"offset": np.int64, "order": np.int32}
    rows = {"keys": key, "mean_key": key, "values": value, "mean_value": value}
    arrays = {name: np.frombuffer(data, integers.get(name, np.float32)) for name, data in raw.items()}
    return {name: a.reshape(-1, rows[name].shape[1]) if name in rows else a for name, a in arrays.items()}


def cell_members(arrays):
    """The input rows of each cell of a `segment`."""
    return np.split(arrays["order"], arrays["offset"][1:-1])


def core_cells(key, value, cell_size, seed):
    """The core's partition with the oracle's summaries: `cells_of` for `reference.near_far_attention`."""
    return summarize(key, value, cell_members(segment(key, value, cell_size, seed)))


def run_python(code, timeout=120, **environment):
    """Runs `code` in an interpreter of its own; the completed process with its output as text."""
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
