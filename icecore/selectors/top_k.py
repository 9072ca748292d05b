"""Exact top-k attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class TopK(Selector):
    """Exact top-k attention: of all keys those with the largest scores.

    The ceiling of every method that keeps `k` keys and drops the rest. All scores are computed: O(L S d) time.

    Parameters
    ----------
    k : int, default 256
        Keys per query, at least 1; of equal scores the first keys.
    """

    k: int = 256
    name: ClassVar[str] = "top_k"

    def __post_init__(self):
        self._set_integers("k")
