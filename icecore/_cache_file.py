"""A KVCache as a file: what it holds, and how it is read."""

from __future__ import annotations

from icecore import _array_file, _native
from icecore._cache_parameters import check_parameters, native_options
from icecore._metric import from_text, to_text
from icecore._plan import LayerPlan

#: The constructor's arguments.
PARAMETERS = (
    "num_kv_heads", "dim", "value_dim", "dtype", "k", "tolerance", "plan", "window", "sinks", "metric", "seed", "batch",
)
#: Arrays of a file that are rows of keys, or of values.
_KEYS = ("keys", "sinks.keys", "open.keys", "cell.mean_key", "parent.mean_key")
_VALUES = ("values", "sinks.values", "open.values", "cell.mean_value", "parent.mean_value")
FILE = _array_file.Format("icecore.cache", "a cache", 7, dict.fromkeys(_KEYS, "dim") | dict.fromkeys(_VALUES, "value_dim"))


def parameters_of(cache):
    """The constructor's arguments, as a file holds them."""
    parameters = {name: getattr(cache, name) for name in PARAMETERS}
    if cache.plan is not None:
        parameters |= {"plan": cache.plan.content(), "tolerance": None, "window": None, "sinks": None}
    return parameters | {"metric": to_text(cache.metric)}


def read(data, path, own):
    """(checked parameters, sequences) of a file's bytes: in memory of their `own` and checked fully, or as `view` does."""
    try:
        parameters, arrays = _array_file.parse(FILE, data, verify=own)
        try:
            parameters["metric"] = from_text(parameters["metric"], *(parameters[name] for name in ("num_kv_heads", "dim")))
            if parameters["plan"] is not None:
                parameters["plan"] = LayerPlan.from_content(parameters["plan"])
            parameters = check_parameters(**parameters)
        except (KeyError, TypeError, OverflowError) as error:
            raise _array_file.Refused(f"its parameters are not those of a cache ({error})") from error
        count = parameters["batch"] or 1
        if count > len(data):
            raise _array_file.Refused(f"it is too short for batch={count}")
        sequences, reason = _native.Cache.map(native_options(parameters), count, arrays, own)
        if reason is not None:
            raise _array_file.Refused(reason)
    except ValueError as error:
        raise ValueError(f"{path} is not a usable cache file: {error}") from error
    return parameters, sequences
