"""ZETA: the keys next to a query on a Z-order curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class Zeta(Selector):
    """ZETA [1]_: the keys next to a query on a Z-order curve through three dimensions, without training.

    Keys and queries, at length 1, are projected to three dimensions; the interleaved bits of their coordinates (10 each) are
    places on the curve (Morton codes). Keys are sorted once, and a query attends to the `k` keys next to its place among those
    that it sees, half of them on either side.

    The published method is trained, and this is not it: its projections are learned with the model, which here are three random
    directions (`seed` of the call); its weights are a Cauchy kernel of the distance in three dimensions, which has meaning only
    with such a projection, and are a softmax here; it adds the mean of all earlier tokens, which is left out; and it searches
    whole chunks before the query's own, where here all visible keys take part. On a model that was not trained for it the error
    is large. Besides the keys attended to, O(S (d + log S) + L S / 48) time, the latter in steps of a comparison, and 8 bytes
    per key of a head and 8 per key and thread.

    Parameters
    ----------
    k : int, default 256
        Keys per query, at least 1.

    References
    ----------
    .. [1] arXiv 2501.14577.
    """

    k: int = 256
    name: ClassVar[str] = "zeta"
    _is_seeded: ClassVar[bool] = True

    def __post_init__(self):
        self._set_integers("k")
