"""How some heads are computed: settings, their defaults, and the checks of what a caller gives."""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import numpy as np

from icecore._arrays import integer
from icecore.selectors import Selector

#: Of near/far attention: cells number keys in 32 bits.
MAX_KEYS = 2**31 - 1
#: Keys a query sees exactly before and around its own block, when causal and `k` is given.
DEFAULT_WINDOW = 512
#: First keys that stay exact, when causal and `k` is given: attention sinks (inside cells they spoil every mean).
DEFAULT_SINKS = 16
#: Keys per cell, on average: the smaller the cells, the less is lost at equal near keys, and the more of them are scored.
CELL_SIZE = 16
#: Below this tolerance rounding to bfloat16 would be a large part of the error.
MIN_ROUNDED_TOLERANCE = 0.015


@dataclass(frozen=True)
class Settings:
    """How some heads are computed: by a selector, exactly where k is None (`window`, `sinks`), else by near/far attention.

    head_tolerance : ndarray of float32 (H,), of each query head; `tolerance` is then their mean.
    head_threshold : ndarray of float32 (H,), where measuring starts; without a tolerance they stay in force.
    head_cell_size : ndarray of int64 (H_k,), of each key head; `cell_size` is then their mean.
    metric : ndarray of float32 (H_k, d, d), second moments of queries; None: as the core finds them.
    """

    k: int | None
    tolerance: float | None = None
    window: int | tuple[int, int] | None = None
    sinks: int = 0
    cell_size: int = CELL_SIZE
    head_tolerance: np.ndarray | None = None
    head_threshold: np.ndarray | None = None
    head_cell_size: np.ndarray | None = None
    metric: np.ndarray | None = None
    window_alone: bool = False  # exact, but of a window in place of all keys
    selector: Selector | None = None  # another method: its parameters are its own
    rounded: bool = True  # to bfloat16, where the machine multiplies it and the tolerance allows it

    @property
    def is_exact(self):
        """Whether queries attend to all keys of their window."""
        return self.k is None and self.selector is None

    @property
    def is_approximate(self):
        """Whether queries miss keys that the caller did not hide from them, or see them from afar."""
        return not self.is_exact or self.window_alone


#: All visible keys.
EXACT = Settings(None)


def window_sides(window):
    """A window's sides as the core has them: key j is visible where p - j < left and j - p < right, -1 for no bound.

    window : None, an int, or (left, right) with both ends included and -1 for no bound.
    """
    if window is None:
        return -1, -1
    return tuple(side + 1 if side >= 0 else -1 for side in window) if isinstance(window, tuple) else (window, window)


def check_window(window):
    """`window` of exact attention as an int or a tuple of two."""
    if not isinstance(window, (tuple, list)):
        if not hasattr(window, "__index__") or np.ndim(window):
            raise TypeError(f"window must be an integer, got {type(window).__name__}; a pair is a tuple (left, right)")
        return integer(window, "window", 0)
    if len(window) != 2:
        raise ValueError(f"window has {len(window)} numbers; expected (left, right)")
    return tuple(integer(side, f"window[{i}]", -1) for i, side in enumerate(window))


def rounds(tolerance):
    """Whether near/far attention may round to bfloat16."""
    return tolerance is None or tolerance >= MIN_ROUNDED_TOLERANCE


def check_k(k):
    if k is None:
        return None
    if np.ndim(k) > 0:
        raise TypeError(
            "k= is the number of near-field keys (an integer), not the key array; "
            "arrays are positional: attention(query, key, value, k=256)"
        )
    return integer(k, "k", 1)


def check_tolerance(tolerance):
    if tolerance is None:
        return None
    if isinstance(tolerance, np.ndarray) and tolerance.ndim == 0:
        tolerance = tolerance[()]
    if not isinstance(tolerance, (numbers.Real, np.floating)):
        raise TypeError(f"tolerance must be a number, got {type(tolerance).__name__}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be above 0 and below 1, got {tolerance}")
    return float(tolerance)
