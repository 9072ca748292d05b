"""Pages of keys by the largest score in a box about them: Quest and ArkVale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class Pages(Selector):
    """Quest [1]_: pages of 16 keys by the largest scores that they could hold, from componentwise maxima and minima.

    A query attends to the pages with the largest bounds until they hold `k` keys, equal bounds together, and to the page that
    it sees a part of.

    Parameters
    ----------
    k : int, default 256
        Keys per query, at least 1; whole pages are opened.

    References
    ----------
    .. [1] arXiv 2406.10774.
    """

    k: int = 256
    name: ClassVar[str] = "pages"

    def __post_init__(self):
        self._set_integers("k")


@dataclass(frozen=True)
class ArkVale(Selector):
    """ArkVale [1]_: pages of keys by the largest scores in boxes that reach as far as their keys do on average.

    As `Pages`, but a page's box has half the width, in each component, of the mean distance of the keys from its centre: what
    its keys score, where Quest's box bounds what one could. The first two pages, where attention sinks are, and the newest that
    a query sees whole are always among those that hold the `k` keys; to the page that it sees a part of it attends besides.

    The paper is about decoding, in which a GPU holds some of the pages and recalls others from the CPU's memory, where all
    of them lie here. It leaves the first two layers exact; here every layer is alike.

    Parameters
    ----------
    k : int, default 1280
        Keys per query, at least 1; whole pages are opened.
    page : int, default 32
        Keys per page, at least 1. The paper has 16, too.

    References
    ----------
    .. [1] R. Chen et al., ArkVale: Efficient Generative LLM Inference with Recallable Key-Value Eviction, NeurIPS 2024.
    """

    k: int = 1280
    page: int = 32
    name: ClassVar[str] = "arkvale"

    def __post_init__(self):
        self._set_integers("k", "page")
