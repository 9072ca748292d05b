"""Plan: attention settings for each layer and head, found by calibrate()."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from icecore._arrays import integer
from icecore._files import replacing
from icecore._settings import CELL_SIZE, DEFAULT_SINKS, DEFAULT_WINDOW, Settings, check_tolerance, rounds

FORMAT = 2
#: Tolerances of heads lie within these. In a cache, exact heads get the least, those of the window alone the loosest.
MIN_TOLERANCE, LOOSEST_TOLERANCE = 1e-6, 0.9
#: And the thresholds that go with them there: all is opened, or hardly anything.
MIN_THRESHOLD, LOOSEST_THRESHOLD = 1e-9, 2.0
#: Of errors and seconds.
LARGEST_NUMBER = 1e30


@dataclass(frozen=True)
class HeadPlan:
    """Settings of one key head and its query heads.

    Attributes
    ----------
    path : str
        ``"near_far"``; ``"window"``: the sinks and the last `window` keys alone; ``"exact"``.
    window : int or None
        As in `attention`; None where not causal or exact.
    cell_size : int
        Keys per cell, on average.
    tolerances : tuple of float
        Of each query head: its error on the captures. Where the path is not near/far they are not used.
    thresholds : tuple of float
        Of each query head: how far cells were opened for it (icecore.h), where measuring starts in later calls.
    """

    path: str
    window: int | None
    cell_size: int
    tolerances: tuple
    thresholds: tuple

    def __post_init__(self):
        if self.path not in ("near_far", "window", "exact"):
            raise ValueError(f"path must be 'near_far', 'window' or 'exact', got {self.path!r}")
        if self.window is not None:
            integer(self.window, "window", 1)
        integer(self.cell_size, "cell_size", 1)
        object.__setattr__(self, "tolerances", tuple(map(check_tolerance, self.tolerances)))
        object.__setattr__(self, "thresholds", tuple(float(threshold) for threshold in self.thresholds))
        if len(self.thresholds) != len(self.tolerances) or not all(0 < threshold < np.inf for threshold in self.thresholds):
            raise ValueError(f"thresholds must be as many as tolerances, finite and above 0, got {self.thresholds}")

    def settings(self, causal, tolerance):
        """As `attention` takes them, for this key head alone."""
        sinks = DEFAULT_SINKS if causal else 0
        if self.path != "near_far":
            window_alone = self.path == "window"
            return Settings(None, window=self.window, sinks=sinks if window_alone else 0, window_alone=window_alone)
        # for the forecast of the cost; rounding goes by the plan's
        mean = max(float(np.mean(self.tolerances)), tolerance) if rounds(tolerance) else tolerance
        return Settings(
            1, mean, window=self.window, sinks=sinks, cell_size=self.cell_size,
            head_tolerance=np.array(self.tolerances, np.float32), head_threshold=np.array(self.thresholds, np.float32),
            head_cell_size=np.array([self.cell_size]),
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
    dim : int
        Width of queries and keys.
    """

    causal: bool
    tolerance: float
    heads: tuple
    error: float
    seconds: float
    exact_seconds: float
    dim: int

    def __post_init__(self):
        if not isinstance(self.causal, (bool, np.bool_)):
            raise TypeError(f"causal must be a bool, got {self.causal!r}")
        if check_tolerance(self.tolerance) is None:
            raise ValueError("tolerance is missing")
        integer(self.dim, "dim", 1)
        groups = {len(head.tolerances) for head in self.heads}
        if len(groups) != 1 or 0 in groups:
            raise ValueError("heads must be at least one, each with as many tolerances as the others")
        for name, minimum in (("error", 0), ("seconds", 1 / LARGEST_NUMBER), ("exact_seconds", 0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float, np.floating)) or not minimum <= value <= LARGEST_NUMBER:
                raise ValueError(f"{name} must be a number in {minimum:g}..{LARGEST_NUMBER:g}, got {value!r}")
        if not self.causal and any(head.window is not None for head in self.heads):
            raise ValueError("heads must have no window where the plan is not causal")

    @property
    def query_heads(self):
        """Query heads of the layer."""
        return len(self.heads) * len(self.heads[0].tolerances)

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
                arrays = ("head_tolerance", "head_threshold", "head_cell_size")
                joined = replace(
                    joined, tolerance=float(np.mean([s.tolerance for s in each])),
                    cell_size=round(float(np.mean([s.cell_size for s in each]))),
                    **{name: np.concatenate([getattr(s, name) for s in each]) for name in arrays},
                )
            parts.append((slice(first * group, end * group), slice(first, end), joined))
            first = end
        return parts

    def for_cache(self):
        """(window, keys per cell, tolerance and threshold of each query head): one window and cell size for all."""
        fixed = {"exact": (MIN_TOLERANCE, MIN_THRESHOLD), "window": (LOOSEST_TOLERANCE, LOOSEST_THRESHOLD)}
        windows = [head.window or DEFAULT_WINDOW for head in self.heads]
        sizes = [head.cell_size for head in self.heads if head.path == "near_far"] or [CELL_SIZE]
        pairs = [
            fixed.get(head.path, pair) for head in self.heads for pair in zip(head.tolerances, head.thresholds, strict=True)
        ]
        return max(windows), min(sizes), *np.array(pairs, np.float32).T.copy()

    def content(self):
        """As of `Plan.content`."""
        return asdict(self)

    @classmethod
    def from_content(cls, content):
        """As of `Plan.from_content`."""
        content = dict(content)
        return cls(heads=tuple(HeadPlan(**head) for head in content.pop("heads")), **content)

    @staticmethod
    def _alike(one, other):
        return (one.path, one.window) == (other.path, other.window)


def check_plan(plan, **others):
    """That `plan` is of one layer and stands alone."""
    if not isinstance(plan, LayerPlan):
        raise TypeError(f"plan must be a LayerPlan, plan[layer] of what calibrate returns, got {type(plan).__name__}")
    given = [f"{name}={value}" for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"plan replaces k, tolerance, window, sinks and metric; got {', '.join(given)}")


@dataclass(frozen=True)
class Plan:
    """What `calibrate` found; ``plan[layer]`` is a `LayerPlan`, ``print(plan)`` a map of all heads.

    Attributes
    ----------
    tolerance : float
        Error that was aimed for, as of `calibrate`.
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
        """Root mean square over the layers of their errors on held-out queries."""
        return float(np.sqrt(np.mean([layer.error**2 for layer in self.layers.values()])))

    def attention(self, query, key, value, *, layer, window=None):
        """Attention of one layer as the models of `icecore.nn` call it: ``nn.forward(..., attention=plan.attention)``.

        Layers of the model's own sliding window are computed exactly.
        """
        from icecore._attention import attention  # which knows plans

        if window is not None:
            return attention(query, key, value, causal=True, window=window)
        return attention(query, key, value, causal=self[layer].causal, plan=self[layer])

    # ---- Files ----

    def save(self, path):
        """Write it to a file, as JSON; a file that is there is replaced as a whole."""
        with replacing(path) as file:
            file.write((json.dumps(self.content(), indent=1) + "\n").encode())

    def content(self):
        """The plan as plain dictionaries, lists and numbers; `from_content` makes a plan of them."""
        layers = {str(number): layer.content() for number, layer in self.layers.items()}
        return {"icecore plan": FORMAT, "tolerance": self.tolerance, "length": self.length, "layers": layers}

    @classmethod
    def from_content(cls, content):
        """The plan of what `content` returned; ValueError, TypeError or KeyError where it is none."""
        if not isinstance(content, dict) or "icecore plan" not in content:
            raise ValueError("it is not a plan of icecore")
        if content["icecore plan"] != FORMAT:
            raise ValueError(f"its format is {content['icecore plan']!r}; expected {FORMAT}")
        layers = {int(number): LayerPlan.from_content(layer) for number, layer in dict(content["layers"]).items()}
        if not layers or content["tolerance"] is None:
            raise ValueError("it lacks layers or a tolerance")
        return cls(check_tolerance(content["tolerance"]), integer(content["length"], "length", 1), layers)

    @classmethod
    def load(cls, path):
        """Read a file that `save` wrote.

        Raises
        ------
        ValueError
            Naming the file and what is wrong with it: no plan, another version's format, a part that cannot be.
        """
        try:
            return cls.from_content(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} holds no plan that can be used: {reason}") from error

    # ---- Maps ----

    def __str__(self):
        layers = self.layers.values()
        seconds, exact = sum(layer.seconds for layer in layers), sum(layer.exact_seconds for layer in layers)
        lines = [
            f"plan for {len(self)} layers, {self.length} tokens: tolerance {self.tolerance:g}, error {self.error:.4f} on "
            f"held-out queries, {exact / seconds:.1f} times as fast as exact by forecast",
            "one digit per query head: its error, 0 = up to 1/8 of the plan's tolerance, each next one twice as much; "
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
