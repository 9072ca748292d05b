"""Threads and instruction sets: what is built, what is usable, what is in force."""

from __future__ import annotations

import contextlib
import contextvars
import os
import platform
import sys

import numpy as np

from icecore import _cost_model, _native
from icecore._arrays import integer

MAX_THREADS = 4096

_process_threads = 0
_context_threads: contextvars.ContextVar[int] = contextvars.ContextVar("icecore_threads", default=0)


def _checked_threads(n, name):
    count = integer(n, name, -(2**62))
    if not 1 <= count <= MAX_THREADS:
        raise ValueError(f"{name} must be from 1 to {MAX_THREADS}, got {count}")
    return count


def threads_for_call(num_threads):
    """The thread count to hand to the core: the call's own, the context's, the process's, or 0 for the default."""
    if num_threads is not None:
        return _checked_threads(num_threads, "num_threads")
    return _context_threads.get() or _process_threads


def set_num_threads(n):
    """Set the number of threads that calls use when they do not say.

    Parameters
    ----------
    n : int or None
        At least 1. ``None`` restores the default: OpenMP's maximum at the time of each call (so ``threadpoolctl`` and
        ``OMP_NUM_THREADS`` work), bounded by the process's CPU affinity and the quota of its control groups.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or not from 1 to 4096.

    Notes
    -----
    A call uses no more threads than it has tasks. OpenMP ends the whole process ("libgomp: Thread creation failed") where the
    system gives it no thread that it was asked for (limits on processes or on memory): ask for few there. In a forked process
    calls start threads of their own.
    """
    global _process_threads
    _process_threads = 0 if n is None else _checked_threads(n, "n")


def get_num_threads():
    """Number of threads that a call made here and now would use; 1 without OpenMP."""
    if not _native.has_openmp():
        return 1
    return threads_for_call(None) or _native.default_threads()


@contextlib.contextmanager
def threads(n):
    """Context manager: calls inside use `n` threads. Local to the thread or task that enters it.

    Examples
    --------
    >>> with icecore.threads(1):
    ...     out = icecore.attention(q, k, v)
    """
    token = _context_threads.set(_checked_threads(n, "n"))
    try:
        yield
    finally:
        _context_threads.reset(token)


def set_isa(name):
    """Force an instruction set for the whole process, or with ``None`` the best one again.

    Parameters
    ----------
    name : str or None
        One of the usable names of `show_config`. ``ICECORE_ISA`` in the environment does the same at start; calls raise a
        RuntimeError where it names another.

    Raises
    ------
    ValueError
        If `name` is unknown, not built, or more than this machine has.
    """
    usable = _native.usable_isas()
    if name is not None and name not in usable:
        raise ValueError(f"instruction set {name!r} is not usable here; usable: {', '.join(usable)}")
    _native.set_isa(name)


def config():
    """What `show_config` prints, as a dictionary."""
    from icecore import __version__

    return {
        "icecore": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "isa built": _native.built_isas(),
        "isa usable": _native.usable_isas(),
        "isa active": _active_isa(),
        "openmp": _native.has_openmp(),
        "threads": get_num_threads(),
        "tuning": _cost_model.origin(),
    }


def _active_isa():
    name = _native.isa()
    return name if name != "none" else f"none (ICECORE_ISA is {os.environ.get('ICECORE_ISA')!r}, which is not usable here)"


def show_config(file=None):
    """Print versions, instruction sets (built, usable, active), threads, and whether the costs of attention were measured here.

    Parameters
    ----------
    file : text file, optional
        Default: standard output.
    """
    for name, value in config().items():
        print(f"{name + ':':<12} {', '.join(value) if isinstance(value, list) else value}", file=file or sys.stdout)
