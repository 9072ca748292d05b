"""What the attention function did: counts, and warnings that are given once."""

import copy
import threading
import warnings

_lock = threading.Lock()
_counts = {}
_warned = set()


def _reset():
    _counts.update(calls=0, near_far=0, exact=0, cache=0, fallbacks={})


_reset()


def count(kind):
    """Count one call of the attention function: "near_far", "exact" or "cache"."""
    with _lock:
        _counts["calls"] += 1
        _counts[kind] += 1


def count_fallback(reason, module, way):
    """Count a call that another function computes, and warn the first time that there is this reason."""
    with _lock:
        _counts["calls"] += 1
        _counts["fallbacks"][reason] = _counts["fallbacks"].get(reason, 0) + 1
    warn_once(f"{type(module).__name__}: attention is computed by transformers' {way} function, not by icecore: {reason}")


def warn_once(message):
    """Warn the first time that there is this message."""
    with _lock:
        if message in _warned:
            return
        _warned.add(message)
    warnings.warn(message, UserWarning, stacklevel=4)


def report(*, reset=False):
    """What the registered attention functions of this process did.

    Parameters
    ----------
    reset : bool
        Begin to count anew.

    Returns
    -------
    dict
        ``calls``, and of them: ``near_far``, by a tolerance or k (icecore may still have found that exact attention is
        faster); ``exact``, those of few keys by PyTorch's function; ``cache``, from a `NearFarCache`; ``fallbacks``, a
        dictionary of the reason why another function computed them to their number. Calls in compiled graphs are not counted.
    """
    with _lock:
        counts = copy.deepcopy(_counts)
        if reset:
            _reset()
    return counts
