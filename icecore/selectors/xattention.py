"""XAttention: blocks of keys by antidiagonals of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class XAttention(Selector):
    """XAttention [1]_: blocks of 128 keys by antidiagonals of scores until they hold a share of the mass, for causal prefill.

    A group of `stride` queries scores a group of as many keys by the mean score on the antidiagonal of their square, of the
    pairs that are visible; a softmax over all groups of keys gives their weights. The 48 queries of a block (a panel of the
    core, in place of 128) attend together to the blocks of keys with the most weight until these hold `threshold` of it. The
    first block, where attention sinks are, and the newest keys, of which some of the queries see a part, are always among them
    and count; the queries of a block thus depend on one another, never on a later block. Queries of which a score is not a
    number attend to all keys.

    The published method also finds a threshold for each head by dynamic programming on samples; here one serves all heads.
    Besides the keys attended to, O(L S d / stride) time, and 192 / stride^2 bytes per key and thread.

    Parameters
    ----------
    stride : int, default 8
        4, 8 or 16.
    threshold : float, default 0.9
        Share of the mass, above 0 and below 1.

    References
    ----------
    .. [1] arXiv 2503.16428.
    """

    stride: int = 8
    threshold: float = 0.9
    name: ClassVar[str] = "xattention"
    _needs_causal: ClassVar[bool] = True

    def __post_init__(self):
        self._set_integers("stride")
        if self.stride not in (4, 8, 16):
            raise ValueError(f"stride must be 4, 8 or 16, got {self.stride}")
        self._set_shares("threshold")

    def _takes_all(self, keys):
        return keys < 256  # the first block is always chosen, and what is behind the blocks
