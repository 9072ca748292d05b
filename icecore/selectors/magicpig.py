"""MagicPIG: keys sampled by collisions of hashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class MagicPIG(Selector):
    """MagicPIG [1]_: keys sampled by collisions of hashes, each weighted by 1 / its probability.

    The code of a vector in a table is the signs of its projections on random directions. A query attends to the keys that have
    its code in at least two tables, with -log w added to their scores, w being the probability of that: numerator and
    denominator of the softmax are right on average over seeds. Keys are hashed less the mean of all, with causal=True less the
    mean of the blocks of 64 keys before their own. The first keys and the last ones are exact.

    The paper is about decoding, with tables that are made once per prompt and kept by the CPU while a GPU does the rest, and
    leaves two layers exact; here tables are made in the call, for any number of queries, and every layer is alike. No training
    is needed. The seed is that of `icecore.attention`.

    O((L + S) tables bits d) time for the codes, and what buckets and sampled keys come to; 4 `tables` bytes per key of a head,
    and 4 `tables` (2^bits + `bits` d) per head.

    Parameters
    ----------
    bits : int, default 10
        Directions per table, 1 to 16: more bits, fewer keys.
    tables : int, default 150
        From 2 to 4096: more tables, more keys.
    sinks : int, default 4
        First keys, at least 0.
    local : int, default 64
        Last keys, at least 1.

    References
    ----------
    .. [1] arXiv 2410.16179.
    """

    bits: int = 10
    tables: int = 150
    sinks: int = 4
    local: int = 64
    name: ClassVar[str] = "magicpig"
    _is_seeded: ClassVar[bool] = True

    def __post_init__(self):
        self._set_integers("bits", maximum=16)
        self._set_integers("tables", minimum=2, maximum=4096)
        self._set_integers("sinks", minimum=0)
        self._set_integers("local")

    def _takes_all(self, keys):
        return self.sinks + self.local >= keys
