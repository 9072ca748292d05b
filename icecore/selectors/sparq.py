"""SparQ: keys by approximate scores, and one mean for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class SparQ(Selector):
    """SparQ [1]_: the keys with the largest approximate scores, and the mean of all values for the rest.

    Approximate scores come from the largest components of a query. Their softmax says which share of the output is the mean of
    the values that the query sees; the chosen keys, exactly attended to, have the others. The paper is about decoding: it keeps
    keys in two layouts, so that only the components needed are read, and a running mean; here keys are read whole and means are
    made in the call, for any number of queries. In the paper the query heads of a key head choose their components and keys
    together, here each by itself. No training is needed.

    O(L S components + S d) time besides the keys attended to; d / 16 bytes per key of a head and 400 `k` bytes per thread.

    Parameters
    ----------
    k : int, default 128
        Keys per query, at least 1; of equal scores the first keys.
    components : int, default 16
        Of a query, at least 1; all of them make the scores exact.
    local : int, default 32
        Last keys that are always among the `k`, 0 to `k`.

    References
    ----------
    .. [1] arXiv 2312.04985.
    """

    k: int = 128
    components: int = 16
    local: int = 32
    name: ClassVar[str] = "sparq"

    def __post_init__(self):
        self._set_integers("k", "components")
        self._set_integers("local", minimum=0)
        if self.local > self.k:
            raise ValueError(f"local must be at most k={self.k}, got {self.local}")
