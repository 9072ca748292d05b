"""calibrate() and Plan: for each layer and head the path, the budget and the metric that its attention is worth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from icecore import _cost_model
from icecore._arrays import check_problem, check_scale, integer, widened
from icecore._attention import (
    CELL_SIZE,
    DEFAULT_SINKS,
    DEFAULT_WINDOW,
    Settings,
    _Call,
    attention,
    cell_tolerance,
    check_tolerance,
    rounds,
)
from icecore._runtime import get_num_threads

FORMAT = 1
#: What is tried for each key head: windows (causal), keys per cell, and tolerances as multiples of the plan's.
WINDOWS, CELL_SIZES, TOLERANCES = (256, 512), (16, 32, 64), (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
#: Queries sampled of a long capture: so many runs of so many where causal, in the last three quarters, where much is far;
#: else half as many in all, spread more finely.
SAMPLES, SAMPLE = 4, 512
#: The share of the tolerance to aim for: another text's errors were up to 7 % above those of the captures.
AIM = 0.9
#: Queries are chosen for and checked in turns of so many.
TURN = 64
#: In a cache, what heads get whose path is exact, or the window alone: all is opened, or hardly anything.
LEAST_TOLERANCE, LOOSEST_TOLERANCE = 1e-6, 0.9
#: Exponents of the metric stay within this: float16 keys must not overflow.
LARGEST_EXPONENT = 6


@dataclass(frozen=True)
class HeadPlan:
    """What one key head and its query heads get.

    Attributes
    ----------
    path : str
        ``"near_far"``; ``"window"``: the sinks and the last `window` keys alone; ``"exact"``.
    window : int or None
        As in `attention`; None where not causal or exact.
    cell_size : int
        Keys per cell, on average.
    tolerances : tuple of float
        Of each query head; where the path is not near/far they are not used.
    metric : tuple of int
        Exponents of two, one a component: key components are multiplied and query components divided by those powers, which
        changes no score, and cells are those of the multiplied keys. From the root mean square of the queries' components.
    """

    path: str
    window: int | None
    cell_size: int
    tolerances: tuple
    metric: tuple

    def __post_init__(self):
        if self.path not in ("near_far", "window", "exact"):
            raise ValueError(f"path must be 'near_far', 'window' or 'exact', got {self.path!r}")
        if self.window is not None:
            integer(self.window, "window", 1)
        integer(self.cell_size, "cell_size", 1)
        object.__setattr__(self, "tolerances", tuple(map(check_tolerance, self.tolerances)))
        object.__setattr__(self, "metric", tuple(int(exponent) for exponent in self.metric))
        if any(abs(exponent) > LARGEST_EXPONENT for exponent in self.metric):
            raise ValueError(f"metric must have exponents within {LARGEST_EXPONENT} of 0, got {self.metric}")

    def settings(self, causal, tolerance):
        """As `attention` takes them, for this key head alone."""
        sinks = DEFAULT_SINKS if causal else 0
        if self.path != "near_far":
            return Settings(None, window=self.window, sinks=sinks if self.path == "window" else 0)
        # for the forecast of the cost; rounding goes by the plan's
        mean = max(float(np.mean(self.tolerances)), tolerance) if rounds(tolerance) else tolerance
        return Settings(
            1, mean, window=self.window, sinks=sinks, cell_size=self.cell_size,
            head_tolerance=np.array([cell_tolerance(t) for t in self.tolerances], np.float32),
            head_cell_size=np.array([self.cell_size]), metric=np.exp2(np.array([self.metric], np.float32)),
        )


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gets: ``attention(query, key, value, causal=..., plan=plan[layer])``, ``KVCache(..., plan=plan[layer])``.

    Attributes
    ----------
    causal : bool
    tolerance : float
        The plan's.
    heads : tuple of HeadPlan
        One a key head.
    error : float
        ``mean |out - exact| / mean |exact|`` over the queries that were held out.
    seconds, exact_seconds : float
        Forecast for the calibrated length, and of exact attention.
    """

    causal: bool
    tolerance: float
    heads: tuple
    error: float
    seconds: float
    exact_seconds: float

    def __post_init__(self):
        check_tolerance(self.tolerance)
        shapes = {(len(head.tolerances), len(head.metric)) for head in self.heads}
        if len(shapes) != 1 or 0 in next(iter(shapes)):
            raise ValueError("heads must be at least one, each with as many tolerances and a metric as wide as the others'")
        if not self.causal and any(head.window is not None for head in self.heads):
            raise ValueError("heads must have no window where the plan is not causal")

    @property
    def query_heads(self):
        """Query heads of the layer."""
        return len(self.heads) * len(self.heads[0].tolerances)

    @property
    def dim(self):
        """Width of queries and keys."""
        return len(self.heads[0].metric)

    def check(self, query_heads, key_heads, dim, causal):
        """ValueError where a call has other heads, another width or causality than the plan."""
        wanted, given = (self.query_heads, len(self.heads), self.dim), (query_heads, key_heads, dim)
        if wanted != given:
            expected = "{} query heads on {} key heads, d={}".format(*wanted)
            raise ValueError(f"plan is for {expected}; the call has " + "{} on {}, d={}".format(*given))
        if causal != self.causal:
            raise ValueError(f"plan was calibrated with causal={self.causal}; the call has causal={causal}")

    def parts(self, problem, causal):
        """(slice of query heads, slice of key heads, Settings) of each run of key heads that one call can do."""
        key_heads, group = problem.key.shape[1], len(self.heads[0].tolerances)
        self.check(problem.query.shape[1], key_heads, problem.query.shape[3], causal)
        parts, first = [], 0
        for end in range(1, key_heads + 1):
            if end < key_heads and self._alike(self.heads[first], self.heads[end]):
                continue
            each = [head.settings(causal, self.tolerance) for head in self.heads[first:end]]
            joined = each[0]
            if joined.k is not None:
                arrays = ("head_tolerance", "head_cell_size", "metric")
                joined = replace(
                    joined, tolerance=float(np.mean([s.tolerance for s in each])),
                    cell_size=round(float(np.mean([s.cell_size for s in each]))),
                    **{name: np.concatenate([getattr(s, name) for s in each]) for name in arrays},
                )
            parts.append((slice(first * group, end * group), slice(first, end), joined))
            first = end
        return parts

    def for_cache(self):
        """(window, keys per cell, risk tolerated for each query head, metric): one window and cell size for all."""
        budget = {"near_far": lambda t: t, "exact": lambda t: LEAST_TOLERANCE, "window": lambda t: LOOSEST_TOLERANCE}
        windows = [head.window or DEFAULT_WINDOW for head in self.heads]
        sizes = [head.cell_size for head in self.heads if head.path == "near_far"] or [CELL_SIZE]
        risks = [cell_tolerance(budget[head.path](t)) for head in self.heads for t in head.tolerances]
        metric = np.exp2(np.array([head.metric for head in self.heads], np.float32))
        return max(windows), min(sizes), np.array(risks, np.float32), metric

    @staticmethod
    def _alike(one, other):
        return (one.path, one.window) == (other.path, other.window)


@dataclass(frozen=True)
class Plan:
    """What `calibrate` found; ``plan[layer]`` is a `LayerPlan`, ``print(plan)`` a map of all heads.

    Attributes
    ----------
    tolerance : float
        Mean error over the layers that was aimed for.
    length : int
        Tokens of the captures.
    layers : dict of int to LayerPlan
    """

    tolerance: float
    length: int
    layers: dict = field(repr=False)

    def __getitem__(self, layer):
        if layer not in self.layers:
            raise KeyError(f"plan has no layer {layer!r}; it has {', '.join(map(str, self.layers))}")
        return self.layers[layer]

    def __len__(self):
        return len(self.layers)

    def __iter__(self):
        return iter(self.layers)

    @property
    def error(self):
        """Mean over the layers of their errors on held-out queries."""
        return float(np.mean([layer.error for layer in self.layers.values()]))

    def attention(self, query, key, value, *, layer, window=None):
        """Attention of one layer as the models of `icecore.nn` call it: ``nn.forward(..., attention=plan.attention)``.

        Layers of the model's own sliding window are computed exactly.
        """
        if window is not None:
            return attention(query, key, value, causal=True, window=window)
        return attention(query, key, value, causal=self[layer].causal, plan=self[layer])

    # ---- Files ----

    def save(self, path):
        """Write it to a file, as JSON."""
        layers = {str(number): asdict(layer) for number, layer in self.layers.items()}
        content = {"icecore plan": FORMAT, "tolerance": self.tolerance, "length": self.length, "layers": layers}
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path):
        """Read a file that `save` wrote.

        Raises
        ------
        ValueError
            Naming the file and what is wrong with it: no plan, another version's format, a part that cannot be.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(content, dict) or "icecore plan" not in content:
                raise ValueError("it is not a plan of icecore")
            if content["icecore plan"] != FORMAT:
                raise ValueError(f"its format is {content['icecore plan']!r}; expected {FORMAT}")
            layers = {}
            for number, layer in content["layers"].items():
                heads = tuple(HeadPlan(**head) for head in layer.pop("heads"))
                layers[int(number)] = LayerPlan(heads=heads, **layer)
            return cls(check_tolerance(content["tolerance"]), integer(content["length"], "length", 1), layers)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} holds no plan that can be used: {reason}") from error

    # ---- Maps ----

    def __str__(self):
        layers = self.layers.values()
        seconds, exact = sum(layer.seconds for layer in layers), sum(layer.exact_seconds for layer in layers)
        lines = [
            f"plan for {len(self)} layers, {self.length} tokens: tolerance {self.tolerance:g}, error {self.error:.4f} on "
            f"held-out queries, {exact / seconds:.1f} times as fast as exact by forecast",
            "a digit a query head: tolerance of a cell, 0 = up to 1/8 of the plan's, each next one twice as much; "
            "= exact, | window alone",
            "layer  error  heads (window, keys a cell)",
        ]
        for number, layer in self.layers.items():
            heads = "  ".join(
                self._marks(head) + f" ({head.window or '-'}, {head.cell_size if head.path == 'near_far' else '-'})"
                for head in layer.heads
            )
            lines.append(f"{number:5}  {layer.error:.3f}  {heads}")
        return "\n".join(lines)

    def _marks(self, head):
        if head.path != "near_far":
            return ("=" if head.path == "exact" else "|") * len(head.tolerances)
        return "".join(str(int(np.clip(np.round(np.log2(t / self.tolerance)) + 3, 0, 9))) for t in head.tolerances)

    def plot(self, path):
        """Draw tolerances and windows of all heads to a file (needs matplotlib)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 1 + 0.16 * len(self)), layout="constrained")
        tolerances, windows = figure.subplots(1, 2, sharey=True)
        of = {"near_far": lambda t: t, "exact": lambda t: np.nan, "window": lambda t: np.nan}
        rows = [[of[head.path](t) for head in layer.heads for t in head.tolerances] for layer in self.layers.values()]
        width = max(map(len, rows))
        rows = np.array([row + [np.nan] * (width - len(row)) for row in rows])
        drawn = tolerances.imshow(np.log2(rows / self.tolerance), aspect="auto", cmap="viridis")
        tolerances.set(title=f"log2 of tolerance / {self.tolerance:g}", xlabel="query head", ylabel="layer")
        tolerances.set_yticks(range(len(self)), list(self.layers))
        figure.colorbar(drawn, ax=tolerances)
        rows = [[head.window or np.nan for head in layer.heads] for layer in self.layers.values()]
        width = max(map(len, rows))
        rows = np.array([row + [np.nan] * (width - len(row)) for row in rows], float)
        drawn = windows.imshow(rows, aspect="auto", cmap="magma")
        windows.set(title="window", xlabel="key head")
        figure.colorbar(drawn, ax=windows)
        figure.savefig(path, dpi=110)


# Calibration -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Option:
    """One way to compute a key head, and what it took: arrays of (query heads, 2), for the chosen and the held-out queries."""

    path: str
    window: int | None
    cell_size: int
    tolerance: float     # of all query heads alike
    distance: np.ndarray  # sums of |out - exact|
    seconds: np.ndarray  # (query heads,): of attending, by forecast from what was counted
    shared: float        # of sealing


@dataclass(frozen=True)
class _Layer:
    key_heads: int
    group: int
    size: np.ndarray      # (query heads, 2): sums of |exact|
    metric: np.ndarray    # (key heads, dim) exponents
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
        Mean over the layers of ``mean |out - exact| / mean |exact|`` to aim for, over all heads of a layer and its queries (of
        long causal captures those of the last three quarters, which have much that is far). Heads that are cheap to compute
        well make up for those that are not.
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
    Some 2,000 queries of every layer are computed exactly and by near/far attention with each window, cell size and six
    tolerances, and errors and work of each query head are noted. Then one price of error in time is sought at which, each
    head by itself taking what is cheapest for one half of the queries, the mean error is just within nine tenths of the
    tolerance on that half and on the one held out (a Lagrangian). Times are those of the cost model (``python -m icecore
    tune``), not of the clock.
    """
    tolerance = check_tolerance(tolerance)
    if tolerance is None:
        raise TypeError("tolerance must be a number, got None")
    windows = [integer(window, "windows", 1) for window in windows] if causal else [None]
    cell_sizes = [integer(size, "cell_sizes", 1) for size in cell_sizes]
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
        measured[layer] = _measure(*arrays, tolerance, bool(causal), windows, cell_sizes, causal and window_alone)
        length = max(length, np.shape(key)[1])

    if callable(captures):
        captures(take)
    else:
        for capture in captures:
            take(*capture)
    if not measured:
        raise ValueError("captures holds no layer")
    return _choose(measured, tolerance, bool(causal), length)


def metric_of(query, key_heads):
    """(key_heads, d) exponents of two: root mean squares of the queries' components, relative to their geometric mean."""
    squares = np.square(query.astype(np.float32)).reshape(key_heads, -1, query.shape[-1]).mean(axis=1, dtype=np.float64)
    exponents = 0.5 * np.log2(np.maximum(squares, 1e-30))
    exponents -= exponents.mean(axis=1, keepdims=True)
    return np.clip(np.round(exponents), -LARGEST_EXPONENT, LARGEST_EXPONENT).astype(int)


def _measure(query, key, value, tolerance, causal, windows, cell_sizes, window_alone):
    key_heads, group = len(key), len(query) // max(len(key), 1)
    samples = [(query[:, rows], key[:, :end], value[:, :end]) for rows, end in _samples(query.shape[1], key.shape[1], causal)]
    exact = np.concatenate([attention(*sample, causal=causal) for sample in samples], axis=1)
    exponents, halves = metric_of(query, key_heads), _halves(exact.shape[1])
    size, share = np.linalg.norm(exact, axis=-1) @ halves, query.shape[1] / exact.shape[1]
    tried = [max(min(tolerance * factor, LOOSEST_TOLERANCE), LEAST_TOLERANCE) for factor in TOLERANCES]
    threads, model = get_num_threads(), _cost_model.model_in_force()
    stored = _cost_model.stores_bfloat16(False, rounds(tolerance))
    options = [[] for _ in range(key_heads)]

    def run(settings):
        """Errors of both halves, and near keys and summaries of all queries; the latter None where no key is far."""
        outs, infos = [], []
        for sample in samples:
            problem = check_problem(*sample)
            call = _Call(problem, check_scale(None, query.shape[-1]), causal, 0, settings, 0, True)
            call.out = np.empty(problem.out_shape, problem.dtype)[None]
            with _cost_model.use(_cost_model.NearFarAlways()):
                infos.append(call.run(None, None, None))
            outs.append(call.out[0])
        counted = [
            share * sum(getattr(info, name)[0].sum(axis=-1) for info in infos if info.summaries is not None)
            for name in ("near_keys", "summaries")
        ]
        return np.linalg.norm(np.concatenate(outs, axis=1) - exact, axis=-1) @ halves, counted

    def one_head(**more):
        shape = (1, group, query.shape[1], query.shape[2], key.shape[1], value.shape[2])
        return _cost_model.count_work(shape, 1, causal=causal, bfloat16=False, stored_bfloat16=stored, k=1, threads=threads,
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
                options[head].append(_Option("window", window, 1, tolerance, own, np.full(group, seconds / group), 0.0))
        for cell_size in cell_sizes:
            work = one_head(window=window, cell_size=cell_size)
            sealing = model.sealing_seconds(work) / threads
            for each in tried:
                plan = HeadPlan("near_far", window, cell_size, (each,) * group, (0,) * query.shape[2])
                settings = replace(plan.settings(causal, tolerance), metric=np.exp2(exponents.astype(np.float32)),
                                   head_cell_size=np.full(key_heads, cell_size),
                                   head_tolerance=np.full(len(query), cell_tolerance(each), np.float32))
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
        options[head].append(_Option("exact", None, 1, tolerance, np.zeros((group, 2)), np.full(group, alone / group), 0.0))
    return _Layer(key_heads, group, size, exponents, options, alone * key_heads)


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
    best, least = None, np.inf
    for alike in kinds.values():
        cost = np.array([option.seconds + price * option.distance[:, 0] / size for option in alike])  # (tolerances, group)
        total = cost.min(axis=0).sum() + alike[0].shared
        if total < least:
            best, least = [alike[i] for i in cost.argmin(axis=0)], total
    return best


def _choices(measured, price):
    """{layer: list, a key head, of lists, a query head, of _Option}; mean errors on both halves."""
    chosen, errors = {}, []
    for number, layer in measured.items():
        size = layer.size.sum(axis=0)
        chosen[number] = [_cheapest(options, layer.group, price, size[0]) for options in layer.options]
        errors.append(sum(option.distance[i] for head in chosen[number] for i, option in enumerate(head)) / size)
    return chosen, np.array(errors)


def _choose(measured, tolerance, causal, length):
    low, high = -12.0, 12.0  # of log10 of the price
    for _ in range(60):
        middle = 0.5 * (low + high)
        within = _choices(measured, 10.0**middle)[1].mean(axis=0).max() <= AIM * tolerance
        low, high = (low, middle) if within else (middle, high)
    chosen, errors = _choices(measured, 10.0**high)
    layers = {}
    for (number, layer), error in zip(measured.items(), errors, strict=True):
        heads = tuple(
            HeadPlan(own[0].path, own[0].window, own[0].cell_size, tuple(option.tolerance for option in own), tuple(exponents))
            for own, exponents in zip(chosen[number], layer.metric.tolist(), strict=True)
        )
        seconds = sum(own[0].shared + sum(option.seconds[i] for i, option in enumerate(own)) for own in chosen[number])
        layers[number] = LayerPlan(causal, tolerance, heads, float(error[1]), float(seconds), layer.exact_seconds)
    return Plan(tolerance, length, layers)
