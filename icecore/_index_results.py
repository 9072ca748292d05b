"""What a search of an Index returns, and the arrays that it fills."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


class SearchResult(NamedTuple):
    """Neighbours of each query, best first.

    Attributes
    ----------
    ids : (n, k) int64
        -1 where fewer than k were found (`counts` tells it from a vector whose id is -1).
    scores : (n, k) float32
        Inner products or cosines (descending), or squared distances (ascending); NaN where `ids` is -1.
    counts : (n,) int64
        How many were found.

    For a single query of shape (dim,) the first axis is absent, and `counts` is an array of no dimensions.
    """

    ids: np.ndarray
    scores: np.ndarray
    counts: np.ndarray


class RangeResult(NamedTuple):
    """All neighbours within a bound; those of query i are ``ids[offsets[i]:offsets[i + 1]]``, best first.

    Attributes
    ----------
    offsets : (n + 1,) int64
    ids : (m,) int64
    scores : (m,) float32
        As in `SearchResult`.
    """

    offsets: np.ndarray
    ids: np.ndarray
    scores: np.ndarray


def shapes_of(n, k):
    return (n, k), (n, k), (n,)


def result_arrays(out, n, k, single, queries):
    """The arrays to fill: new ones, or `out` checked."""
    shapes = [shape[1:] for shape in shapes_of(n, k)] if single else shapes_of(n, k)
    dtypes = np.int64, np.float32, np.int64
    if out is None:
        return SearchResult(*(np.empty(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)))
    if len(out) not in (2, 3):
        raise ValueError(f"out holds {len(out)} arrays; expected ids, scores and, if wanted, counts")
    arrays = [*out] if len(out) == 3 else [*out, np.empty(shapes[2], np.int64)]
    for name, array, shape, dtype in zip(SearchResult._fields, arrays, shapes, dtypes, strict=True):
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            raise ValueError(f"out: {name} must be an array of shape {shape} and dtype {np.dtype(dtype)}")
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError(f"out: {name} must be contiguous and writable")
    named = [*zip(SearchResult._fields, arrays, strict=True), ("queries", queries)]
    for (name, array), (other, another) in itertools.combinations(named, 2):
        if np.may_share_memory(array, another):  # contiguous, so bounds decide
            raise ValueError(f"out: {name} and {other} share memory")
    return SearchResult(*arrays)
