"""attention() and merge_states(): validation and ergonomics; the work is the C core's."""

from __future__ import annotations

import numbers
import operator
import warnings
from dataclasses import dataclass, replace

import numpy as np

from icecore import _cost_model, _native
from icecore._arrays import (
    check_mask,
    check_out,
    check_problem,
    check_scale,
    integer,
    narrowed,
    native_result,
    native_view,
    refuse_names,
    widened,
)
from icecore._metric import check_metric, query_metric
from icecore._runtime import threads_for_call

#: Of near/far attention: cells number keys in 32 bits.
MAX_KEYS = 2**31 - 1
#: Keys a query sees exactly before and around its own block, when causal and `k` is given.
DEFAULT_WINDOW = 512
#: First keys that stay exact, when causal and `k` is given: attention sinks (inside cells they spoil every mean).
DEFAULT_SINKS = 16
#: Rows of which the error is measured for an `AttentionInfo` where k is given.
MEASURED_QUERIES = 32
#: Keys per cell, on average: the smaller the cells, the less is lost at equal near keys, and the more of them are scored.
CELL_SIZE = 16
#: Below this tolerance rounding to bfloat16 would be a large part of the error.
LEAST_ROUNDED_TOLERANCE = 0.015
#: Methods besides near/far attention.
SELECTORS = ("pages",)
#: Errors of single heads go up to so many times their tolerance; a warning says so where a measured one is above that by more
#: than its standard error.
USUAL_ERROR = 1.3


@dataclass(frozen=True)
class AttentionInfo:
    """What a call did; ``print(info)`` says it in words.

    Attributes
    ----------
    path : str
        ``"exact"``, ``"near_far"`` or a selector's name; ``"reference"`` for float64; ``"mixed"`` where a plan's heads take
        different ones. On the near/far path, rows and heads that had to be exact show it by ``summaries`` of 0 and a captured
        mass of 1.
    near_keys : ndarray of int32, shape (..., L)
        Keys summed exactly for each query besides sinks and window; all visible keys where the path is exact.
    captured_mass : ndarray of float32, shape (..., L)
        Share of each query's softmax mass that was summed exactly, sinks and window included; the rest was estimated from
        cell means (or dropped). 1 where a row is exact; 0 for a query that sees no key. Elsewhere an estimate, with a tolerance
        corrected by what the means of sampled rows were found to lack: within 0.05 for most rows, but far too high for a row
        whose means miss a large key. NaN with a selector, which does not know it.
    missed_mass_bound : ndarray of float32, shape (..., L), or None
        No larger a share of the true mass lies outside the keys that were summed exactly, whatever the inputs (where they are
        rounded to bfloat16: of the rounded ones). From the radius of each cell: usually far above ``1 - captured_mass``. None
        where the path is not near/far with a far field.
    summaries : ndarray of int32, shape (..., L), or None
        Cells and parents that were scored for each query. None where the path is not near/far.
    visited_fraction : ndarray of float32, shape (..., L), or None
        Keys and summaries that each query read, by the keys that it sees (masks aside): below 1 where near/far saves reading.
        None where the path is not near/far with a far field.
    seconds : dict of str to float, or None
        Time spent ``"sealing"``, ``"attending"`` and ``"measuring"``, all threads together. None where the path is not
        near/far.
    predicted : dict of str to float, or None
        Seconds that ``"exact"`` and ``"near_far"`` were expected to take, by which the path was chosen (see
        ``python -m icecore tune``). With a tolerance: of near/far at its cheapest, since what it needs is measured in the call.
        None where there was no choice.
    error : ndarray of float32, shape (..., H), or None
        With a tolerance: what ``sum |out - exact| / sum |exact|`` of each query head was on sampled rows, with the thresholds
        that were in force before these rows were known (not causal: with those they led to); half the relative error of the
        mass (the error of lse) counts as one more component. Of near/far rows alone, and 0 where a head was exact; NaN where no
        row was measured. With k: the same of 32 rows of the result. An estimate from `error_rows` rows, give or take
        `error_standard_error`: on a language model within 1.5 times of the true one for eight or nine heads in ten, for
        fewer where few rows make most of the error. None where the path is not near/far.
    error_standard_error : ndarray of float32, shape (..., H), or None
    error_rows : ndarray of int32, shape (..., H), or None
    """

    path: str
    near_keys: np.ndarray
    captured_mass: np.ndarray
    missed_mass_bound: np.ndarray | None = None
    summaries: np.ndarray | None = None
    visited_fraction: np.ndarray | None = None
    seconds: dict | None = None
    predicted: dict | None = None
    error: np.ndarray | None = None
    error_standard_error: np.ndarray | None = None
    error_rows: np.ndarray | None = None

    def __str__(self):
        lines = [f"path: {self.path}, {self._reason()}"]
        if self.near_keys.size:
            lines.append(f"near keys per query: median {np.median(self.near_keys):.0f}, max {self.near_keys.max()}")
            mass = self.captured_mass
            lines.append(f"captured mass: median {np.median(mass):.4f}, min {mass.min():.4f}")
            if self.missed_mass_bound is not None:
                bound = self.missed_mass_bound
                lines.append(f"missed-mass bound: median {np.median(bound):.4f}, max {bound.max():.4f}")
            if self.summaries is not None:
                scored = self.summaries
                lines.append(f"cells and parents scored per query: median {np.median(scored):.0f}, max {scored.max()}")
            if self.visited_fraction is not None:
                lines.append(f"share of the visible keys read per query: mean {self.visited_fraction.mean():.1%}")
        if self.error is not None and np.isfinite(self.error).any():
            lines.append(f"measured error per head: mean {np.nanmean(self.error):.4f}, max {np.nanmax(self.error):.4f} "
                         f"(from {np.median(self.error_rows):.0f} rows per head)")
        if self.seconds is not None:
            split = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in self.seconds.items())
            lines.append(f"time, all threads together: {split}")
        return "\n".join(lines)

    def _reason(self):
        if self.predicted is None:
            return "no choice"
        exact, near_far = (f"{1e3 * self.predicted[path]:.2f} ms" for path in ("exact", "near_far"))
        return f"expected to take {exact} exact, {near_far} near/far"


def visited_fraction(near, summaries, first, keys, causal, window, sinks):
    """As in `AttentionInfo`; near and summaries (..., L) of queries at position `first` and on."""
    if not causal:
        return ((min(sinks, keys) + near + summaries) / max(keys, 1)).astype(np.float32)
    seen = np.maximum(first + 1 + np.arange(near.shape[-1]), 0)  # (L,) keys
    sealed = np.maximum((seen - 1) // window - 1, 0) * window
    exact = seen - sealed + np.minimum(sinks, sealed)
    return ((exact + near + summaries) / np.maximum(seen, 1)).astype(np.float32)


def check_k(k):
    if k is None:
        return None
    if np.ndim(k) > 0:
        raise TypeError(
            "k= is the number of near-field keys (an integer), not the key array; "
            "arrays are positional: attention(query, key, value, k=256)"
        )
    return integer(k, "k", 1)


def check_tolerance(tolerance):
    if tolerance is None:
        return None
    if isinstance(tolerance, np.ndarray) and tolerance.ndim == 0:
        tolerance = tolerance[()]
    if not isinstance(tolerance, (numbers.Real, np.floating)):
        raise TypeError(f"tolerance must be a number, got {type(tolerance).__name__}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be above 0 and below 1, got {tolerance}")
    return float(tolerance)


def attention(query, key, value, /, *, k=None, tolerance=None, plan=None, far_field=True, causal=False, window=None, sinks=None,
              scale=None, attn_mask=None, visit=None, metric=None, last_exact=0, selector=None, return_lse=False,
              return_info=False, out=None, num_threads=None, seed=0, **others):
    """Softmax attention, exact or near/far, on the CPU.

    ``out[i] = sum_j softmax_j(scale * query[i] . key[j]) value[j]``.

    Parameters
    ----------
    query : array_like, shape (..., H, L, d), (H, L, d) or (L, d)
        float32, float16, bfloat16 (``ml_dtypes.bfloat16``, or its bits as uint16). float64 is computed by the slow oracle
        in ``icecore.reference``. Any strides; copied if the last axis is not contiguous.
    key : array_like, shape (..., H_k, S, d)
        Same dtype and number of dimensions; H must be a multiple of H_k (grouped-query attention: query head h reads key
        head ``h // (H // H_k)``). 1 <= d <= 512.
    value : array_like, shape (..., H_k, S, d_v)
        1 <= d_v <= 512.
    k : int, optional
        Near-field keys per query besides sinks and window. None, or k >= S: exact attention. Otherwise keys are grouped in
        cells; a query opens the cells in which an error would weigh most until they hold at least k keys, and sums those
        exactly. Where that would not be faster than exact attention (short inputs), the call computes exactly.
    tolerance : float, optional
        Instead of k: the relative error of the output to aim for in every head, ``sum |out - exact| / sum |exact|``, between 0
        and 1. How far to open cells for it is measured in the call: sampled rows of each head are attended exactly as well, and
        heads that would need too much become exact. An estimate from these rows, not a bound; what it came to is
        `AttentionInfo.error`, and a warning says so where it ends well above the tolerance. 0.05 is a good start.
    plan : LayerPlan, optional
        Instead of k, tolerance, window and sinks: what `calibrate` found for this layer, ``plan[layer]``.
    far_field : bool, default True
        Every unopened cell contributes through its mean key and mean value. False is the published rule of IceFormer: the k
        visited keys with the largest scores, the rest dropped.
    causal : bool, default False
        Query i sees keys up to S - L + i (aligned bottom-right, as a cache needs it).
    window : int, optional
        With k=None: sliding-window attention, a query sees only the keys less than `window` positions away, and the sinks.
        With k and causal: at least the last `window` keys (up to twice as many) are exact; default 512. With k and not
        causal it must be None.
    sinks : int, optional
        First keys that are always exact and visible in spite of a window. Default 16 with k and causal, else 0.
    scale : float, optional
        Default ``1 / sqrt(d)``.
    attn_mask : array_like, optional
        Broadcasts to (..., L, S). bool: True keeps. Floating: added to the scaled scores; -inf hides a key, and the lowest
        finite number does where another key is left (a row of nothing else is the mean of all values, as in PyTorch). In
        near/far attention hidden keys count neither near nor far; cells of which some keys are hidden or biased are opened, so
        that scattered masks leave little to gain, while padding, documents and windows leave most.
    visit : int, optional
        With far_field=False: keys to visit per query, at least k; default ``max(8 * k, 1024)``. ``visit=S`` finds the exact
        top k.
    metric : array_like, (H_k, d, d) or (H_k, d), optional
        With k or tolerance: second moments of queries (`query_metric`), or their diagonals, which say which keys are near one
        another; no score changes. Default: with causal=True those of the queries that stand at the keys of each sealed segment,
        so that no row depends on a later one; else those of this call's queries. A chunk (queries of the last tokens only)
        knows no queries of the tokens before it: segments there take the metric of its first window of queries with a
        tolerance, which is exact, and of their own keys with k. ``np.ones((H_k, d))`` is none.
    last_exact : int, default 0
        With k, tolerance or a plan: the last so many queries attend exactly. Where a prompt ends, the answer may hang on one
        key, which an error that is a mean over many rows does not protect.
    selector : {"pages"}, optional
        With k: another method of choosing keys, for comparisons. ``"pages"`` is Quest's: of pages of 16 keys those that could
        hold the largest scores, by their componentwise maxima and minima, until they hold k keys, and the page that a query
        sees a part of; the rest is dropped. It always runs where k < S, and takes no tolerance, window, sinks, mask or metric.
    return_lse : bool, default False
        Also return the natural logarithm of the sum of exponentials, float32, shape (..., L). With a tolerance half its error
        counts as one more component of the output's, whether it is returned or not: it is an estimate, off by up to twice the
        tolerance on average, and by more in single rows.
    return_info : bool, default False
        Also return an `AttentionInfo`, as the last item.
    out : ndarray, optional
        Result array: shape (..., L, d_v), query's dtype, writable, sharing no memory with the inputs.
    num_threads : int, optional
        For this call; default as in `get_num_threads`.
    seed : int, default 0
        Of the cells' sampled parents. The same seed gives the same bits for any number of threads.

    Returns
    -------
    out : ndarray, shape (..., L, d_v), query's dtype
    lse : ndarray of float32, shape (..., L)
        Only with return_lse.
    info : AttentionInfo
        Only with return_info.

    Raises
    ------
    TypeError
        A dtype that is not supported, arrays of different dtypes, an argument that is not of its type, an array as ``k=``.
    ValueError
        Shapes that do not fit, numbers out of range, `out` read-only or overlapping an input, a plan of other heads or widths.
    MemoryError
        Nothing was written then.

    Notes
    -----
    A query that sees no key gives 0 and lse -inf, never NaN. A key that is not visible contributes nothing, whatever it holds.
    NaN and inf in visible inputs propagate as IEEE arithmetic has it; by way of cell means they reach every query that uses the
    cell, and an inf may come out as NaN.

    With a far field, queries, keys, values and weights are rounded to bfloat16 on machines that multiply it natively, unless
    the tolerance is below 0.01; sums are in float32.

    Exact: O(L S (d + d_v)) time; extra memory under 8 MB a thread. Near/far: about
    O(L (window + k + S / 256 + cells of expanded parents) (d + d_v) + S^2 / 256 d) time and, for a moment, up to two copies of
    keys and values (of 16 bits where they are rounded, and then one more).

    Thread safe: calls may run at once, on separate `out`. The GIL is released. Ctrl-C interrupts long calls.

    References
    ----------
    .. [1] IceFormer: Accelerated Inference with Long-Sequence Transformers on CPUs, ICLR 2024, arXiv 2405.02842.
    .. [2] FlashAttention, arXiv 2205.14135 (the blocking of the exact path).
    .. [3] Quest, arXiv 2406.10774 (``selector="pages"``).
    """
    refuse_names("attention", others)
    k, tolerance = check_k(k), check_tolerance(tolerance)
    if tolerance is not None and (k is not None or not far_field):
        raise ValueError(f"tolerance={tolerance} replaces k and needs the far field; got k={k}, far_field={far_field}")
    if plan is not None:
        published = None if far_field else far_field
        check_plan(plan, k=k, tolerance=tolerance, window=window, sinks=sinks, visit=visit, metric=metric, far_field=published)
    if selector is not None:
        check_selector(selector, k, plan=plan, tolerance=tolerance, window=window, sinks=sinks, attn_mask=attn_mask,
                       visit=visit, metric=metric, far_field=None if far_field else far_field)
    sparse = k is not None or tolerance is not None
    window = None if window is None else integer(window, "window", 0)
    sinks = None if sinks is None else integer(sinks, "sinks", 0)
    integer(seed, "seed", 0)
    seed = operator.index(seed) % 2**64
    if visit is not None:
        visit = integer(visit, "visit", 1)
        if k is None or far_field:
            raise ValueError(f"visit={visit} needs k and far_field=False")
        if visit < k:
            raise ValueError(f"visit must be at least k={k}, got {visit}")
    if sparse and not causal and window is not None:
        raise ValueError(f"window={window} with k or tolerance needs causal=True")
    threads = threads_for_call(num_threads) or 0
    problem = check_problem(query, key, value)
    if (sparse or plan is not None) and problem.key.shape[2] > MAX_KEYS:
        raise ValueError(f"key has {problem.key.shape[2]} rows; expected at most {MAX_KEYS} with k, tolerance or a plan")
    scale = check_scale(scale, problem.query.shape[-1])
    metric = check_metric(metric, problem.key.shape[1], problem.key.shape[3])
    last_exact = min(integer(last_exact, "last_exact", 0), problem.shape[2])
    if metric is not None and not sparse:
        raise ValueError("metric needs k or tolerance")
    mask = check_mask(attn_mask, problem)
    if out is not None:
        check_out(out, problem, {"query": problem.query, "key": problem.key, "value": problem.value, "attn_mask": attn_mask})

    batch, heads, queries, _, keys, _ = problem.shape
    every = slice(None)
    if plan is not None:
        parts = plan.parts(problem, bool(causal))
    elif not sparse or (k is not None and far_field and k >= keys):
        parts = [(every, every, Settings(None, window=None if sparse else window, sinks=0 if sparse else sinks or 0))]
    elif selector is not None:
        parts = [(every, every, Settings(k, selector=selector))]
    else:
        k = 1 if tolerance is not None else max(1, min(k, keys))  # by tolerance, k counts for nothing
        parts = [(every, every, Settings(
            k, tolerance, far_field, max(8 * k, 1024) if visit is None else visit,
            (DEFAULT_WINDOW if window is None else max(window, 1)) if causal else None,
            sinks if sinks is not None else DEFAULT_SINKS if causal else 0, metric=metric,
        ))]

    result = native_result(out, problem)
    as_four = result[(None,) * (4 - result.ndim)]
    lse = np.empty((batch, heads, queries), np.float32) if return_lse else None
    infos, calls = [], []
    for query_heads, key_heads, settings in parts:
        call = _Call(problem.part(query_heads, key_heads), scale, bool(causal), threads, settings, seed, return_info)
        call.out = as_four[:, query_heads]
        if return_lse:
            call.lse = lse if len(parts) == 1 else np.empty((batch, call.out.shape[1], queries), np.float32)
        infos.append(call.run(*(None if m is None else m[:, query_heads] for m in mask), _mask_of(attn_mask, query_heads)))
        calls.append(call)
        if last_exact and settings.k is not None:
            infos[-1] = call.attend_last(last_exact, infos[-1], mask, query_heads, attn_mask)
        if return_lse and len(parts) > 1:
            lse[:, query_heads] = call.lse
    if out is not None and result is not out:
        out[...] = result

    shape = problem.out_shape[:-1]
    returned = [out if out is not None else result]
    if return_lse:
        returned.append(lse.reshape(shape))
    if return_info:
        returned.append(_joined(infos, shape))
    _warn_of_errors(calls)
    return returned[0] if len(returned) == 1 else tuple(returned)


@dataclass(frozen=True)
class Settings:
    """How some heads are computed: exactly where k is None, with `window` and `sinks`; else by near/far attention.

    head_tolerance : ndarray of float32 (H,), of each query head; `tolerance` is then their mean.
    head_threshold : ndarray of float32 (H,), where measuring starts; without a tolerance they stay in force.
    head_cell_size : ndarray of int64 (H_k,), of each key head; `cell_size` is then their mean.
    metric : ndarray of float32 (H_k, d, d), second moments of queries; None: as the core finds them.
    """

    k: int | None
    tolerance: float | None = None
    far_field: bool = True
    visit: int = 1
    window: int | None = None
    sinks: int = 0
    cell_size: int = CELL_SIZE
    head_tolerance: np.ndarray | None = None
    head_threshold: np.ndarray | None = None
    head_cell_size: np.ndarray | None = None
    metric: np.ndarray | None = None
    selector: str | None = None  # with k: another method
    rounded: bool = True  # to bfloat16, where the machine multiplies it and the tolerance allows it


def check_selector(selector, k, **others):
    """That `selector` is one, and comes with k and nothing else."""
    if selector not in SELECTORS:
        raise ValueError(f"selector must be one of {', '.join(SELECTORS)}, got {selector!r}")
    if k is None:
        raise ValueError(f"selector={selector!r} needs k=, the keys to attend to")
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"selector={selector!r} takes k alone; got {', '.join(given)} as well")


def check_plan(plan, **others):
    """That `plan` is of one layer and stands alone."""
    if not hasattr(plan, "parts"):
        raise TypeError(f"plan must be a LayerPlan, plan[layer] of what calibrate returns, got {type(plan).__name__}")
    given = [f"{name}={value}" for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"plan replaces k, tolerance, window, sinks, visit and metric; got {', '.join(given)}")


def _mask_of(attn_mask, heads):
    """What a mask of any number of dimensions says of some heads."""
    if attn_mask is None or np.ndim(attn_mask) < 3 or np.shape(attn_mask)[-3] == 1:
        return attn_mask
    return np.asarray(attn_mask)[..., heads, :, :]


def _last_rows(attn_mask, count):
    """The last `count` queries' rows of a mask of any number of dimensions."""
    if attn_mask is None or np.ndim(attn_mask) < 2 or np.shape(attn_mask)[-2] == 1:
        return attn_mask
    return np.asarray(attn_mask)[..., -count:, :]


def _joined(infos, shape):
    """One `AttentionInfo` of those of all parts, whose arrays are (batch, heads, L); its arrays are of `shape`."""

    def arrays(name, shape):
        parts = [getattr(info, name) for info in infos]
        return None if any(part is None for part in parts) else np.concatenate(parts, axis=1).reshape(shape)

    def sums(name):
        parts = [getattr(info, name) for info in infos if getattr(info, name) is not None]
        return {key: sum(part[key] for part in parts) for key in parts[0]} if parts else None

    paths = {info.path for info in infos}
    return AttentionInfo(
        paths.pop() if len(paths) == 1 else "mixed",
        *(arrays(name, shape) for name in ("near_keys", "captured_mass", "missed_mass_bound", "summaries", "visited_fraction")),
        *map(sums, ("seconds", "predicted")),
        *(arrays(name, shape[:-1]) for name in ("error", "error_standard_error", "error_rows")),
    )


def _warn_of_errors(calls):
    """One warning where heads ended above their tolerance by more than the measurement can be wrong."""
    over = [pair for call in calls for pair in call.over]
    if over:
        error, tolerance = max(over, key=lambda pair: pair[0] / pair[1])
        warnings.warn(
            f"{len(over)} heads ended above their tolerance: at worst a measured error of {error:.3g} where {tolerance:.3g} "
            "was asked for; a smaller tolerance or exact attention keeps them within it", RuntimeWarning, stacklevel=3,
        )


def attend_by(query, key, value, settings, *, causal, return_info=False):
    """Attention of one sequence by given settings: (out, info); for measurements."""
    problem = check_problem(query, key, value)
    call = _Call(problem, check_scale(None, problem.query.shape[-1]), causal, 0, settings, 0, return_info)
    call.out = np.empty(problem.out_shape, problem.dtype)[(None,) * (4 - len(problem.out_shape))]
    info = call.run(None, None, None)
    return call.out[0], info


def rounds(tolerance):
    """Whether near/far attention may round to bfloat16."""
    return tolerance is None or tolerance >= LEAST_ROUNDED_TOLERANCE


class _Call:
    """One checked call of some heads on its way to a path; each path fills `out` and `lse`."""

    def __init__(self, problem, scale, causal, threads, settings, seed, return_info):
        self.problem, self.scale, self.causal, self.threads = problem, scale, causal, threads
        self.settings, self.seed, self.return_info = settings, seed, return_info
        self.out = self.lse = None
        self.over = []  # (measured error, tolerance) of heads that ended above it

    def run(self, keep, bias, attn_mask):
        """Take the path that the settings name, or exact attention where near/far does not pay; an `AttentionInfo` or None."""
        s, p, predicted = self.settings, self.problem, None
        if p.is_double:
            info = self._reference(attn_mask)
        elif s.k is None:
            info = self._exact(s.window, s.sinks, keep, bias)
        elif s.selector is not None:
            info = self._pages()
        else:
            pays = not s.far_field
            if s.far_field and p.query.size and p.key.size:
                pays, predicted = self._near_far_pays()
            info = self._near_far(keep, bias) if pays else self._exact(None, 0, keep, bias)
        return replace(info, predicted=predicted) if self.return_info else None

    def attend_last(self, count, info, mask, query_heads, attn_mask):
        """Attend the last `count` queries exactly, in the place of what is there; the info of all."""
        mask = [None if m is None else m[:, query_heads, -count:] for m in mask]
        problem, exact = self.problem.last(count), Settings(None)
        last = _Call(problem, self.scale, self.causal, self.threads, exact, self.seed, self.return_info)
        last.out = self.out[:, :, -count:]
        last.lse = None if self.lse is None else np.empty(last.out.shape[:3], np.float32)
        own = last.run(*mask, _last_rows(_mask_of(attn_mask, query_heads), count))
        if self.lse is not None:
            self.lse[:, :, -count:] = last.lse
        if info is None or info.path == own.path:
            return info
        for name, rows in (("near_keys", own.near_keys), ("captured_mass", own.captured_mass), ("missed_mass_bound", 0.0),
                           ("summaries", 0), ("visited_fraction", 1.0)):
            if getattr(info, name) is not None:
                getattr(info, name)[:, :, -count:] = rows
        return info

    def _arrays(self):
        p = self.problem
        out = self.out if self.out.dtype == np.float32 else self.out.view(np.uint16)
        return p.native_dtype, native_view(p.query), native_view(p.key), native_view(p.value), out, self.lse

    def _exact(self, window, sinks, keep, bias):
        _native.attend_exact(*self._arrays(), self.scale, self.causal, -1 if window is None else window, sinks, keep, bias,
                             self.threads)
        return self._exact_info(window, sinks, keep, bias) if self.return_info else None

    def _pages(self):
        near = np.empty(self.problem.shape[:3], np.int32) if self.return_info else None
        _native.attend_pages(*self._arrays(), self.scale, self.causal, self.settings.k, near, self.threads)
        return AttentionInfo("pages", near, np.full(near.shape, np.nan, np.float32)) if self.return_info else None

    def _near_far_pays(self):
        """Whether near/far is expected to be faster than exact attention, and the expected seconds of both."""
        work, model = self._work(), _cost_model.model_in_force()
        predicted = model.predict(work)
        return _cost_model.near_far_pays(work, predicted, model), predicted

    def _work(self):
        p, s, bfloat16 = self.problem, self.settings, self.problem.native_dtype == _native.BFLOAT16
        return _cost_model.count_work(
            p.shape, p.key.shape[1], causal=self.causal, bfloat16=bfloat16,
            stored_bfloat16=_cost_model.stores_bfloat16(bfloat16, rounds(s.tolerance)), k=s.k, tolerance=s.tolerance,
            window=s.window, sinks=s.sinks, cell_size=s.cell_size, threads=self.threads or _native.default_threads(),
        )

    def _near_far(self, keep, bias):
        s, shape = self.settings, self.problem.shape[:3]
        near, mass, bound, summaries, seconds, errors, prices = None, None, None, None, None, [None] * 3, {}
        if self.return_info:
            near, summaries = np.empty(shape, np.int32), np.empty(shape, np.int32)
            mass, bound = np.empty(shape, np.float32), np.empty(shape, np.float32) if s.far_field else None
            seconds = np.empty(3)
        if self.return_info and s.tolerance is None and self.lse is None:
            self.lse = np.empty(shape, np.float32)  # its error counts, too
        if s.tolerance is not None:
            errors = [np.empty(shape[:2], dtype) for dtype in (np.float32, np.float32, np.int32)]
            prices = _cost_model.model_in_force().prices(self._work())
        rounding = s.far_field and s.rounded and rounds(s.tolerance)
        _native.attend_near_far(*self._arrays(), self.scale, self.causal, s.sinks, keep, bias, s.k, s.visit, bool(s.far_field),
                                s.tolerance or 0.0, s.head_tolerance, s.head_threshold, s.metric, bool(rounding), s.window or 1,
                                s.cell_size, s.head_cell_size, self.seed, near, mass, bound, summaries, seconds, *errors,
                                self.threads, **prices)
        if s.tolerance is not None:
            self._note_errors(*errors)
        if not self.return_info:
            return None
        if s.tolerance is None and s.head_threshold is None:
            errors = self._errors_of_rows(keep, bias)
        split = dict(zip(("sealing", "attending", "measuring"), map(float, seconds), strict=True))
        visited = None
        if s.far_field:
            queries, _, keys = self.problem.shape[2:5]
            visited = visited_fraction(near, summaries, keys - queries, keys, self.causal, s.window, s.sinks)
        measured = dict(zip(("error", "error_standard_error", "error_rows"), errors, strict=True))
        return AttentionInfo("near_far", near, mass, bound, summaries, visited, split, **measured)

    def _errors_of_rows(self, keep, bias):
        """(error, standard error, rows) of each query head, by attending sampled rows exactly; of rows that have far keys."""
        p, (batch, heads, queries) = self.problem, self.problem.shape[:3]
        offset = p.key.shape[2] - queries
        first = min(max(0, 2 * self.settings.window - offset), queries) if self.causal else 0
        rows = np.unique(np.linspace(first, queries - 1, MEASURED_QUERIES).astype(int)) if first < queries else np.empty(0, int)
        distance, size = np.zeros((batch, heads, len(rows))), np.zeros((batch, heads, len(rows)))
        for i, row in enumerate(rows):
            one = slice(row, row + 1)
            keys = row + 1 + offset if self.causal else None
            masks = [None if m is None else m[:, :, one, :keys] for m in (keep, bias)]
            exact = _Call(p.row(row, keys), self.scale, False, self.threads, Settings(None), 0, False)
            exact.out, exact.lse = np.empty_like(self.out[:, :, one]), np.empty((batch, heads, 1), np.float32)
            exact.run(*masks, None)
            truth, own = (widened(a)[:, :, 0].astype(np.float64) for a in (exact.out, self.out[:, :, one]))
            with np.errstate(invalid="ignore", over="ignore"):
                mass = np.expm1(np.float64(self.lse[:, :, row]) - exact.lse[:, :, 0])
            size[..., i] = np.linalg.norm(truth, axis=-1)
            distance[..., i] = np.hypot(np.linalg.norm(own - truth, axis=-1), 0.5 * size[..., i] * np.nan_to_num(mass))
        with np.errstate(invalid="ignore", divide="ignore"):
            error = distance.sum(axis=-1) / size.sum(axis=-1)
            standard = np.sqrt(((distance - error[..., None] * size) ** 2).sum(axis=-1)) / size.sum(axis=-1)
        return error.astype(np.float32), standard.astype(np.float32), np.full((batch, heads), len(rows), np.int32)

    def _note_errors(self, error, standard_error, rows):
        s = self.settings
        tolerance = np.broadcast_to(s.tolerance if s.head_tolerance is None else s.head_tolerance, error.shape)
        with np.errstate(invalid="ignore"):
            over = error - standard_error > USUAL_ERROR * tolerance
        self.over = list(zip(error[over].tolist(), tolerance[over].tolist(), strict=True))

    def _reference(self, attn_mask):
        """In float64, where nobody waits for speed: a tolerance is kept by exact attention."""
        from icecore import reference

        p, s = self.problem, self.settings
        options = {"causal": self.causal, "scale": self.scale, "sinks": s.sinks, "attn_mask": attn_mask}
        if s.selector is not None:
            out, lse, near = reference.pages_attention(p.query, p.key, p.value, k=s.k, causal=self.causal, scale=self.scale)
            info = AttentionInfo("reference", near.astype(np.int32), np.full(near.shape, np.nan, np.float32))
        elif s.k is None or s.tolerance is not None:
            window, sinks = (s.window, s.sinks) if s.k is None else (None, 0)
            out, lse = reference.attention(p.query, p.key, p.value, window=window, **options | {"sinks": sinks})
            info = self._exact_info(window, sinks, *check_mask(attn_mask, p)) if self.return_info else None
        else:
            out, lse, near, mass = reference.near_far_attention(
                p.query, p.key, p.value, k=s.k, moments=self._moments(), far_field=s.far_field, block=s.window or 1,
                visit=s.visit, seed=self.seed, cell_size=s.cell_size if s.head_cell_size is None else s.head_cell_size,
                **options,
            )
            info = AttentionInfo("reference", near, mass)
        self.out[...] = out
        if self.lse is not None:
            self.lse[...] = lse
        return info if info is None else replace(info, path="reference")

    def _moments(self):
        if self.settings.metric is not None or self.causal:
            return self.settings.metric
        return query_metric(self.problem.query, self.problem.key.shape[1])

    def _exact_info(self, window, sinks, keep, bias):
        """All visible keys are near, and hold all the mass."""
        from icecore.reference.dense import visible_count, visible_keys

        batch, heads, queries, _, keys, _ = self.problem.shape
        near = np.empty((batch, heads, queries), np.int32)
        near[...] = visible_count(queries, keys, self.causal, window, sinks)
        if keep is not None or bias is not None:
            visible = visible_keys(queries, keys, self.causal, window, sinks)
            for b, h in np.ndindex(batch, heads):
                unmasked = keep[b, h] != 0 if keep is not None else bias[b, h] != -np.inf
                near[b, h] = np.count_nonzero(visible & unmasked, axis=-1)
        return AttentionInfo("exact", near, (near > 0).astype(np.float32))


def merge_states(outs, lses):
    """Merge attention results over disjoint sets of keys into the result over all of them.

    Parameters
    ----------
    outs : sequence of ndarray, each of shape (..., L, d_v)
        Results of `attention` for the same queries; uint16 is read as the bits of bfloat16.
    lses : sequence of ndarray, each of shape (..., L)
        Their natural-log sums of exponentials (``return_lse=True``).

    Returns
    -------
    out : ndarray, shape (..., L, d_v), dtype of ``outs[0]``
    lse : ndarray of float32, shape (..., L)

    Raises
    ------
    ValueError
        Empty or unequal sequences, or shapes that differ.

    Notes
    -----
    ``lse = log sum_n exp(lse_n)``, ``out = sum_n exp(lse_n - lse) out_n``: associative and commutative up to rounding. Where
    every part saw no key (lse -inf) the result is 0 and -inf.
    """
    outs, lses = [np.asarray(o) for o in outs], [np.asarray(s) for s in lses]
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs and lses must be equally many and not empty, got {len(outs)} and {len(lses)}")
    for o, s in zip(outs, lses, strict=True):
        if o.shape != outs[0].shape or s.shape != outs[0].shape[:-1]:
            expected = f"{outs[0].shape} and {outs[0].shape[:-1]}"
            raise ValueError(f"outs and lses must have shapes {expected}, got {o.shape} and {s.shape}")
    stacked = np.stack([s.astype(np.float64) for s in lses])
    top = stacked.max(axis=0)
    shift = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(stacked - shift)
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    share = weights / np.where(total == 0.0, 1.0, total)
    # a part that saw nothing adds nothing, whatever its out holds
    parts = (np.where(w[..., None] == 0.0, 0.0, w[..., None] * widened(o)) for w, o in zip(share, outs, strict=True))
    return narrowed(sum(parts), outs[0].dtype), lse.astype(np.float32)
