"""calibrate(): tries settings on a model's captures and chooses for each layer and head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from icecore import _cost_model
from icecore._arrays import check_problem, flag, integer, widened
from icecore._attention import attention
from icecore._call import attend_by
from icecore._metric import query_metric
from icecore._plan import LOOSEST_TOLERANCE, MIN_TOLERANCE, HeadPlan, LayerPlan, Plan
from icecore._runtime import get_num_threads
from icecore._settings import DEFAULT_SINKS, Settings, check_tolerance, rounds

#: What is tried for each key head: windows (causal), keys per cell, and thresholds (icecore.h).
WINDOWS, CELL_SIZES, THRESHOLDS = (256, 512), (16, 32, 64), tuple(4.0**-step for step in range(1, 10))
#: Queries sampled of a long capture: so many runs of so many where causal, in the last three quarters, where much is far;
#: else half as many in all, spread more finely.
SAMPLES, SAMPLE = 4, 512
#: The share of the tolerance to aim for: another text's errors were up to 7 % above those of the captures.
AIM = 0.9
#: Prices of a layer's relative error that are tried, in times of exact attention; at the last one any error is too dear.
PRICES = np.append(2.0 ** np.arange(-8, 16, 0.2), 1e12)
#: Queries are chosen for and checked in turns of so many.
TURN = 64


@dataclass(frozen=True, eq=False)
class _Option:
    """One way to compute a key head, and what it took: arrays of (query heads, 2), for the chosen and the held-out queries."""

    path: str
    window: int | None
    cell_size: int
    threshold: float     # of all query heads alike
    distance: np.ndarray  # sums of |out - exact|
    seconds: np.ndarray  # (query heads,): of attending, by forecast from what was counted
    shared: float        # of sealing


@dataclass(frozen=True)
class _Layer:
    key_heads: int
    group: int
    size: np.ndarray      # (query heads, 2): sums of |exact|
    dim: int
    options: list         # of each key head: list of _Option
    exact_seconds: float


def calibrate(captures, *, tolerance, causal=True, windows=WINDOWS, cell_sizes=CELL_SIZES, window_alone=False):
    """Find for each layer and head what keeps a model's error within a tolerance at the least time.

    Parameters
    ----------
    captures : iterable of (layer, query, key, value), or a callable
        Queries, keys and values of a model's attention on a text like those to come, as long as those to come, float32 or 16
        bits: (H, L, d), (H_k, L, d), (H_k, L, d_v). A callable is called with a function to be called with each layer's:
        `icecore.nn.capture_layers` makes one, which keeps no more than a layer at a time.
    tolerance : float
        Root mean square over the layers of ``mean |out - exact| / mean |exact|`` to aim for, over all heads of a layer and its
        queries (of long causal captures those of the last three quarters, which have much that is far). Heads and layers that
        are cheap to compute well make up for those that are not; squares, since the divergence of a model's next tokens
        (`icecore.nn.divergence`), at its least where nothing is wrong, grows with the square of a small error.
    causal : bool
    windows : sequence of int
        Windows to try where causal.
    cell_sizes : sequence of int
        Keys per cell to try.
    window_alone : bool
        Where causal: heads may also get the sinks and the window and nothing else. That is faster again, but such a head is
        blind to what lies farther back, also where a text to come has something to find there and the captures had not.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError, ValueError
        As in `attention`; no captures, or one layer twice.

    Notes
    -----
    Some 2,000 queries of every layer are computed exactly and by near/far attention with each window, cell size and nine
    thresholds, and errors and work of each query head are noted. For many prices of a layer's error in time, each head by
    itself takes what is cheapest for one half of the queries (a Lagrangian); of these choices each layer takes the one that is
    cheapest at one price of squared error for all layers, at which the error is just within nine tenths of the tolerance on
    that half and on the one held out. Times are those of the cost model (``python -m icecore tune``), not of the clock.
    """
    tolerance, causal = check_tolerance(tolerance), flag(causal, "causal")
    if tolerance is None:
        raise TypeError("tolerance must be a number, got None")
    windows = _integers(windows, "windows") if causal else [None]
    cell_sizes = _integers(cell_sizes, "cell_sizes")
    measured, length = {}, 0

    def take(layer, query, key, value):
        nonlocal length
        layer = integer(layer, "layer", 0)
        if layer in measured:
            raise ValueError(f"captures holds layer {layer} twice; expected each layer once")
        if np.ndim(query) != 3:
            raise ValueError(f"query has shape {np.shape(query)}; expected (heads, length, dim)")
        check_problem(query, key, value)
        arrays = (widened(np.asarray(a)).astype(np.float32) for a in (query, key, value))
        measured[layer] = _measure(*arrays, tolerance, causal, windows, cell_sizes, causal and window_alone)
        length = max(length, np.shape(key)[1])

    if callable(captures):
        captures(take)
    else:
        for capture in captures:
            take(*capture)
    if not measured:
        raise ValueError("captures holds no layer")
    return _choose(measured, tolerance, causal, length)


def _integers(given, name):
    if not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, got {given!r}")
    numbers = [integer(number, name, 1) for number in given]
    if not numbers:
        raise ValueError(f"{name} is {given!r}; expected at least one integer")
    return numbers


def _measure(query, key, value, tolerance, causal, windows, cell_sizes, window_alone):
    key_heads, group = len(key), len(query) // max(len(key), 1)
    samples = [(query[:, rows], key[:, :end], value[:, :end]) for rows, end in _samples(query.shape[1], key.shape[1], causal)]
    exact = np.concatenate([attention(*sample, causal=causal) for sample in samples], axis=1)
    halves = _halves(exact.shape[1])
    size, share = np.linalg.norm(exact, axis=-1) @ halves, query.shape[1] / exact.shape[1]
    metric = query_metric(query, key_heads)  # samples have no queries where most of their keys stand
    threads, model = get_num_threads(), _cost_model.model_in_force()
    multiplied = _cost_model.multiplied(query.shape[2], value.shape[2], group * query.shape[1], bfloat16=False,
                                        rounding=rounds(tolerance))
    options = [[] for _ in range(key_heads)]

    def run(settings):
        """Errors of both halves, and near keys and summaries of all queries; the latter None where no key is far."""
        outs, infos = [], []
        for sample in samples:
            with _cost_model.use(_cost_model.NearFarAlways()):
                out, info = attend_by(*sample, settings, causal=causal, return_info=True)
            infos.append(info)
            outs.append(out)
        counted = [
            share * sum(getattr(info, name)[0].sum(axis=-1) for info in infos if info.summaries is not None)
            for name in ("near_keys", "summaries")
        ]
        return np.linalg.norm(np.concatenate(outs, axis=1) - exact, axis=-1) @ halves, counted

    def one_head(**more):
        shape = (1, group, query.shape[1], query.shape[2], key.shape[1], value.shape[2])
        return _cost_model.count_work(shape, 1, causal=causal, **multiplied, k=1, threads=threads,
                                      tolerance=tolerance, sinks=DEFAULT_SINKS if causal else 0, **more)

    work = one_head(window=windows[0], cell_size=cell_sizes[0])
    alone = model.exact_seconds(work)
    for window in windows:
        if window_alone:
            distance, _ = run(Settings(None, window=window, sinks=DEFAULT_SINKS))
            pairs = sum(min(position + 1, window + DEFAULT_SINKS) for position in range(query.shape[1]))
            seconds = model.exact_seconds(replace(work, pairs=float(group * pairs)))
            for head in range(key_heads):
                own = distance[head * group : (head + 1) * group]
                options[head].append(_Option("window", window, 1, 1.0, own, np.full(group, seconds / group), 0.0))
        for cell_size in cell_sizes:
            work = one_head(window=window, cell_size=cell_size)
            sealing = model.sealing_seconds(work) / threads
            for each in THRESHOLDS:
                settings = Settings(1, window=window, sinks=DEFAULT_SINKS if causal else 0, cell_size=cell_size, metric=metric,
                                    head_threshold=np.full(len(query), each, np.float32), rounded=rounds(tolerance))
                distance, (near, summaries) = run(settings)
                if not np.any(summaries):  # so short that no key is far
                    continue
                for head in range(key_heads):
                    own = slice(head * group, (head + 1) * group)
                    seconds = [
                        model.attending_seconds(replace(
                            work, queries=work.queries / group, window_pairs=work.window_pairs / group,
                            nodes=float(summaries[h]), near_pairs=float(near[h]),
                        )) / threads
                        for h in range(own.start, own.stop)
                    ]
                    option = _Option("near_far", window, cell_size, each, distance[own], np.array(seconds), sealing)
                    options[head].append(option)
    for head in range(key_heads):
        options[head].append(_Option("exact", None, 1, 1.0, np.zeros((group, 2)), np.full(group, alone / group), 0.0))
    return _Layer(key_heads, group, size, query.shape[2], options, alone * key_heads)


def _samples(queries, keys, causal):
    """(rows of queries, end of the keys they see) of enough queries to judge by: runs, so that panels are as they will be."""
    if queries <= 2 * SAMPLES * SAMPLE:
        return [(slice(None), keys)]
    if causal:
        middles = [int((0.25 + 0.75 * (i + 0.5) / SAMPLES) * queries) for i in range(SAMPLES)]
        return [(slice(m - SAMPLE // 2, m + SAMPLE // 2), keys - queries + m + SAMPLE // 2) for m in middles]
    turns = np.linspace(0, queries - TURN, SAMPLES * SAMPLE // TURN // 2).astype(int)
    return [((turns[:, None] + np.arange(TURN)).ravel(), keys)]


def _halves(queries):
    """(L, 2): which queries choose, and which are held out."""
    held = np.arange(queries) // TURN % 2 == 1
    if held.all() or not held.any():
        held = np.arange(queries) % 2 == 1
    return np.stack([~held, held], axis=1).astype(np.float32)


def _cheapest(options, group, price, size):
    """An _Option for each query head of a key head, of one path, window and cell size: least time plus priced error."""
    kinds = {}
    for option in options:
        kinds.setdefault((option.path, option.window, option.cell_size), []).append(option)
    best, minimum = None, np.inf
    for alike in kinds.values():
        cost = np.array([option.seconds + price * option.distance[:, 0] / size for option in alike])  # (tolerances, group)
        total = cost.min(axis=0).sum() + alike[0].shared
        if total < minimum:
            best, minimum = [alike[i] for i in cost.argmin(axis=0)], total
    return best


def _frontier(layer):
    """Choices of a layer for many prices of its error: lists of _Option of each key head; seconds; errors on both halves."""
    size, choices = layer.size.sum(axis=0), []
    for price in layer.exact_seconds * PRICES:
        chosen = [_cheapest(options, layer.group, price, size[0]) for options in layer.options]
        if not choices or chosen != choices[-1]:
            choices.append(chosen)
    seconds = [sum(own[0].shared + sum(option.seconds[i] for i, option in enumerate(own)) for own in each) for each in choices]
    errors = [sum(option.distance[i] for own in each for i, option in enumerate(own)) / size for each in choices]
    return choices, np.array(seconds), np.array(errors)


def _head_plan(layer, head, own):
    """The plan of a key head of these options: what each query head's error was is its tolerance."""
    distances = [option.distance[i].sum() for i, option in enumerate(own)]
    sizes = layer.size[head * layer.group : (head + 1) * layer.group].sum(axis=1)
    errors = np.clip(distances / np.maximum(sizes, np.finfo(np.float32).tiny), MIN_TOLERANCE, LOOSEST_TOLERANCE)
    thresholds = tuple(option.threshold for option in own)
    return HeadPlan(own[0].path, own[0].window, own[0].cell_size, tuple(errors.tolist()), thresholds)


def _choose(measured, tolerance, causal, length):
    frontiers = {number: _frontier(layer) for number, layer in measured.items()}

    def places(price):
        """Where on each frontier time and priced squares of errors are least together."""
        return [(seconds + price * errors[:, 0] ** 2).argmin() for _, seconds, errors in frontiers.values()]

    def errors_at(price):
        return np.array([errors[i] for i, (_, _, errors) in zip(places(price), frontiers.values(), strict=True)])

    low, high = -12.0, 12.0  # of log10 of the price
    for _ in range(60):
        middle = 0.5 * (low + high)
        within = np.sqrt(np.square(errors_at(10.0**middle)).mean(axis=0).max()) <= AIM * tolerance
        low, high = (low, middle) if within else (middle, high)
    layers = {}
    for number, i in zip(frontiers, places(10.0**high), strict=True):
        (choices, seconds, errors), layer = frontiers[number], measured[number]
        heads = tuple(_head_plan(layer, head, own) for head, own in enumerate(choices[i]))
        layers[number] = LayerPlan(
            causal, tolerance, heads, float(errors[i, 1]), float(seconds[i]), layer.exact_seconds, layer.dim,
        )
    return Plan(tolerance, length, layers)
