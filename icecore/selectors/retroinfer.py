"""RetroInfer: clusters of keys in three zones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class RetroInfer(Selector):
    """RetroInfer [1]_: clusters of keys in three zones, attended to exactly, by their means, and not at all.

    The keys behind the sinks are cut in segments, and the keys of each, less their mean, in clusters of 16 on average, by
    spherical k-means in ten iterations that begin at random keys (`seed` of the call). A query ranks clusters by the score of
    their centroid, the mean key. The best are attended to key by key (the retrieval zone); the next ones stand as all their
    keys at the centroid, with the mean value (the estimation zone); the rest is dropped. Sinks and the last keys are exact (the
    steady zone). Equal scores are in one zone.

    The paper is about decoding behind an exact prefill: it clusters the prompt in segments of 8192 keys, and the tokens that
    follow in segments of 1024, which are exact until there are so many. Here segments have one length, from the first key on,
    and a query sees the clusters of those that end before its local window; keys behind them are exact. No row depends on a
    later key, and prefill gives what decoding would. In the paper the query heads of a key head choose their clusters together,
    here each by itself; every layer is alike. The ancestor, RetrievalAttention [2]_, finds keys by a graph instead.

    O(S segment d) time for the clusters, O(L S d / 16) for their scores, besides the keys attended to: `segment` / 2 + `local`
    per query, and the retrieval zone; (d + dv) / 4 bytes per key of a head and 24 per key and thread.

    Parameters
    ----------
    retrieval : float, default 0.018
        Share of the clusters that are attended to exactly, rounded up.
    estimation : float, default 0.232
        Share of those that are estimated. Both are above 0, and at most 1 together.
    segment : int, default 1024
        Keys that are clustered together, at least 1.
    sinks : int, default 4
        First keys, at least 0.
    local : int, default 64
        Last keys, at least 0.

    References
    ----------
    .. [1] arXiv 2505.02922.
    .. [2] arXiv 2409.10516.
    """

    retrieval: float = 0.018
    estimation: float = 0.232
    segment: int = 1024
    sinks: int = 4
    local: int = 64
    name: ClassVar[str] = "retroinfer"
    _is_seeded: ClassVar[bool] = True

    def __post_init__(self):
        self._set_shares("retrieval", "estimation")
        if self.retrieval + self.estimation > 1:
            raise ValueError(f"retrieval + estimation must be at most 1, got {self.retrieval} + {self.estimation}")
        self._set_integers("segment")
        self._set_integers("sinks", "local", minimum=0)

    def _takes_all(self, keys):
        return self.sinks + self.segment + self.local > keys
