"""What exact and near/far attention cost on this machine: calls timed, and a `CostModel` fitted to them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from icecore import _cost_model
from icecore._attention import attention
from icecore._call import attend_by
from icecore._cost_model import COEFFICIENTS, CostModel, NearFarAlways, Work, count_work, multiplied
from icecore._runtime import get_num_threads
from icecore._settings import CELL_SIZE, DEFAULT_SINKS, DEFAULT_WINDOW, Settings

HEADS, KEY_HEADS = 8, 4
#: (tokens, d, causal), short ones first.
SHAPES = [(1024, 64, False), (1536, 64, True), (2048, 32, False), (2048, 64, True), (2048, 64, False), (2048, 128, False),
          (2048, 128, True), (4096, 64, True), (4096, 64, False)]
#: A width that is multiplied as float32 on every machine, in exact attention.
ODD_SHAPE = (1024, 40)
NEAR_FAR = [{"k": 32}, {"k": 128}, {"k": 512}, {"threshold": 0.01}]
#: Not rounded to bfloat16, so that float32 cells are measured where others would be rounded.
UNROUNDED = {"threshold": 1e-4, "rounded": False}
#: Heads of which errors are measured.
MEASURED = {"tolerance": 0.05}
#: Few queries over many keys, where sealing is nearly all, and quadratic: (queries, keys, d).
SEALING = (48, 16384, 64)
#: What the table and the crossover show.
SHOWN = {"k": 128}


def measured(seconds):
    """All cases, timed in turn until `seconds` are spent."""
    cases = [case for shape in SHAPES for case in cases_of(*shape)]
    odd = inputs(*ODD_SHAPE)
    cases.append(Case(odd, False, {}, expected_work(odd, False, SHOWN), 0.0, 0.0, []))
    query, key, value = inputs(*SEALING[1:])
    cases.append(near_far_case((query[:, : SEALING[0]], key, value), False, NEAR_FAR[0]))
    measure(cases, seconds)
    return cases


# Measurement -------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One call, and what was measured of it."""

    arrays: tuple  # query, key, value
    causal: bool
    options: dict  # k, a tolerance, or a threshold, as a tolerance leads to, and whether keys may be rounded; empty: exact
    work: Work  # with the near keys and nodes that the call had
    sealing: float  # seconds of all threads
    measuring: float  # the same
    seconds: list  # of each round

    def call(self, **more):
        if "threshold" in self.options:
            settings = Settings(
                1, window=DEFAULT_WINDOW if self.causal else None, sinks=DEFAULT_SINKS if self.causal else 0,
                head_threshold=np.full(HEADS, self.options["threshold"], np.float32), rounded=self.options.get("rounded", True),
            )
            return attend_by(*self.arrays, settings, causal=self.causal, **more)
        return attention(*self.arrays, causal=self.causal, **self.options, **more)


def inputs(tokens, dim):
    """Attention-like queries, keys and values: topics that last for some tokens, queries near keys of their own topic."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    topic = rng.integers(48, size=tokens)[np.cumsum(rng.random(tokens) < 1 / 24)]
    centre, meaning = normal(KEY_HEADS, 48, dim)[:, topic], normal(KEY_HEADS, 48, dim)[:, topic]
    key, value = centre + 0.7 * normal(KEY_HEADS, tokens, dim), meaning + normal(KEY_HEADS, tokens, dim)
    return 1.5 * (np.repeat(centre, HEADS // KEY_HEADS, axis=0) + normal(HEADS, tokens, dim)), key, value


def cases_of(tokens, dim, causal):
    """The calls measured for one shape."""
    arrays = inputs(tokens, dim)
    bfloat16 = tuple((a.view(np.uint32) >> 16).astype(np.uint16) for a in arrays)
    near_far = [*NEAR_FAR, UNROUNDED] if tokens == 2048 and not causal else NEAR_FAR
    near_far = [*near_far, MEASURED] if tokens == 4096 else near_far
    exact = [Case(given, causal, {}, expected_work(given, causal, SHOWN), 0.0, 0.0, []) for given in (arrays, bfloat16)]
    return exact + [near_far_case(arrays, causal, options) for options in near_far]


def near_far_case(arrays, causal, options):
    """Makes the call three times, to see its near keys and nodes and the time of sealing."""
    case = Case(arrays, causal, options, expected_work(arrays, causal, options), 0.0, 0.0, [])
    with _cost_model.use(NearFarAlways()):
        infos = [case.call(return_info=True)[1] for _ in range(3)]
    work = replace(case.work, nodes=float(infos[0].summaries.sum()), near_pairs=float(infos[0].near_keys.sum()))
    sealing, measuring = (float(np.median([info.seconds[part] for info in infos])) for part in ("sealing", "measuring"))
    return case._replace(work=work, sealing=sealing, measuring=measuring)


def expected_work(arrays, causal, options):
    """The `Work` of a near/far call."""
    query, key, value = arrays
    bfloat16 = query.dtype == np.uint16
    tolerance = options.get("tolerance", 0.05 if "threshold" in options else None)
    rows = query.shape[1] * (HEADS // KEY_HEADS)
    form = multiplied(query.shape[2], value.shape[2], rows, bfloat16=bfloat16, rounding=options != UNROUNDED)
    work = count_work(
        (1, *query.shape, *value.shape[1:]), len(key), causal=causal, **form, k=options.get("k", 1), tolerance=tolerance,
        window=DEFAULT_WINDOW if causal else None, sinks=DEFAULT_SINKS if causal else 0, cell_size=CELL_SIZE,
        threads=get_num_threads(),
    )
    return replace(work, measured_pairs=0.0) if "threshold" in options else work


def measure(cases, seconds):
    """Times all cases in turn until `seconds` are spent, at least once."""
    end = time.perf_counter() + seconds
    with _cost_model.use(NearFarAlways()):
        while not cases[-1].seconds or time.perf_counter() < end:
            for case in cases:
                started = time.perf_counter()
                case.call()
                case.seconds.append(time.perf_counter() - started)


# Fit ---------------------------------------------------------------------------------------------------------


def fit(cases):
    """The costs, none below 0, with the least sum of squared relative errors."""
    from scipy.optimize import nnls

    rows = []  # (part of the formula, work, its seconds)
    for case in cases:
        elapsed, work = float(np.median(case.seconds)), case.work
        if not case.options:
            rows.append((CostModel.exact_seconds, work, elapsed))
            continue
        # sealing before attending keeps threads waiting that have no key head
        kept = 1 if work.causal else work.threads / min(work.threads, work.heads)
        attending = elapsed * work.threads - (case.sealing + case.measuring) * kept
        if attending > case.sealing:  # else it is a difference of nearly equal numbers
            rows.append((CostModel.attending_seconds, work, attending))
        if work.sealed_rows:
            rows.append((CostModel.sealing_seconds, work, case.sealing))
        if case.measuring:
            rows.append((CostModel.measuring_seconds, work, case.measuring))
    # each part is a sum of costs times counts: the counts are what a cost of 1 makes
    units = [CostModel(**{name: float(name == one) for name in COEFFICIENTS}) for one in COEFFICIENTS]
    counts = np.array([[part(unit, work) / seconds for unit in units] for part, work, seconds in rows])
    size = np.maximum(counts.max(axis=0), np.finfo(float).tiny)
    costs = nnls(counts / size, np.ones(len(rows)))[0] / size
    return CostModel(**dict(zip(COEFFICIENTS, map(float, costs), strict=True)))


def crossover(model, causal):
    """From how many tokens on near/far is taken, as text."""
    for tokens in range(256, 32769, 256):
        arrays = tuple(np.broadcast_to(np.float32(0), (heads, tokens, 64)) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        work = expected_work(arrays, causal, SHOWN)
        if _cost_model.choose(work, model) == "near_far":
            return f"from {tokens} tokens on"
    return "not up to 32768 tokens"
