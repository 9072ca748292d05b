"""What a KVCache is made with: the constructor's arguments, checked, and as the core takes them."""

from __future__ import annotations

from icecore import _native
from icecore._arrays import MAX_DIM, check_seed, integer
from icecore._metric import check_metric
from icecore._plan import check_plan
from icecore._settings import CELL_SIZE, DEFAULT_SINKS, DEFAULT_WINDOW, check_k, check_tolerance

DTYPES = {
    "float32": _native.FLOAT32, "float16": _native.FLOAT16, "bfloat16": _native.BFLOAT16, "int8": _native.INT8,
    "int4": _native.INT4,
}
#: Where neither k nor tolerance is given: the error of exact top-256 attention at 8k (bench/README.md).
DEFAULT_TOLERANCE = 0.02
#: Of the core.
LARGEST_WINDOW = 2**31


def check_parameters(num_kv_heads, dim, value_dim, dtype, k, tolerance, plan, window, sinks, metric, seed, batch):
    """The constructor's arguments, checked, and what of a plan the core wants: attributes of a cache."""
    num_kv_heads, dim = integer(num_kv_heads, "num_kv_heads", 1), integer(dim, "dim", 1)
    value_dim = dim if value_dim is None else integer(value_dim, "value_dim", 1)
    for width, name in ((dim, "dim"), (value_dim, "value_dim")):
        if width > MAX_DIM:
            raise ValueError(f"{name} must be at most {MAX_DIM}, got {width}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    cell_size = head_tolerance = head_threshold = None
    metric = check_metric(metric, num_kv_heads, dim)
    if plan is not None:
        check_plan(plan, k=k, tolerance=tolerance, window=window, sinks=sinks, metric=metric)
        plan.check(plan.query_heads, num_kv_heads, dim, True)
        window, cell_size, head_tolerance, head_threshold = plan.for_cache()
        tolerance = plan.tolerance
    window, sinks = DEFAULT_WINDOW if window is None else window, DEFAULT_SINKS if sinks is None else sinks
    k, tolerance = check_k(k), check_tolerance(tolerance)
    if k is not None and tolerance is not None:
        raise ValueError(f"tolerance={tolerance} replaces k; got k={k} as well")
    if k is None and tolerance is None:
        tolerance = DEFAULT_TOLERANCE
    window, sinks = integer(window, "window", 1), integer(sinks, "sinks", 0)
    for number, name in ((window, "window"), (sinks, "sinks")):
        if number > LARGEST_WINDOW:
            raise ValueError(f"{name} must be at most {LARGEST_WINDOW}, got {number}")
    return {
        "num_kv_heads": num_kv_heads, "dim": dim, "value_dim": value_dim, "dtype": dtype, "k": k, "tolerance": tolerance,
        "plan": plan, "window": window, "sinks": sinks, "metric": metric, "seed": check_seed(seed),
        "batch": None if batch is None else integer(batch, "batch", 1),
        "_cell_size": cell_size or CELL_SIZE, "_head_tolerance": head_tolerance,
        "_head_threshold": head_threshold,
    }


def native_options(p):
    """Of `check_parameters`' result."""
    return _native.CacheOptions(
        heads=p["num_kv_heads"], dim=p["dim"], value_dim=p["value_dim"], dtype=DTYPES[p["dtype"]], near_keys=p["k"] or 1,
        tolerance=p["tolerance"] or 0.0, block=p["window"], sinks=p["sinks"], cell_size=p["_cell_size"], seed=p["seed"],
        moments=p["metric"],
    )
