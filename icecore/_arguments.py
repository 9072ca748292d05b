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
    check_selector,
    check_tolerance,
)


def parts_of(problem, *, causal, plan, selector, attn_mask, **how):
    """[(query heads, key heads, Settings)], heads as slices.

    how : k, tolerance, far_field, window, sinks, visit and metric, as of `attention`.
    """
    given = how | {"far_field": None if how["far_field"] else how["far_field"]}  # which says nothing while it is True
    if plan is not None:
        check_plan(plan, **given)
    if selector is not None:
        check_selector(selector, check_k(given.pop("k")), plan=plan, attn_mask=attn_mask, **given)
    if plan is not None:
        _check_keys(problem)
        return plan.parts(problem, causal)
    sparse = how["k"] is not None or how["tolerance"] is not None
    settings = _near_far(problem, causal, **how) if sparse else _exact(**how)
    if selector is not None and settings.k is not None:
        settings = Settings(settings.k, selector=selector)
    return [(slice(None), slice(None), settings)]


def _exact(*, window, sinks, visit, metric, **others):
    sinks = 0 if sinks is None else integer(sinks, "sinks", 0)
    if visit is not None:
        raise ValueError(f"visit={visit} needs k and far_field=False")
    if metric is not None:
        raise ValueError("metric needs k or tolerance")
    return EXACT if window is None else Settings(None, window=integer(window, "window", 0), sinks=sinks)


def _near_far(problem, causal, *, k, tolerance, far_field, window, sinks, visit, metric):
    k, tolerance, keys = check_k(k), check_tolerance(tolerance), problem.key.shape[2]
    if tolerance is not None and (k is not None or not far_field):
        raise ValueError(f"tolerance={tolerance} replaces k and needs the far field; got k={k}, far_field={far_field}")
    if window is not None and not causal:
        raise ValueError(f"window={window} with k or tolerance needs causal=True")
    window = integer(DEFAULT_WINDOW if window is None else window, "window", 0) if causal else None
    sinks = integer(sinks, "sinks", 0) if sinks is not None else DEFAULT_SINKS if causal else 0
    visit = _check_visit(visit, k, far_field)
    metric = check_metric(metric, problem.key.shape[1], problem.key.shape[3])
    _check_keys(problem)
    if k is not None and far_field and k >= keys:
        return EXACT
    k = 1 if k is None else max(1, min(k, keys))  # by tolerance, k counts for nothing
    return Settings(k, tolerance, far_field, max(8 * k, 1024) if visit is None else visit,
                    None if window is None else max(window, 1), sinks, metric=metric)


def _check_visit(visit, k, far_field):
    if visit is None:
        return None
    visit = integer(visit, "visit", 1)
    if far_field:
        raise ValueError(f"visit={visit} needs k and far_field=False")
    if visit < k:
        raise ValueError(f"visit must be at least k={k}, got {visit}")
    return visit


def _check_keys(problem):
    if problem.key.shape[2] > MAX_KEYS:
        raise ValueError(f"key has {problem.key.shape[2]} rows; expected at most {MAX_KEYS} with k, tolerance or a plan")
