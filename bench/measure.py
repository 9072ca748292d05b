"""Timing side by side: the calls take turns, and medians and ratios come from the same turns."""

import time

import numpy as np

import icecore

#: Between two calls, so that the threads of one library, which spin for a while after their work, do not slow the next.
REST = 0.05


def alternate(calls, rounds=7, rest=REST, warm=True):
    """{name: call} -> {name: seconds of each round}; one unmeasured round first if `warm`, `rest` seconds between calls."""
    seconds = {name: [] for name in calls}
    for turn in range(0 if warm else 1, rounds + 1):
        for name, call in calls.items():
            if rest:
                time.sleep(rest)
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def relative_error(out, exact):
    """Mean over queries of |o - o_hat| divided by the mean of |o|."""
    out, exact = np.asarray(out, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(out - exact, axis=-1).mean() / np.linalg.norm(exact, axis=-1).mean())


def machine():
    """What a figure must say: instruction set and threads."""
    from icecore._runtime import config

    return {"isa": config()["isa active"], "threads": icecore.get_num_threads()}
