"""What near/far attention does, as the core counts it before a call (icecore_near_far_count in csrc/include/icecore.h)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from icecore import _native


class Steps(NamedTuple):
    """Of one key head, masks aside; int64 arrays, an entry per step: the queries that see the same sealed keys.

    Attributes
    ----------
    queries, pairs : ndarray of int64
        Of each query head, and its (query, visible key) pairs.
    sealed_keys : ndarray of int64
        Keys that each query sees by cells; all others it sees exactly.
    is_exact : ndarray of int64
        1 where sealed keys are attended exactly, too: no row has been measured yet.
    built_keys, distances : ndarray of int64
        Keys of the segments that are built for the step, and their distances from means.
    measured_rows : ndarray of int64
        Of all query heads: by which the thresholds of later steps are measured.
    """

    queries: np.ndarray
    pairs: np.ndarray
    sealed_keys: np.ndarray
    is_exact: np.ndarray
    built_keys: np.ndarray
    distances: np.ndarray
    measured_rows: np.ndarray


def near_far_steps(queries, keys, *, causal, window, sinks, group=1, cell_size=1, tolerance=None):
    """The `Steps` of a call with `group` query heads on its key head; `window` is used where causal."""
    options = _native.NearFar(block=window if causal else 1, cell_size=cell_size, tolerance=tolerance or 0.0)
    steps = _native.near_far_count(options, group, 1, queries, keys, causal, sinks)
    return Steps(*np.frombuffer(steps, np.int64).reshape(-1, len(Steps._fields)).T)
