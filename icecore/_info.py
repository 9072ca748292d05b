"""AttentionInfo: what a call did."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from icecore._schedule import near_far_steps
from icecore._settings import window_sides

#: Of a mask, when near keys are counted.
ROWS_AT_ONCE = 256
#: Of bfloat16, the least of the lowest finite numbers that masks are made of.
LOWEST = -3.3895313892515355e38


@dataclass(frozen=True, eq=False)
class AttentionInfo:
    """What a call did; ``print(info)`` says it in words. Equal to itself alone.

    Attributes
    ----------
    path : str
        ``"exact"``, ``"rounded"`` (exact attention on numbers rounded to bfloat16, in the key heads where sampled rows keep the
        tolerance), ``"near_far"`` or a selector's name; ``"reference"`` for float64; ``"mixed"`` where a plan's heads take
        different ones. On the near/far path, rows and heads that had to be exact show it by ``summaries`` of 0 and a captured
        mass of 1.
    near_keys : ndarray of int32, shape (..., L)
        Keys summed exactly for each query besides sinks and window; all visible keys where the path is exact.
    captured_mass : ndarray of float32, shape (..., L)
        Share of each query's softmax mass that was summed exactly, sinks and window included; the rest was estimated from
        cell means (or dropped). 1 where a row is exact; 0 for a query that sees no key. Elsewhere an estimate, with a tolerance
        corrected by what the means of sampled rows were found to lack: within 0.05 for most rows, but far too high for a row
        whose means miss a large key. NaN with a selector, which does not know it.
    missed_mass_bound : ndarray of float32, shape (..., L), or None
        No larger a share of the true mass lies outside the keys that were summed exactly, whatever the inputs (where they are
        rounded to bfloat16: of the rounded ones). From the radius of each cell: usually far above ``1 - captured_mass``. None
        where the path is not near/far with a far field.
    summaries : ndarray of int32, shape (..., L), or None
        Cells and parents that were scored for each query. None where the path is not near/far.
    visited_fraction : ndarray of float32, shape (..., L), or None
        Keys and summaries that each query read, by the keys that it sees (masks aside): below 1 where near/far saves reading.
        None where the path is not near/far with a far field.
    seconds : dict of str to float, or None
        Time spent ``"sealing"``, ``"attending"`` and ``"measuring"``, all threads together. None where the path is not
        near/far.
    predicted : dict of str to float, or None
        Seconds that ``"exact"``, ``"near_far"`` and, where there is a choice of it, ``"rounded"`` were expected to take on the
        call's threads (see ``python -m icecore tune``). The path was chosen by what they take on one. With a tolerance: of
        near/far at its cheapest, since what it needs is measured in the call. None where there was no choice.
    error : ndarray of float32, shape (..., H), or None
        With a tolerance: what ``sum |out - exact| / sum |exact|`` of each query head was on sampled rows, with the thresholds
        that were in force before these rows were known (not causal: with those they led to); half the relative error of the
        mass (the error of lse) counts as one more component. Of near/far rows alone, and 0 where a head was exact; NaN where no
        row was measured. With k: the same of 32 rows of the result. An estimate from `error_rows` rows, give or take
        `error_standard_error`: on a language model within 1.5 times of the true one for eight or nine heads in ten, for
        fewer where few rows make most of the error. None where the path is exact.
    error_standard_error : ndarray of float32, shape (..., H), or None
    error_rows : ndarray of int32, shape (..., H), or None
    """

    path: str
    near_keys: np.ndarray
    captured_mass: np.ndarray
    missed_mass_bound: np.ndarray | None = None
    summaries: np.ndarray | None = None
    visited_fraction: np.ndarray | None = None
    seconds: dict | None = None
    predicted: dict | None = None
    error: np.ndarray | None = None
    error_standard_error: np.ndarray | None = None
    error_rows: np.ndarray | None = None

    def __str__(self):
        lines = [f"path: {self.path}, {self._reason()}"]
        if self.near_keys.size:
            lines.append(f"near keys per query: median {np.median(self.near_keys):.0f}, max {self.near_keys.max()}")
            mass = self.captured_mass
            if not np.isnan(mass).all():  # a selector does not know it
                lines.append(f"captured mass: median {np.median(mass):.4f}, min {mass.min():.4f}")
            if self.missed_mass_bound is not None:
                bound = self.missed_mass_bound
                lines.append(f"missed-mass bound: median {np.median(bound):.4f}, max {bound.max():.4f}")
            if self.summaries is not None:
                scored = self.summaries
                lines.append(f"cells and parents scored per query: median {np.median(scored):.0f}, max {scored.max()}")
            if self.visited_fraction is not None:
                lines.append(f"share of the visible keys read per query: mean {self.visited_fraction.mean():.1%}")
        if self.error is not None and np.isfinite(self.error).any():
            lines.append(f"measured error per head: mean {np.nanmean(self.error):.4f}, max {np.nanmax(self.error):.4f} "
                         f"(from {np.median(self.error_rows):.0f} rows per head)")
        if self.seconds is not None:
            split = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in self.seconds.items())
            lines.append(f"time, all threads together: {split}")
        return "\n".join(lines)

    def _reason(self):
        if self.predicted is None:
            return "no choice"
        names = {"exact": "exact", "rounded": "rounded", "near_far": "near/far"}
        times = (f"{1e3 * self.predicted[path]:.2f} ms {name}" for path, name in names.items() if path in self.predicted)
        return f"expected to take {', '.join(times)}"


def new_report(shape):
    """Arrays of (batch, heads, queries) for `_native.Report`, by name."""
    types = {"near_count": np.int32, "summaries": np.int32, "captured_mass": np.float32, "missed_bound": np.float32}
    return {name: np.empty(shape, dtype) for name, dtype in types.items()}


def new_errors(shape):
    """Those of (batch, heads)."""
    types = {"error": np.float32, "standard_error": np.float32, "error_rows": np.int32}
    return {name: np.empty(shape[:2], dtype) for name, dtype in types.items()}


def error_fields(report):
    """Of `new_errors`, filled, by their names in an `AttentionInfo`."""
    names = {"error": "error", "error_standard_error": "standard_error", "error_rows": "error_rows"}
    return {field: report.get(name) for field, name in names.items()}


def info_of(report, visited):
    """The `AttentionInfo` of near/far attention, of what the core has filled."""
    seconds = report.get("seconds")
    return AttentionInfo(
        "near_far", report["near_count"], report["captured_mass"], report.get("missed_bound"), report["summaries"], visited,
        None if seconds is None else dict(zip(("sealing", "attending", "measuring"), map(float, seconds), strict=True)),
        **error_fields(report),
    )


def visited_fraction(near, summaries, keys, causal, window, sinks):
    """As in `AttentionInfo`; near and summaries (..., L) of the last queries, the last of which stands at the last key."""
    queries = near.shape[-1]
    steps = near_far_steps(queries, keys, causal=causal, window=window, sinks=sinks)
    seen = np.maximum(keys - queries + 1 + np.arange(queries), 0) if causal else np.full(queries, keys)  # (L,) keys
    exact = seen - np.repeat(steps.sealed_keys, steps.queries)
    return ((exact + near + summaries) / np.maximum(seen, 1)).astype(np.float32)


def visible_share(ranges, keys, causal):
    """The (query, key) pairs that `ranges` (B, L, 2) leave, by those that there are without, which are not 0."""
    _, queries, _ = ranges.shape
    end = np.maximum(np.arange(queries) + keys - queries + 1, 0) if causal else np.full(queries, keys)
    left = np.maximum(np.minimum(ranges[..., 1], end) - ranges[..., 0], 0)
    return float(left.mean() / max(end.mean(), 1e-9))


def _visible_ranges(queries, keys, causal, window, sinks, ranges):
    """(sink_begin, sink_end, begin, end), each (L,) or, with `ranges`, (B, L): a query sees [sink_begin, sink_end) and
    [begin, end), as in csrc/attend/request.c."""
    position = np.arange(queries) + (keys - queries)
    first, end = np.zeros(queries, int), np.clip(position + 1, 0, keys) if causal else np.full(queries, keys)
    if ranges is not None:
        first, end = ranges[..., 0], np.maximum(np.minimum(end, ranges[..., 1]), ranges[..., 0])
    if window is None:
        return first, first, first, end
    left, right = window_sides(window)
    sink_end = np.maximum(first, np.minimum(sinks, end))
    begin = sink_end if left < 0 else np.maximum(sink_end, position - left + 1)
    end = end if right < 0 else np.minimum(end, np.maximum(0, position + right))
    return first, sink_end, begin, np.maximum(begin, end)


def _left_by(bias):
    """Which keys a mask that is added leaves, (rows, S): the lowest finite number hides them where another key is left."""
    left = bias > LOWEST
    return np.where(left.any(axis=1, keepdims=True), left, bias != -np.inf)


def exact_info(shape, causal, window, sinks, mask):
    """Of exact attention: all visible keys are near, and hold all the mass."""
    keep, bias = mask.keep, mask.bias
    batch, heads, queries, _, keys, _ = shape
    seen = _visible_ranges(queries, keys, causal, window, sinks, mask.ranges)
    near = np.empty((batch, heads, queries), np.int32)
    near[...] = np.atleast_2d(seen[1] - seen[0] + seen[3] - seen[2])[:, None]
    if keep is None and bias is None:
        return AttentionInfo("exact", near, (near > 0).astype(np.float32))
    places = [np.atleast_2d(a) for a in seen]
    for b, h, first in itertools.product(range(batch), range(heads), range(0, queries, ROWS_AT_ONCE)):
        rows = slice(first, first + ROWS_AT_ONCE)
        left = keep[b, h, rows] != 0 if keep is not None else _left_by(bias[b, h, rows])  # (rows, S)
        before = np.zeros((len(left), keys + 1), np.int32)  # keys left before each place
        np.cumsum(left, axis=1, out=before[:, 1:])
        at = np.arange(len(left))
        sink_begin, sink_end, begin, end = (a[min(b, len(a) - 1), rows] for a in places)
        near[b, h, rows] = before[at, sink_end] - before[at, sink_begin] + before[at, end] - before[at, begin]
    return AttentionInfo("exact", near, (near > 0).astype(np.float32))


def join_infos(parts, size, shape):
    """One `AttentionInfo` of those of all parts, whose arrays lie in ones of `size`, (batch, heads, L), which are 0 elsewhere;
    its arrays are of `shape`.

    parts : [(batch, heads and queries as slices, AttentionInfo)]
    """
    infos = [info for _, info in parts]

    def arrays(name, axes, shape):
        if any(getattr(info, name) is None for info in infos):
            return None
        joined = np.zeros(size[:axes], getattr(infos[0], name).dtype)
        for where, info in parts:
            joined[where[:axes]] = getattr(info, name)
        return joined.reshape(shape)

    def sums(name):
        parts = [getattr(info, name) for info in infos if getattr(info, name) is not None]
        common = [key for key in parts[0] if all(key in part for part in parts)] if parts else []
        return {key: sum(part[key] for part in parts) for key in common} if parts else None

    paths = {info.path for info in infos}
    return AttentionInfo(
        paths.pop() if len(paths) == 1 else "mixed",
        *(arrays(name, 3, shape)
          for name in ("near_keys", "captured_mass", "missed_mass_bound", "summaries", "visited_fraction")),
        *map(sums, ("seconds", "predicted")),
        *(arrays(name, 2, shape[:-1]) for name in ("error", "error_standard_error", "error_rows")),
    )
