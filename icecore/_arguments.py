"""How each run of heads of a call is computed: the arguments of attention() that say it, checked, with their defaults."""

from __future__ import annotations

from icecore._arrays import integer
from icecore._metric import check_metric
from icecore._plan import check_plan
from icecore._settings import (
    DEFAULT_SINKS,
    DEFAULT_WINDOW,
    EXACT,
    MAX_KEYS,
    Settings,
    check_k,
    check_tolerance,
    check_window,
)
from icecore.selectors import check_selector

_ALL = slice(None)


def parts_of(problem, causal, plan, selector, masks, how):
    """[(query heads, key heads, Settings)], heads as slices.

    masks : dict of attn_mask and key_ranges; how : dict of k, tolerance, window, sinks and metric, as of `attention`.
    """
    if plan is not None:
        check_plan(plan, **how)
    if selector is not None:
        selector = check_selector(selector, causal, plan=plan, **masks, **how)
    if plan is not None:
        _check_keys(problem)
        return plan.parts(problem, causal)
    sparse = how["k"] is not None or how["tolerance"] is not None
    if selector is not None:
        settings = _selected(problem, selector)
    else:
        settings = _near_far(problem, causal, **how) if sparse else _exact(**how)
    return [(_ALL, _ALL, settings)]


def _exact(*, k, tolerance, window, sinks, metric):
    sinks = 0 if sinks is None else integer(sinks, "sinks", 0)
    if metric is not None:
        raise ValueError("metric needs k or tolerance")
    return EXACT if window is None else Settings(None, window=check_window(window), sinks=sinks)


def _near_far(problem, causal, *, k, tolerance, window, sinks, metric):
    k, tolerance, keys = check_k(k), check_tolerance(tolerance), problem.key.shape[2]
    if tolerance is not None and k is not None:
        raise ValueError(f"tolerance={tolerance} replaces k; got k={k} as well")
    if isinstance(window, (tuple, list)):
        raise ValueError(f"window={window} with k or tolerance: expected an integer (which keys are exact); a pair is of exact "
                         "attention, and key_ranges hide keys on every path")
    if window is not None and not causal:
        raise ValueError(f"window={window} with k or tolerance needs causal=True")
    window = integer(DEFAULT_WINDOW if window is None else window, "window", 0) if causal else None
    sinks = integer(sinks, "sinks", 0) if sinks is not None else DEFAULT_SINKS if causal else 0
    metric = check_metric(metric, problem.key.shape[1], problem.key.shape[3])
    _check_keys(problem)
    if k is not None and k >= keys:
        return EXACT
    k = 1 if k is None else max(1, min(k, keys))  # by tolerance, k counts for nothing
    return Settings(k, tolerance, None if window is None else max(window, 1), sinks, metric=metric)


def _selected(problem, selector):
    _check_keys(problem)
    return EXACT if selector._takes_all(problem.key.shape[2]) else Settings(None, selector=selector)


def _check_keys(problem):
    if problem.key.shape[2] > MAX_KEYS:
        ways = "k, tolerance, a plan or a selector"
        raise ValueError(f"key has {problem.key.shape[2]} rows; expected at most {MAX_KEYS} with {ways}")
