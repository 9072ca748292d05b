"""Other methods of choosing keys, for comparisons: what ``selector=`` of `icecore.attention` takes.

Each is a frozen dataclass of its own parameters; its `name` stands for it with its defaults:
``attention(q, k, v, selector="pages")`` is ``attention(q, k, v, selector=icecore.selectors.Pages())``. What a selector does not
choose is dropped unless it says otherwise. A sliding window with attention sinks (StreamingLLM, arXiv 2309.17453; MInference's
A-shape) is ``attention(q, k, v, causal=True, window=1024, sinks=4)``, without a selector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from icecore import _native
from icecore._arrays import integer

__all__ = ["PDCI", "BlockSparse", "MInference", "MagicPIG", "Pages", "SparQ", "TopK"]


@dataclass(frozen=True)
class Selector:
    """A method of choosing keys: its parameters, checked, with its call of the core and its oracle."""

    name: ClassVar[str]

    def _check(self, causal):
        """ValueError where it cannot attend so."""

    def _takes_all(self, keys):
        """Whether it would choose all of so many keys, so that attention is exact."""
        return self.k >= keys

    def _set(self, **integers):
        """Check that these parameters are integers of at least 1, and keep them as such."""
        for name, number in integers.items():
            object.__setattr__(self, name, integer(number, name, 1))


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
        self._set(k=self.k)

    def _attend(self, problem, seed, near_count):
        _native.attend_top_k(problem, self.k, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.top_k_attention(query, key, value, k=self.k, **options)


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

    def __post_init__(self):
        self._set(vertical=self.vertical, slash=self.slash)

    def _check(self, causal):
        if not causal:
            raise ValueError("selector='minference' needs causal=True")

    def _takes_all(self, keys):
        return self.vertical >= keys or self.slash >= keys

    def _attend(self, problem, seed, near_count):
        _native.attend_minference(problem, self.vertical, self.slash, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.minference_attention(query, key, value, vertical=self.vertical, slash=self.slash, **options)


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
        self._set(k=self.k)

    def _attend(self, problem, seed, near_count):
        _native.attend_block_sparse(problem, self.k, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.block_sparse_attention(query, key, value, k=self.k, **options)


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
        self._set(k=self.k)

    def _attend(self, problem, seed, near_count):
        _native.attend_pages(problem, self.k, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.pages_attention(query, key, value, k=self.k, **options)


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

    def __post_init__(self):
        self._set(k=self.k)
        self._set(visit=max(8 * self.k, 1024) if self.visit is None else self.visit)
        if self.visit < self.k:
            raise ValueError(f"visit must be at least k={self.k}, got {self.visit}")

    def _attend(self, problem, seed, near_count):
        _native.attend_pdci(problem, self.k, self.visit, seed, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.pdci_attention(query, key, value, k=self.k, visit=self.visit, seed=seed, **options)


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
        self._set(k=self.k, components=self.components)
        object.__setattr__(self, "local", integer(self.local, "local", 0))
        if self.local > self.k:
            raise ValueError(f"local must be at most k={self.k}, got {self.local}")

    def _attend(self, problem, seed, near_count):
        _native.attend_sparq(problem, self.k, self.components, self.local, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.sparq_attention(query, key, value, k=self.k, components=self.components, local=self.local, **options)


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

    def __post_init__(self):
        for name, least, most in (("bits", 1, 16), ("tables", 2, 4096), ("sinks", 0, None), ("local", 1, None)):
            object.__setattr__(self, name, integer(getattr(self, name), name, least))
            if most is not None and getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)}")

    def _takes_all(self, keys):
        return self.sinks + self.local >= keys

    def _attend(self, problem, seed, near_count):
        _native.attend_magicpig(problem, self.bits, self.tables, self.sinks, self.local, seed, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        options |= {"bits": self.bits, "tables": self.tables, "sinks": self.sinks, "local": self.local, "seed": seed}
        return reference.magicpig_attention(query, key, value, **options)


_CLASSES = {each.name: each for each in (TopK, MInference, BlockSparse, Pages, PDCI, SparQ, MagicPIG)}


def check_selector(selector, causal, **others):
    """`selector`, or the one of that name, alone and fit for the call."""
    if isinstance(selector, str) and selector in _CLASSES:
        selector = _CLASSES[selector]()
    if not isinstance(selector, Selector):
        names = ", ".join(_CLASSES)
        raise ValueError(f"selector must be one of {names} or made by a class of icecore.selectors, got {selector!r}")
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"selector={selector.name!r} takes no {', '.join(given)}")
    selector._check(causal)
    return selector
