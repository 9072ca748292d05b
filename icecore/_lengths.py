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


def check_lengths(lengths, padding_side, batch, rows, name):
    """`lengths` as a list, one for each entry of the batch, of at most so many `rows` of the array `name`; None without."""
    if padding_side not in PADDING_SIDES:
        raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}")
    if lengths is None:
        return None
    lengths = plain(lengths, "lengths")
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"lengths has dtype {lengths.dtype}; expected integers")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {lengths.shape}; expected ({batch},), one for each entry of the batch")
    lengths = lengths.tolist()
    for i, length in enumerate(lengths):
        if not 0 <= length <= rows:
            raise ValueError(f"lengths[{i}] must be from 0 to {rows}, the rows of {name}, got {length}")
    return lengths


def own_rows(length, rows, padding_side):
    """The slice of an entry's own `length` rows among `rows`."""
    return slice(0, length) if padding_side == "right" else slice(rows - length, rows)


def entries_of(lengths, padding_side, problem, causal):
    """The entries that `lengths` parts a checked problem into, one for each of the batch; None without lengths.

    Causal queries are as many as keys at most, on the same side as these: the others are padding.
    """
    batch, _, keys, _ = problem.key.shape
    lengths = check_lengths(lengths, padding_side, batch, keys, "key")
    if lengths is None:
        return None
    queries = problem.query.shape[2]
    return [
        Entry(slice(i, i + 1), own_rows(min(queries, length) if causal else queries, queries, padding_side),
              own_rows(length, keys, padding_side))
        for i, length in enumerate(lengths)
    ]
