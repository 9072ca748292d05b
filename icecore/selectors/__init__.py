"""Other methods of choosing keys, for comparisons: what ``selector=`` of `icecore.attention` takes.

Each is a frozen dataclass of its own parameters; its `name` stands for it with its defaults:
``attention(q, k, v, selector="pages")`` is ``attention(q, k, v, selector=icecore.selectors.Pages())``. What a selector does not
choose is dropped unless it says otherwise. A sliding window with attention sinks (StreamingLLM, arXiv 2309.17453; MInference's
A-shape) is ``attention(q, k, v, causal=True, window=1024, sinks=4)``, without a selector.
"""

from .magicpig import MagicPIG
from .minference import BlockSparse, MInference
from .pages import ArkVale, Pages
from .pdci import PDCI
from .retroinfer import RetroInfer
from .selector import Selector
from .sparq import SparQ
from .top_k import TopK
from .vattention import VAttention
from .xattention import XAttention
from .zeta import Zeta

__all__ = [
    "PDCI",
    "ArkVale",
    "BlockSparse",
    "MInference",
    "MagicPIG",
    "Pages",
    "RetroInfer",
    "SparQ",
    "TopK",
    "VAttention",
    "XAttention",
    "Zeta",
]

_BY_NAME = {
    each.name: each
    for each in (TopK, MInference, BlockSparse, XAttention, Pages, ArkVale, PDCI, SparQ, MagicPIG, RetroInfer, VAttention, Zeta)
}


def check_selector(selector, causal, **others):
    """`selector`, or the one of that name, alone and fit for the call."""
    if isinstance(selector, str) and selector in _BY_NAME:
        selector = _BY_NAME[selector]()
    if not isinstance(selector, Selector):
        names = ", ".join(_BY_NAME)
        raise ValueError(f"selector must be one of {names} or made by a class of icecore.selectors, got {selector!r}")
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"selector={selector.name!r} takes no {', '.join(given)}; parameters of its own are those of"
                         f" icecore.selectors.{type(selector).__name__}")
    selector._check(causal)
    return selector
