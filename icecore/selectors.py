"""Other methods of choosing keys, for comparisons: what ``selector=`` of `icecore.attention` takes.

Each is a frozen dataclass of its own parameters; its `name` stands for it with its defaults:
``attention(q, k, v, selector="pages")`` is ``attention(q, k, v, selector=icecore.selectors.Pages())``. What a selector does not
choose is dropped unless it says otherwise. A sliding window with attention sinks (StreamingLLM, arXiv 2309.17453; MInference's
A-shape) is ``attention(q, k, v, causal=True, window=1024, sinks=4)``, without a selector.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, fields
from typing import ClassVar

from icecore import _native
from icecore._arrays import integer

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

    def _set_shares(self, **shares):
        """Check that these parameters are above 0 and below 1, and keep them as floats."""
        for name, number in shares.items():
            if isinstance(number, bool) or not isinstance(number, numbers.Real):
                raise TypeError(f"{name} must be a number, got {type(number).__name__}")
            if not 0 < number < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {number}")
            object.__setattr__(self, name, float(number))


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
        self._set(k=self.k, page=self.page)

    def _attend(self, problem, seed, near_count):
        _native.attend_arkvale(problem, self.k, self.page, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.arkvale_attention(query, key, value, k=self.k, page=self.page, **options)


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

    def __post_init__(self):
        self._set_shares(retrieval=self.retrieval, estimation=self.estimation)
        if self.retrieval + self.estimation > 1:
            raise ValueError(f"retrieval + estimation must be at most 1, got {self.retrieval} + {self.estimation}")
        self._set(segment=self.segment)
        for name in ("sinks", "local"):
            object.__setattr__(self, name, integer(getattr(self, name), name, 0))

    def _takes_all(self, keys):
        return self.sinks + self.segment + self.local > keys

    def _attend(self, problem, seed, near_count):
        own = self.segment, self.sinks, self.local, self.retrieval, self.estimation
        _native.attend_retroinfer(problem, *own, seed, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return reference.retroinfer_attention(query, key, value, seed=seed, **own, **options)


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

    def __post_init__(self):
        self._set(stride=self.stride)
        if self.stride not in (4, 8, 16):
            raise ValueError(f"stride must be 4, 8 or 16, got {self.stride}")
        self._set_shares(threshold=self.threshold)

    def _check(self, causal):
        if not causal:
            raise ValueError("selector='xattention' needs causal=True")

    def _takes_all(self, keys):
        return keys < 256  # the first block is always chosen, and what is behind the blocks

    def _attend(self, problem, seed, near_count):
        _native.attend_xattention(problem, self.stride, self.threshold, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.xattention_attention(query, key, value, stride=self.stride, threshold=self.threshold, **options)


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

    def __post_init__(self):
        self._set(k=self.k)

    def _attend(self, problem, seed, near_count):
        _native.attend_zeta(problem, self.k, seed, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        return reference.zeta_attention(query, key, value, k=self.k, seed=seed, **options)


@dataclass(frozen=True)
class VAttention(Selector):
    """vAttention [1]_: the largest scores, and a sample of the rest whose size keeps a promise.

    A query attends to the first `sinks` keys, to the last `window` ones that it sees, to the `k` of those between with the
    largest scores, and to a uniform sample without replacement of the n others. Each of b sampled keys has log(n / b) added to
    its score, so that the sum of weights, the softmax's denominator, is unbiased. The promise is of this sum: with probability
    1 - `delta` it is within the share `epsilon` of what it is over all keys. For that ``b = (z n s / (epsilon D))^2``: z is the
    normal deviate that is exceeded to both sides with probability `delta`; s is the standard deviation of the samples' weights
    and D the sum, both estimated from the first ``max(n / 40, 32)`` of the sample. It holds by the central limit theorem, as
    far as these have seen what the rest holds. The sample depends on the seed of the call, the query's position and its head.

    The published method takes the largest scores from an index that finds them approximately; here all scores are computed, as
    by `TopK`. It also has a sample size for the numerator, the weighted sum of values, of which no promise is made here; and
    what it gives as shares of the keys are numbers of keys here. O(L S d) time; 13 bytes per key and 400 `k` bytes per thread.

    Parameters
    ----------
    k : int, default 256
        Keys with the largest scores, at least 1; of equal scores the first keys.
    sinks, window : int, default 128
        At least 0.
    epsilon, delta : float, default 0.05
        Above 0 and below 1.

    References
    ----------
    .. [1] arXiv 2510.05688.
    """

    k: int = 256
    sinks: int = 128
    window: int = 128
    epsilon: float = 0.05
    delta: float = 0.05
    name: ClassVar[str] = "vattention"

    def __post_init__(self):
        self._set(k=self.k)
        for name in ("sinks", "window"):
            object.__setattr__(self, name, integer(getattr(self, name), name, 0))
        self._set_shares(epsilon=self.epsilon, delta=self.delta)

    def _takes_all(self, keys):
        return self.k + self.sinks + self.window >= keys

    def _attend(self, problem, seed, near_count):
        _native.attend_vattention(problem, self.k, self.sinks, self.window, self.epsilon, self.delta, seed, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        own = {"k": self.k, "sinks": self.sinks, "window": self.window, "epsilon": self.epsilon, "delta": self.delta}
        return reference.vattention_attention(query, key, value, seed=seed, **own, **options)


_CLASSES = {
    each.name: each
    for each in (TopK, MInference, BlockSparse, XAttention, Pages, ArkVale, PDCI, SparQ, MagicPIG, RetroInfer, VAttention, Zeta)
}


def check_selector(selector, causal, **others):
    """`selector`, or the one of that name, alone and fit for the call."""
    if isinstance(selector, str) and selector in _CLASSES:
        selector = _CLASSES[selector]()
    if not isinstance(selector, Selector):
        names = ", ".join(_CLASSES)
        raise ValueError(f"selector must be one of {names} or made by a class of icecore.selectors, got {selector!r}")
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"selector={selector.name!r} takes no {', '.join(given)}; parameters of its own are those of"
                         f" icecore.selectors.{type(selector).__name__}")
    selector._check(causal)
    return selector
