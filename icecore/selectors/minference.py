"""MInference's two patterns for single heads: vertical and slash lines, and blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class MInference(Selector):
    """MInference [1]_: vertical and slash lines, for causal prefill.

    The weights of a head's last 64 queries vote for columns (keys) and diagonals (distances from query to key). Each query
    attends to the columns with the most votes; and the 48 queries of a block (a panel of the core, in place of 64), to what the
    diagonals with the most come to for any of them. The first 30 columns and 100 diagonals are always among these: attention
    sinks and near keys. The rows of a prompt depend on its end by the votes. Of the three published patterns this is the
    vertical-slash one; `BlockSparse` is another. Besides the keys attended to, O(64 S d) time per query head and 28 bytes per
    key and thread.

    Parameters
    ----------
    vertical : int, default 500
        Columns, at least 1.
    slash : int, default 700
        Diagonals, at least 1.

    References
    ----------
    .. [1] arXiv 2407.02490.
    """

    vertical: int = 500
    slash: int = 700
    name: ClassVar[str] = "minference"
    _needs_causal: ClassVar[bool] = True

    def __post_init__(self):
        self._set_integers("vertical", "slash")

    def _takes_all(self, keys):
        return self.vertical >= keys or self.slash >= keys


@dataclass(frozen=True)
class BlockSparse(Selector):
    """MInference's block-sparse pattern [1]_: blocks of 64 keys by the score of their mean with the mean query.

    The 48 queries of a block (a panel of the core, in place of 64) attend together to the blocks with the largest scores, of
    those that all of them see whole, until these hold `k` keys, and each to what it sees of the keys behind these. Besides the
    keys attended to, O(L S d / 3000) time and d / 16 bytes per key of a head.

    Parameters
    ----------
    k : int, default 1024
        Keys per query, at least 1; whole blocks are opened.

    References
    ----------
    .. [1] arXiv 2407.02490.
    """

    k: int = 1024
    name: ClassVar[str] = "block_sparse"

    def __post_init__(self):
        self._set_integers("k")
