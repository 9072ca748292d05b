"""Batches whose entries have different lengths: which queries and keys are an entry's own."""

from __future__ import annotations

from typing import NamedTuple

from icecore._arrays import plain

PADDING_SIDES = ("right", "left")


class Entry(NamedTuple):
    """A part of the batch that is attended by itself: slices of its entries, of their queries and of their keys."""

    batch: slice
    queries: slice
    keys: slice


def entries_of(lengths, padding_side, problem, causal):
    """The entries that `lengths` parts a checked problem into, one for each of the batch; None without lengths.

    Causal queries are as many as keys at most, on the same side as these: the others are padding.
    """
    if padding_side not in PADDING_SIDES:
        raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}")
    if lengths is None:
        return None
    lengths = plain(lengths, "lengths")
    batch, _, queries, _, keys, _ = problem.shape
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"lengths has dtype {lengths.dtype}; expected integers")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {lengths.shape}; expected ({batch},), the keys of each entry of the batch")
    for i, length in enumerate(lengths.tolist()):
        if not 0 <= length <= keys:
            raise ValueError(f"lengths[{i}] must be from 0 to {keys}, the rows of key, got {length}")
    side = _first_rows if padding_side == "right" else _last_rows
    own = [min(queries, length) if causal else queries for length in lengths.tolist()]
    return [
        Entry(slice(i, i + 1), side(count, queries), side(length, keys))
        for i, (count, length) in enumerate(zip(own, lengths.tolist(), strict=True))
    ]


def _first_rows(count, rows):
    return slice(0, count)


def _last_rows(count, rows):
    return slice(rows - count, rows)
