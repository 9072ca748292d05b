"""What an Index is made with and given: parameters, vectors, ids and filters, checked."""

from __future__ import annotations

import math
import numbers
from contextlib import suppress

import numpy as np

from icecore import _native
from icecore._arrays import check_seed, integer, plain

#: By their numbers in the core; cosines are inner products of unit vectors.
METRICS = {"ip": 0, "l2": 1, "cosine": 0}
DTYPES = {"float32": _native.FLOAT32, "float16": _native.FLOAT16, "bfloat16": _native.BFLOAT16}
#: The largest magnitude that does not round to infinity.
LARGEST = {"float32": math.inf, "float16": 65519.0, "bfloat16": 3.396e38}
MAX_DIM = 16384


def check_parameters(dim, metric, num_composite, num_simple, num_levels, promotion, dtype, seed):
    """The constructor's arguments as plain numbers and names."""
    dim = integer(dim, "dim", 1)
    if dim > MAX_DIM:
        raise ValueError(f"dim must be at most {MAX_DIM}, got {dim}")
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    counts = {}
    for name, value, low, high in (("num_composite", num_composite, 0, 64), ("num_simple", num_simple, 1, 64),
                                   ("num_levels", num_levels, 1, 8)):
        counts[name] = integer(value, name, low)
        if counts[name] > high:
            raise ValueError(f"{name} must be at most {high}, got {value}")
    if promotion is not None:
        if isinstance(promotion, bool) or not isinstance(promotion, numbers.Real):
            raise TypeError(f"promotion must be a number or None, got {type(promotion).__name__}")
        with suppress(OverflowError):  # larger than any float: out of range as it is
            promotion = float(promotion)
        if not 0 < promotion < 1:
            raise ValueError(f"promotion must be between 0 and 1, got {promotion}")
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", getattr(dtype, "name", None))
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return {"dim": dim, "metric": metric, **counts, "promotion": promotion, "dtype": name, "seed": check_seed(seed)}


def native_options(p):
    return _native.IndexOptions(
        dim=p["dim"], metric=METRICS[p["metric"]], composites=p["num_composite"], simples=p["num_simple"],
        levels=p["num_levels"], promotion=p["promotion"] or 0.0, dtype=DTYPES[p["dtype"]], seed=p["seed"],
    )


def check_vectors(array, dim, name, dtype="float32"):
    """`array` as contiguous finite float32 of shape (n, dim), and whether it was a single vector."""
    array = plain(array, name)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
    if array.dtype == np.uint16:
        expected = "it viewed as ml_dtypes.bfloat16, or float32"
        raise TypeError(f"{name} has dtype uint16, which may mean bits of bfloat16; expected {expected}")
    if array.ndim not in (1, 2) or array.shape[-1] != dim:
        raise ValueError(f"{name} has shape {array.shape}; expected (n, {dim}) or ({dim},)")
    single = array.ndim == 1
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(array.reshape(-1, dim), np.float32)
    largest = LARGEST[dtype]
    # minimum and maximum instead of isfinite: no array of the same size; a NaN makes the comparison false
    if rows.size and not (rows.min() > -np.inf and rows.max() < np.inf and max(-rows.min(), rows.max()) <= largest):
        bad = np.flatnonzero(~(np.abs(rows) <= min(largest, np.finfo(np.float32).max)).all(axis=1))[0]
        kind = "a NaN, an infinity or a number beyond float32" if largest == math.inf else f"a number that {dtype} cannot hold"
        raise ValueError(f"{name} holds {kind} in row {bad}; expected finite numbers")
    return rows, single


def unit_vectors(rows, name):
    """`rows` by their lengths; ValueError where one is zero."""
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if not largest.all():
        row = np.flatnonzero(largest == 0)[0]
        raise ValueError(f"{name} is zero in row {row}, which has no cosine with anything; expected vectors that are not zero")
    scaled = rows / largest[:, None]  # whose squares neither overflow nor vanish
    scaled /= np.sqrt(np.einsum("nd,nd->n", scaled, scaled))[:, None]
    return scaled


def check_ids(array, name="ids", dimensions="one dimension"):
    """`array` as contiguous int64 of one dimension."""
    array = plain(array, name)
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int64)  # an empty list
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers")
    if array.ndim > 1:
        raise ValueError(f"{name} has shape {array.shape}; expected {dimensions}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {array.max()}; expected at most {np.iinfo(np.int64).max}")
    return np.ascontiguousarray(array.reshape(-1), np.int64)


def check_filter(array, name, queries):
    """The ids of a filter, or a list of those of each query."""
    if array is None:
        return None
    array = plain(array, name)
    if array.ndim == 2:
        if len(array) != queries:
            raise ValueError(f"{name} has shape {array.shape}; expected one dimension, or a row for each of {queries} queries")
        return [check_filter(row, name, 1) for row in array]
    return np.flatnonzero(array) if array.dtype == bool and array.ndim == 1 else check_ids(array, name, "one dimension or two")
