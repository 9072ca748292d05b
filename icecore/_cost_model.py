"""What a call's paths (exact, rounded, near/far) will cost on this machine, so that it can take the fastest.

What a call has to do is counted (`Work`) and priced by a `CostModel`: the one that ``python -m icecore tune`` measured on this
machine, or the one shipped for the instruction set.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from dataclasses import dataclass, fields, replace

import numpy as np

from icecore import _native, _tuning_file
from icecore._schedule import near_far_steps

#: Near/far is taken when it is expected to be faster by this factor: nobody knows before how many keys will be near.
MARGIN = 1.1
#: Of the other path's time: what a call may spend on sealing and measuring to find that a tolerance needs that.
TRIAL = 0.16
#: About so many rows of a key head are attended twice to find what rounding does, and so many queries at least
#: (csrc/attention/rounded.c).
SAMPLED_ROWS, MIN_SAMPLED = 48, 8


@dataclass(frozen=True)
class Work:
    """What a call has to do, counted over all heads.

    Attributes
    ----------
    width, dim : int
        Multiply-adds of one query with one key and its value, d + d_v, and of a distance, d.
    heads, threads : int
        Key heads, which share sealing out, and threads.
    causal : bool
        Sealing then goes on beside attending, else before it.
    bfloat16, stored_bfloat16, thirds : bool
        Whether exact attention gets bfloat16, whether near/far attention multiplies it, and whether exact attention multiplies
        float32 in three parts of it (matrix tiles).
    counted : bool
        Whether k says how many keys are near, not a tolerance.
    queries : float
        Rows of all query heads.
    pairs : float
        Visible (query, key) pairs: the work of exact attention.
    window_pairs : float
        Those of them that near/far sums in sinks and window.
    nodes : float
        Scored (query, cell or parent) pairs.
    near_pairs : float
        Pairs of a query and a key of a cell that it opens. With a tolerance 0: what it needs is measured in the call.
    sealed_pairs : float
        Pairs of a query and a key of a cell.
    measured_pairs : float
        With a tolerance: pairs of a sampled query and a key of a cell.
    sampled_pairs : float
        Pairs of a query that the rounded path samples and a key.
    distances : float
        (key, mean) distances of sealing.
    sealed_rows : float
        Keys sealed, each as often as it is.
    """

    width: int
    dim: int
    heads: int
    threads: int
    causal: bool
    bfloat16: bool
    stored_bfloat16: bool
    thirds: bool
    counted: bool
    queries: float
    pairs: float
    window_pairs: float
    nodes: float
    near_pairs: float
    sealed_pairs: float
    measured_pairs: float
    sampled_pairs: float
    distances: float
    sealed_rows: float


@dataclass(frozen=True)
class CostModel:
    """Nanoseconds of one thread.

    Attributes
    ----------
    product_float32, product_bfloat16, product_thirds : float
        A multiply-add of the panel kernels, with inputs of that type (widened where the machine has no bfloat16); of float32 in
        three parts, where exact attention multiplies it so (of sets that do not, as float32).
    weight : float
        A softmax weight, whatever the widths.
    query : float
        A component of a query and of its output: laid out in a panel, written, merged.
    rounded : float
        The same, on top, where near/far multiplies bfloat16: the query's rounding, and its share in that of keys and values.
    node : float
        A scored cell or parent, besides its products and its weight: its risk.
    choice : float
        The same, on top, where k is given: finding the risk above which cells hold k keys.
    near_float32, near_bfloat16 : float
        A multiply-add with a near key, which only some queries of a panel share; by the type of storage.
    measured : float
        A multiply-add of a sampled row with a key of a cell: exact, and again for the error of every threshold.
    distance : float
        A multiply-add of a key's distance to a mean.
    sealed, sealed_row : float
        A component of a sealed key or value, and a whole one: sorted, copied, averaged.
    """

    product_float32: float
    product_bfloat16: float
    product_thirds: float
    weight: float
    query: float
    rounded: float
    node: float
    choice: float
    near_float32: float
    near_bfloat16: float
    measured: float
    distance: float
    sealed: float
    sealed_row: float

    def __post_init__(self):
        for name in COEFFICIENTS:
            cost = getattr(self, name)
            if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < math.inf:
                raise ValueError(f"{name} must be a finite number, at least 0, got {cost!r}")

    def _pair(self, work):
        """Of a query and a key of exact attention."""
        product = self.product_thirds if work.thirds else self.product_float32
        return work.width * (self.product_bfloat16 if work.bfloat16 else product) + self.weight

    def exact_seconds(self, work):
        """``pairs (width product + weight) + queries width query``, shared by the threads."""
        scored = work.pairs * self._pair(work)
        return 1e-9 * (scored + work.queries * work.width * self.query) / work.threads

    def sealing_seconds(self, work):
        """``distances dim distance + sealed_rows (width sealed + sealed_row)``, of all threads together."""
        rows = work.sealed_rows * (work.width * self.sealed + self.sealed_row)
        return 1e-9 * (work.distances * work.dim * self.distance + rows)

    def attending_seconds(self, work):
        """``(window_pairs + nodes) (width product + weight) + nodes node + near_pairs width near + queries width query``.

        Of all threads together; `node` with `choice` where k is given, `query` with `rounded` where bfloat16 is multiplied.
        """
        if work.stored_bfloat16:
            product, near, query = self.product_bfloat16, self.near_bfloat16, self.query + self.rounded
        else:
            product, near, query = self.product_float32, self.near_float32, self.query
        node = self.node + self.choice if work.counted else self.node
        scored = (work.window_pairs + work.nodes) * (work.width * product + self.weight) + work.nodes * node
        return 1e-9 * (scored + work.width * (work.near_pairs * near + work.queries * query))

    def measuring_seconds(self, work):
        """``measured_pairs width measured``, of all threads together."""
        return 1e-9 * work.measured_pairs * work.width * self.measured

    def near_far_seconds(self, work):
        """Sealing, with measuring, and attending, shared by the threads; of sealing, at most one thread does a key head's at a
        time.

        Causal, with a tolerance: no more than it takes if all heads turn out to be exact on rounded numbers.
        """
        sealing = self.sealing_seconds(work) + self.measuring_seconds(work)
        attending = self.attending_seconds(work)
        alone = sealing / min(work.threads, work.heads)
        if not work.causal:
            return alone + attending / work.threads
        seconds = max((sealing + attending) / work.threads, alone)
        if work.counted or not work.stored_bfloat16 or work.bfloat16:
            return seconds
        return min(seconds, self.rounded_seconds(work) + self.trial_seconds(work))

    def rounded_seconds(self, work):
        """Exact attention on rounded numbers, after sampled rows have shown what rounding does."""
        rounding = work.queries * work.width * self.rounded
        sampled = work.sampled_pairs * (work.width * (self.product_float32 + self.product_bfloat16) + 2 * self.weight)
        return self.exact_seconds(replace(work, bfloat16=True)) + 1e-9 * (rounding + sampled) / work.threads

    def trial_seconds(self, work):
        """What a call loses whose tolerance turns out to need exact attention: sealing, measuring, and that its heads are not
        multiplied in thirds.

        Causal: heads that are exact seal anew only where the keys have doubled, which is about a third of all sealing.
        """
        sealing, measuring = self.sealing_seconds(work), self.measuring_seconds(work)
        slower = 0.0
        if work.thirds and not work.stored_bfloat16:
            slower = self.exact_seconds(replace(work, thirds=False)) - self.exact_seconds(work)
        if work.causal:
            return (sealing / 3 + measuring) / work.threads + slower
        return (sealing + measuring) / min(work.threads, work.heads) + slower

    def prices(self, work):
        """What a near key, a scored cell or parent, and a key of exact attention on rounded numbers cost in keys of an exact
        head: keyword arguments of the core."""
        exact = self._pair(replace(work, thirds=False))
        near, product = self.near_float32, self.product_float32
        if work.stored_bfloat16:
            near, product = self.near_bfloat16, self.product_bfloat16
        mean = work.width * product + self.weight
        return {
            "near_price": work.width * near / exact,
            "node_price": (mean + self.node) / exact,
            "rounded_price": mean / exact,
        }

    def predict(self, work):
        """{"exact": seconds, "near_far": seconds}; with a tolerance, where numbers can be rounded, "rounded" as well."""
        seconds = {"exact": self.exact_seconds(work), "near_far": self.near_far_seconds(work)}
        if work.stored_bfloat16 and not (work.bfloat16 or work.counted):
            seconds["rounded"] = self.rounded_seconds(work)
        return seconds


COEFFICIENTS = tuple(field.name for field in fields(CostModel))


def choose(work, model):
    """The path to take: "exact", "rounded" or "near_far". Where no key is far near/far could gain by rounding alone.

    By what all threads do together, so that the same inputs take the same path whatever their number.
    With a tolerance, near/far is predicted at its cheapest: it is tried where finding out that it is not costs little, or where
    it may gain more by the ratio than a trial may lose.
    """
    work = replace(work, threads=1)
    predicted = model.predict(work)
    exact, near_far, rounded = (predicted.get(path, math.inf) for path in ("exact", "near_far", "rounded"))
    other = "rounded" if MARGIN * rounded < exact else "exact"
    best = predicted[other]
    if work.sealed_pairs == 0 or not MARGIN * near_far < best:
        return other
    if work.counted:
        return "near_far"
    trial = model.trial_seconds(work)
    pays = trial <= TRIAL * best or (other == "rounded" and near_far * (best + trial) < best * best)
    return "near_far" if pays else other


# What a call has to do ---------------------------------------------------------------------------------------


def expected_near_keys(sealed, k, cell_size):
    """Near keys of a query that sees so many sealed keys: k and most of a cell."""
    return np.minimum(k + 0.9 * cell_size, sealed)


def expected_nodes(sealed, k, tolerance, cell_size):
    """Parents, and the cells of those that some query of the same panel expands.

    A query expands 16 k keys and at least 2048 (csrc/select/tree.c); those of a panel differ. With a tolerance: parents alone.
    """
    sealed = np.maximum(sealed, 1e-9)  # no division by 0
    cells = 0.0 if tolerance is not None else 1 - np.exp(-4 * max(16 * k, 2048) / sealed)
    return sealed / cell_size * (1 / 16 + cells)


def multiplied(dim, value_dim, rows, *, bfloat16, rounding):
    """As what numbers of these widths are multiplied, with so many query rows of a key head, as fields of `Work`: near/far
    attention multiplies bfloat16 that is given as such or rounded, where the machine can."""
    return {
        "bfloat16": bfloat16,
        "stored_bfloat16": (bfloat16 or rounding) and _native.multiplies_bfloat16(dim, value_dim),
        "thirds": not bfloat16 and _native.multiplies_in_thirds(dim, value_dim, rows),
    }


@functools.lru_cache(maxsize=1024)  # the layers of a model ask for the same
def count_work(shape, key_heads, *, causal, bfloat16, stored_bfloat16, thirds, k, tolerance, window, sinks, cell_size, threads):
    """The `Work` of one call, with the near keys and nodes to be expected.

    `shape` is (batch, query_heads, queries, dim, keys, value_dim), keys > 0; `window` is used where causal.
    """
    batch, query_heads, queries, dim, keys, value_dim = shape
    heads, group = batch * key_heads, query_heads // key_heads
    steps = near_far_steps(queries, keys, causal=causal, window=window, sinks=sinks, group=group, cell_size=cell_size,
                           tolerance=tolerance)
    rows, sealed = steps.queries * float(group * heads), np.where(steps.is_exact, 0.0, steps.sealed_keys)
    pairs = float(group * heads) * float(steps.pairs.sum())
    return Work(
        width=dim + value_dim,
        dim=dim,
        heads=heads,
        threads=threads,
        causal=causal,
        bfloat16=bfloat16,
        stored_bfloat16=stored_bfloat16,
        thirds=thirds,
        counted=tolerance is None,
        queries=float(queries * group * heads),
        pairs=pairs,
        window_pairs=pairs - float(rows @ sealed),
        nodes=float(rows @ expected_nodes(sealed, k, tolerance, cell_size)),
        near_pairs=0.0 if tolerance is not None else float(rows @ expected_near_keys(sealed, k, cell_size)),
        sealed_pairs=float(rows @ sealed),
        measured_pairs=heads * float(steps.sealed_keys @ steps.measured_rows),
        sampled_pairs=pairs / max(queries, 1) * min(max(SAMPLED_ROWS // group, MIN_SAMPLED), queries),
        distances=heads * float(steps.distances.sum()),
        sealed_rows=heads * float(steps.built_keys.sum()),
    )


# The model in force ------------------------------------------------------------------------------------------

#: By ``python -m icecore tune``: amx on two cores of a Xeon, avx2 on two of an AMD EPYC, Zen 3, the others on two of a Zen 5.
#: Guessed: neon, with multiply-adds at twice what Zen 5 takes with avx2; and `measured` of all but amx, which is 2.4 to 2.9
#: times what a near key takes, as the same sets had it on the Xeon.
SHIPPED = {
    "scalar": CostModel(
        product_float32=0.11, product_bfloat16=0.109, product_thirds=0.11, weight=2.39, query=0,
        rounded=0, node=4.03, choice=14.9, near_float32=0.195, near_bfloat16=0,
        measured=0.49, distance=0.179, sealed=1.34, sealed_row=141,
    ),
    "avx2": CostModel(
        product_float32=0.0233, product_bfloat16=0.0299, product_thirds=0.0233, weight=0.816, query=3.89,
        rounded=0, node=1.56, choice=6.38, near_float32=0.0613, near_bfloat16=0,
        measured=0.149, distance=0, sealed=7.97, sealed_row=486,
    ),
    "avx512": CostModel(
        product_float32=0.00881, product_bfloat16=0.00911, product_thirds=0.00881, weight=0.112, query=1.57,
        rounded=0, node=1.29, choice=1.08, near_float32=0.0177, near_bfloat16=0,
        measured=0.0469, distance=0.0204, sealed=1.27, sealed_row=64.1,
    ),
    "avx512_bf16": CostModel(
        product_float32=0.00903, product_bfloat16=0.00519, product_thirds=0.00903, weight=0.115, query=0.765,
        rounded=1.05, node=1.38, choice=0.803, near_float32=0.0144, near_bfloat16=0.0133,
        measured=0.0386, distance=0.0127, sealed=0.997, sealed_row=86.1,
    ),
    "amx": CostModel(
        product_float32=0.0103, product_bfloat16=0.000765, product_thirds=0.00703, weight=0.253, query=2.32, rounded=0.989,
        node=4.49, choice=0.797, near_float32=0.0253, near_bfloat16=0.0126, measured=0.0686, distance=0, sealed=4.83,
        sealed_row=130,
    ),
    "neon": CostModel(
        product_float32=0.034, product_bfloat16=0.0354, product_thirds=0.034, weight=0.272, query=1.23,
        rounded=0, node=1.22, choice=1.93, near_float32=0.0612, near_bfloat16=0,
        measured=0.153, distance=0.0622, sealed=1.26, sealed_row=74.2,
    ),
}

_used: contextvars.ContextVar = contextvars.ContextVar("icecore_costs", default=None)


def model_in_force():
    """The `CostModel` of this machine and instruction set."""
    if (used := _used.get()) is not None:
        return used
    isa = _native.isa()
    return _tuning_file.models(CostModel).get(isa) or SHIPPED.get(isa, SHIPPED["scalar"])


def origin():
    """Where the model in force comes from."""
    file = _tuning_file.path()
    if _native.isa() in _tuning_file.models(CostModel):
        return f"measured here ({file})"
    return "shipped costs; python -m icecore tune measures this machine's" if file else "shipped costs; ICECORE_TUNING is off"


@contextlib.contextmanager
def use(model):
    """For measurements: calls of this thread go by `model`, anything with its methods."""
    token = _used.set(model)
    try:
        yield
    finally:
        _used.reset(token)


class NearFarAlways:
    """To `use` where near/far attention is measured: it is taken wherever a key is far."""

    @staticmethod
    def predict(work):
        """Exact attention would take forever."""
        return {"exact": math.inf, "near_far": 0.0}

    @staticmethod
    def trial_seconds(work):
        """Trying costs nothing."""
        return 0.0

    @staticmethod
    def prices(work):
        """No head is exact because that would be faster: all keys near and all nodes scored cost less than all keys."""
        return {"near_price": 0.5, "node_price": 0.4}
