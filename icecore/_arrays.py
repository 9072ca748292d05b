"""Arrays at the door: dtype, shape, strides, masks and `out`, checked before any work."""

from __future__ import annotations

import math
import numbers
import operator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from icecore import _native

MAX_DIM = 576
MAX_INTEGER = 2**62
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

NATIVE_DTYPES = {
    "float32": _native.FLOAT32,
    "float16": _native.FLOAT16,
    "bfloat16": _native.BFLOAT16,
    "uint16": _native.BFLOAT16,
}


def integer(value, name, minimum):
    """`value` as an int of at least `minimum`, or an error that names it. Clipped to what the core's integers hold."""
    if type(value) is int and minimum <= value <= MAX_INTEGER:  # nearly always, and calls may be small
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got a bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return min(number, MAX_INTEGER)


def flag(value, name):
    """`value` as a bool: True or False, as NumPy's or as 1 and 0 too."""
    if isinstance(value, bool):  # nearly always
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.bool_) or (isinstance(value, numbers.Integral) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {value!r}" if np.ndim(value) == 0 else
                    f"{name} must be a bool, got {type(value).__name__}")


def check_seed(seed):
    clipped = integer(seed, "seed", 0)
    return clipped if clipped < MAX_INTEGER else operator.index(seed) % 2**64


@lru_cache(64)
def native_dtype(dtype):
    """The core's number of a dtype; None where it has none.  (The name of a dtype takes microseconds to find.)"""
    return NATIVE_DTYPES.get(dtype.name) if dtype.isnative else None


class Problem(NamedTuple):
    """Checked four-dimensional views of the inputs: (batch, heads, length, dim)."""

    dtype: np.dtype  # of the query as given
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    out_shape: tuple

    def part(self, query_heads, key_heads):
        """The problem of some heads, given as slices."""
        query, key, value = self.query[:, query_heads], self.key[:, key_heads], self.value[:, key_heads]
        return self._replace(query=query, key=key, value=value, out_shape=(*query.shape[:-1], value.shape[-1]))

    def entry(self, entry):
        """The problem of an `Entry` of the batch."""
        query = self.query[entry.batch, :, entry.queries]
        key, value = (array[entry.batch, :, entry.keys] for array in (self.key, self.value))
        return self._replace(query=query, key=key, value=value, out_shape=(*query.shape[:-1], value.shape[-1]))

    def last(self, count):
        """The problem of the last `count` queries."""
        query = self.query[:, :, -count:]
        return self._replace(query=query, out_shape=(*query.shape[:-1], self.value.shape[-1]))

    def row(self, row, keys):
        """The problem of one query and the first `keys` keys, or all."""
        query, key, value = self.query[:, :, row : row + 1], self.key[:, :, :keys], self.value[:, :, :keys]
        return self._replace(query=query, key=key, value=value, out_shape=(*query.shape[:-1], value.shape[-1]))

    @property
    def native_dtype(self):
        return native_dtype(self.dtype)

    @property
    def is_double(self):
        return self.dtype == FLOAT64

    @property
    def shape(self):
        """(batch, query_heads, queries, dim, keys, value_dim)."""
        return (*self.query.shape, self.key.shape[2], self.value.shape[3])


def plain(array, name):
    """`array` as an ndarray. What a masked array hides would be used all the same: refused."""
    if type(array) is np.ndarray:
        return array
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; expected a plain array")
    if isinstance(array, (set, frozenset)):
        raise TypeError(f"{name} is a {type(array).__name__}, which has no order; expected an array or a list")
    try:
        return np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} is no array ({error})") from error
    except (TypeError, RuntimeError) as error:
        if type(array).__module__.partition(".")[0] != "torch":
            raise
        raise TypeError(f"{name} is a tensor that NumPy does not take ({error}); expected icecore.torch.as_array({name}), or "
                        "icecore.torch.attention for tensors") from error


#: Keywords of PyTorch's function, and what is said of them.
_OF_TORCH = {
    "is_causal": "icecore's name is causal, aligned bottom-right",
    "enable_gqa": "query heads share key heads wherever there are more of them",
    "dropout_p": "there is no dropout at inference",
}


def refuse_names(function, names):
    """TypeError for keywords that a function does not have; PyTorch's are explained."""
    for name in names:
        said = f"{function}() got an unexpected keyword argument {name!r}"
        if name in _OF_TORCH:
            said += f": {_OF_TORCH[name]}; icecore.torch.scaled_dot_product_attention takes PyTorch's names"
        raise TypeError(said)


def check_array(array, name, good_dtype=None):
    if type(array) is not np.ndarray:
        array = plain(array, name)
    if array.dtype is not good_dtype and native_dtype(array.dtype) is None and array.dtype != FLOAT64:
        if array.dtype.name in (*NATIVE_DTYPES, "float64"):
            raise TypeError(f"{name} has byte order {array.dtype.byteorder!r}; expected the machine's own")
        expected = "float32, float16, bfloat16 (or its bits as uint16) or float64"
        raise TypeError(f"{name} has dtype {array.dtype}; expected {expected}")
    if not 2 <= array.ndim <= 4:
        raise ValueError(f"{name} has {array.ndim} dimensions {array.shape}; expected 2 to 4: (..., length, dim)")
    return array


def bits(array):
    """16-bit floats as uint16, the form in which the core takes them; float32 as it is."""
    return array.view(np.uint16) if array.itemsize == 2 else array


def widened(array):
    """`array` as float64; uint16 is read as the bits of bfloat16."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def narrowed(array, dtype):
    """float64 `array` in `dtype`; for uint16 as the bits of bfloat16, rounded to nearest even."""
    if dtype != np.uint16:
        return array.astype(dtype)
    bits = array.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _is_native(array):
    """Whether the core can use it as it lies: rows contiguous, strides whole elements."""
    size = array.itemsize
    return array.flags.c_contiguous or (array.strides[-1] == size and not any(stride % size for stride in array.strides))


def native_view(array):
    """`array` as the core reads it; a copy only where it must be."""
    return bits(array if _is_native(array) else np.ascontiguousarray(array))


def native_problem(problem, out, lse, scores, mask, *, causal=False, sinks=0, sides=(-1, -1), threads=0):
    """A checked problem as the core takes it, with four-dimensional `out`; `sides` as of `window_sides`."""
    dtype, query, key, value, _ = problem
    return _native.Problem(
        dtype=native_dtype(dtype), query=native_view(query), key=native_view(key), value=native_view(value), out=bits(out),
        lse=lse, scale=scores.scale, softcap=scores.softcap or 0.0, sink_logits=scores.sink_logits,
        alibi_slopes=scores.alibi_slopes, causal=causal, window_left=sides[0], window_right=sides[1], sinks=sinks,
        ranges=mask.ranges, keep=mask.keep, bias=mask.bias, threads=threads,
    )  # by names, not from a dict: that would be a tenth of a small call's time


def native_result(out, problem):
    """What the core writes to: `out` itself where it can, else a new array."""
    return out if out is not None and _is_native(out) else np.empty(problem.out_shape, problem.dtype)


def check_problem(query, key, value):
    """Validate query, key and value and view them as four-dimensional."""
    query = check_array(query, "query")
    dtype, shape = query.dtype, query.shape
    key, value = check_array(key, "key", dtype), check_array(value, "value", dtype)
    key_shape, value_shape = key.shape, value.shape
    if not (key.dtype is value.dtype is dtype and len(key_shape) == len(value_shape) == len(shape)):
        _check_alike(query, key=key, value=value)
    if key_shape[-1] != shape[-1]:
        raise ValueError(f"key has dim {key_shape[-1]} (shape {key_shape}), but query has {shape[-1]} ({shape})")
    if value_shape[:-1] != key_shape[:-1]:
        raise ValueError(f"value has shape {value_shape}, but key has {key_shape}; expected them equal up to the last axis")
    if not (1 <= shape[-1] <= MAX_DIM and 1 <= value_shape[-1] <= MAX_DIM):
        width, name = (value_shape[-1], "value") if 1 <= shape[-1] <= MAX_DIM else (shape[-1], "query")
        raise ValueError(f"{name} has a last axis of {width}; expected 1 to {MAX_DIM}")
    if len(shape) == 4 and shape[0] != key_shape[0]:
        raise ValueError(f"key has batch {key_shape[0]} (shape {key_shape}), but query has {shape[0]} ({shape})")
    if len(shape) >= 3:
        heads, key_heads = shape[-3], key_shape[-3]
        if (key_heads == 0 and heads) or (key_heads and heads % key_heads):
            raise ValueError(f"query has {heads} heads and key has {key_heads}; expected a multiple of the key heads")
    return Problem(dtype, as_four(query), as_four(key), as_four(value), (*shape[:-1], value_shape[-1]))


def as_four(array):
    """`array` with batch and heads."""
    return array if array.ndim == 4 else array[(None,) * (4 - array.ndim)]


def _check_alike(query, **others):
    """One dtype and one number of dimensions."""
    for name, array in others.items():
        if array.dtype != query.dtype:
            raise TypeError(f"{name} has dtype {array.dtype}, but query has {query.dtype}; expected one dtype")
        if array.ndim != query.ndim:
            raise ValueError(f"{name} has shape {array.shape}, but query has {query.shape}; expected as many dimensions")


def check_out(out, problem, inputs):
    """Validate `out`: shape, dtype, writable, sharing no memory with an input."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.shape != problem.out_shape:
        raise ValueError(f"out has shape {out.shape}; expected {problem.out_shape}")
    if out.dtype != problem.dtype:
        raise TypeError(f"out has dtype {out.dtype}; expected the query's, {problem.dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    for name, array in inputs.items():
        if array is not None and np.may_share_memory(out, array) and np.shares_memory(out, array):
            raise ValueError(f"out overlaps {name}; expected memory of its own")
    if out.size and not out.flags.c_contiguous and _overlaps_itself(out):
        raise ValueError(f"out overlaps itself (strides {out.strides}); expected every element to have its own memory")
    return out


def _overlaps_itself(array):
    """Whether two elements may share memory: some axis steps by less than the smaller-stepping axes span."""
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (length - 1) + reach
    return False


def check_scale(scale, dim):
    """`scale` as a float, or the default for `dim`."""
    if scale is None:
        return 1.0 / math.sqrt(dim)
    if isinstance(scale, np.ndarray) and scale.ndim == 0:
        scale = scale[()]
    if isinstance(scale, (bool, np.bool_)) or not isinstance(scale, (numbers.Real, np.floating, np.integer)):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    if not abs(scale) <= MAX_SCORE:
        raise ValueError(f"scale must lie from {-MAX_SCORE:g} to {MAX_SCORE:g}, got {scale}")
    return float(scale)


#: Soft caps and sink logits lie within what float32 holds in any unit, and so do their inverses.
MIN_SCORE, MAX_SCORE = 1e-30, 1e30
LARGEST_SINK = float(np.float32(MAX_SCORE))
#: Slopes up to here take a finite number off a score at any distance.
MAX_SLOPE = 1e6


def _check_softcap(softcap):
    if softcap is None:
        return None
    if isinstance(softcap, np.ndarray) and softcap.ndim == 0:
        softcap = softcap[()]
    if isinstance(softcap, (bool, np.bool_)) or not isinstance(softcap, (numbers.Real, np.floating, np.integer)):
        raise TypeError(f"softcap must be a number, got {type(softcap).__name__}")
    if not MIN_SCORE <= softcap <= MAX_SCORE:
        raise ValueError(f"softcap must lie from {MIN_SCORE:g} to {MAX_SCORE:g}, or be None for no cap; got {softcap}")
    return float(softcap)


def _of_query_heads(numbers, name, query_heads):
    """An argument of a float for each query head, (H,): as float32, and as an array of its own dtype."""
    numbers = plain(numbers, name)
    if numbers.dtype.kind != "f" and numbers.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {numbers.dtype}; expected a float for each query head")
    if numbers.shape != (query_heads,):
        raise ValueError(f"{name} has shape {numbers.shape}; expected ({query_heads},), one for each query head")
    if numbers.dtype == FLOAT32:
        return np.ascontiguousarray(numbers), numbers
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32), numbers


def _check_sink_logits(logits, query_heads):
    if logits is None:
        return None
    own, logits = _of_query_heads(logits, "sink_logits", query_heads)
    pairs = enumerate(zip(own.tolist(), logits.tolist(), strict=True))  # one a head: fewer than pay for NumPy's operations
    bad = next((i for i, (number, given) in pairs if not (abs(number) <= LARGEST_SINK or given == -math.inf)), None)
    if bad is not None:
        raise ValueError(f"sink_logits[{bad}] is {logits[bad]}; expected magnitudes up to {MAX_SCORE:g}, or -inf for none")
    return own


def _check_alibi_slopes(slopes, query_heads):
    if slopes is None:
        return None
    own, _ = _of_query_heads(slopes, "alibi_slopes", query_heads)
    bad = next((i for i, slope in enumerate(own.tolist()) if not 0 <= slope <= MAX_SLOPE), None)
    if bad is not None:
        raise ValueError(f"alibi_slopes[{bad}] is {own[bad]}; expected 0 to {MAX_SLOPE:g} (by which scores fall)")
    return own


class Scores(NamedTuple):
    """How products become scores, checked: their scale, a soft cap, and sink logits and slopes of ALiBi, (H,) and float32.

    None where absent.
    """

    scale: float
    softcap: float | None = None
    sink_logits: np.ndarray | None = None
    alibi_slopes: np.ndarray | None = None

    def part(self, heads):
        """That of some query heads, given as a slice."""
        return Scores(self.scale, self.softcap, *(None if own is None else own[heads] for own in self[2:]))

    def given(self):
        """What is not absent, by name: as of the oracles."""
        return {name: own for name, own in self._asdict().items() if own is not None}

    def fields(self):
        """As of `_native.Problem`."""
        return {"scale": self.scale, "softcap": self.softcap or 0.0, "sink_logits": self.sink_logits,
                "alibi_slopes": self.alibi_slopes}


def check_scores(scale, softcap, sink_logits, query_heads, dim, alibi_slopes=None):
    """The `Scores` of a call's arguments."""
    scale = check_scale(scale, dim)
    if softcap is sink_logits is alibi_slopes is None:  # nearly always, and calls may be small
        return Scores(scale)
    return Scores(scale, _check_softcap(softcap), _check_sink_logits(sink_logits, query_heads),
                  _check_alibi_slopes(alibi_slopes, query_heads))


class Mask(NamedTuple):
    """What hides keys: a mask in four dimensions, (batch, heads, queries, keys), `keep` as bytes or `bias` as float32, and as
    it was `given` where the oracle computes; and `ranges` (batch, queries, 2) as int64. None where absent."""

    keep: np.ndarray | None = None
    bias: np.ndarray | None = None
    given: np.ndarray | None = None
    ranges: np.ndarray | None = None

    def part(self, heads=slice(None), queries=slice(None), keys=slice(None), batch=slice(None)):
        """What it says of some heads, queries, keys and entries of the batch, given as slices."""
        if self is NO_MASK:
            return self
        ranges = self.ranges
        if ranges is not None:
            ranges = ranges[batch, queries]
            if keys != slice(None):
                first = keys.start or 0
                ranges = np.clip(ranges - first, 0, None if keys.stop is None else keys.stop - first)
        return Mask(*(None if m is None else m[batch, heads, queries, keys] for m in self[:3]), ranges)


NO_MASK = Mask()


def check_ranges(ranges, problem):
    """`key_ranges` as of `Mask`: an argument that broadcasts to (B, L, 2), or None."""
    if ranges is None:
        return None
    ranges = plain(ranges, "key_ranges")
    batch, _, queries, _ = problem.query.shape
    keys, shape = problem.key.shape[2], (batch, queries, 2)
    expected = f"key_ranges has shape {ranges.shape}; expected one that broadcasts to {shape}: (first, end) of each query"
    if ranges.dtype.kind not in "iu":
        raise TypeError(f"key_ranges has dtype {ranges.dtype}; expected integers, the first and end of each query's keys")
    if ranges.ndim not in (2, 3) or ranges.shape[-1] != 2:
        raise ValueError(expected)
    own = ranges if ranges.dtype == np.int64 else np.where(ranges <= keys, ranges, keys + 1).astype(np.int64)
    first, end = own[..., 0], own[..., 1]
    bad = np.flatnonzero((first < 0) | (end > keys) | (end < first))
    if bad.size:
        place = np.unravel_index(bad[0], first.shape)
        found, at = ranges[place].tolist(), ", ".join(map(str, place))
        raise ValueError(f"key_ranges[{at}] is {found}; expected first and end with 0 <= first <= end <= {keys}")
    try:
        return np.broadcast_to(np.ascontiguousarray(own), shape)
    except ValueError:
        raise ValueError(expected) from None


def check_mask(mask, problem):
    """The `Mask` of an argument that broadcasts to (..., L, S)."""
    if mask is None:
        return NO_MASK
    mask = plain(mask, "attn_mask")
    keys = problem.key.shape[2]
    shape = (*problem.out_shape[:-1], keys)
    try:
        broadcast = np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(f"attn_mask has shape {mask.shape}; expected one that broadcasts to {shape}") from None
    broadcast = as_four(broadcast)
    if mask.dtype == np.bool_:
        return Mask(broadcast.view(np.uint8), None, broadcast if problem.is_double else None)
    if mask.dtype.kind == "f" or mask.dtype.name == "bfloat16":
        given = broadcast if problem.is_double else None
        if mask.dtype != np.float32:
            if mask.dtype.kind == "f" and mask.dtype.itemsize > 4:  # what is finite stays finite
                largest = np.finfo(np.float32).max
                mask = np.where(np.isinf(mask), mask, np.clip(mask, -largest, largest))
            small = mask.astype(np.float32)
            broadcast = as_four(np.broadcast_to(small, shape))
        if any(stride % 4 for stride in broadcast.strides):
            broadcast = np.ascontiguousarray(broadcast)
        return Mask(None, broadcast, given)
    raise TypeError(f"attn_mask has dtype {mask.dtype}; expected bool (True keeps) or a float to add to the scores")
