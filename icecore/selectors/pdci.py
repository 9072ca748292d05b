"""IceFormer: keys that Prioritized DCI visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class PDCI(Selector):
    """IceFormer [1]_: the keys with the largest scores among those that Prioritized DCI [2]_ visits.

    Two composite indices of seven projections each, in trees of two levels; with causal=True of whole blocks of 512 keys, and
    the newest keys are compared besides. About O(L (sqrt(S) d + visit (projections + d))) time, and about 60 log2(S / 512)
    bytes per key of a head when causal, else 120.

    Parameters
    ----------
    k : int, default 256
        Keys per query, at least 1.
    visit : int, optional
        Keys that each composite index visits per query, at least `k`; default ``max(8 * k, 1024)``. From S on the keys are
        those with the largest scores of all (`TopK` is faster then).

    References
    ----------
    .. [1] arXiv 2405.02842.
    .. [2] arXiv 1703.00440.
    """

    k: int = 256
    visit: int | None = None
    name: ClassVar[str] = "pdci"
    _is_seeded: ClassVar[bool] = True

    def __post_init__(self):
        self._set_integers("k")
        if self.visit is None:
            object.__setattr__(self, "visit", max(8 * self.k, 1024))
        self._set_integers("visit")
        if self.visit < self.k:
            raise ValueError(f"visit must be at least k={self.k}, got {self.visit}")
