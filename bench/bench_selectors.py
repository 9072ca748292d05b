"""Other methods of choosing keys against exact and near/far attention: time, error, and how many of the best keys are found.

    python -m pytest bench/bench_selectors.py
    python bench/bench_selectors.py [--length 8192 16384]

P-DCI has the published settings, two composite indices of seven projections in trees of two levels, and visits the usual
number of keys. NumPy's row is exact top-k attention by a sort of all scores, which needs all of them at once. Errors are
those of sampled queries, in float64: relative to exact attention, and to exact top-k attention. Causal, on SmolLM2's heads
(data.py); beyond 8192 tokens they are continued.
"""

import argparse
from functools import cache, partial

import numpy as np
import pytest
from bench_near_far import error, truth
from data import capture
from measure import alternate, machine
from recorded import record

import icecore

METHODS = {
    "exact": {},
    "near/far, k=64": {"k": 64},
    "pages, k=64": {"k": 64, "selector": "pages"},
    "pages, k=256": {"k": 256, "selector": "pages"},
    "pdci, k=64": {"k": 64, "selector": "pdci"},
    "pdci, k=256": {"k": 256, "selector": "pdci"},
    "pdci, k=64, all visited": {"k": 64, "selector": "pdci", "visit": 2**31},
}
NUMPY = "NumPy, top 64"


@cache
def workload(length):
    """(source, query, key, value, sampled rows), one key head and its query heads: the slowest take seconds."""
    source, query, key, value = capture(length)
    group = query.shape[1] // key.shape[1]
    return source, query[:, :group], key[:, :1], value[:, :1], np.linspace(length // 4, length - 1, 48).astype(int)


def numpy_top_k(query, key, value, k=64, rows=512):
    """Exact top-k attention, causal: all scores of some rows at a time, the k-th largest by a partial sort."""
    out, position = np.empty_like(query), np.arange(key.shape[2])
    for first in range(0, query.shape[2], rows):
        part = query[0, :, first : first + rows]
        scores = part @ key[0, 0].T / np.float32(np.sqrt(query.shape[-1]))  # (H, rows, S)
        scores = np.where(position <= first + np.arange(part.shape[1])[:, None], scores, -np.inf)
        minimum = np.partition(scores, -k, axis=-1)[..., -k, None]
        weights = np.exp(np.where(scores >= minimum, scores, -np.inf) - scores.max(axis=-1, keepdims=True))
        out[0, :, first : first + rows] = weights @ value[0, 0] / weights.sum(axis=-1, keepdims=True)
    return out


def calls_of(length):
    """{method: call} over one workload."""
    query, key, value = workload(length)[1:4]
    calls = {m: partial(icecore.attention, query, key, value, causal=True, **o) for m, o in METHODS.items()}
    return calls | {NUMPY: partial(numpy_top_k, query, key, value)}


def accuracy(length, method, out):
    """{"error": relative to exact attention, "beside top-k": to exact top-k attention of as many keys}."""
    _, query, key, value, rows = workload(length)
    k = METHODS.get(method, {"k": 64}).get("k")
    exact, top = truth(query, key, value, True, rows, k or 64)
    found = {"error": float(error(out[0][:, rows], exact)[0])}
    return found | {"beside top-k": float(error(out[0][:, rows], top)[0])} if k else found


@pytest.mark.parametrize("method", [*METHODS, NUMPY])
@pytest.mark.parametrize("length", [2048, 8192])
def test_selectors(benchmark, length, method):
    benchmark.group = f"selectors, {length}, {workload(length)[0]}"
    call = calls_of(length)[method]
    benchmark.extra_info.update(machine(), **accuracy(length, method, call()))
    benchmark.pedantic(call, rounds=3, warmup_rounds=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", nargs="*", type=int, default=[8192])
    print(machine())
    for length in parser.parse_args().length:
        calls = calls_of(length)
        seconds = alternate(calls, rounds=3)
        print(f"\n{length} tokens, {workload(length)[0]}, one key head\n")
        print("| method | ms | time by exact | error | beside top-k |\n|---|---|---|---|---|")
        for method, call in calls.items():
            found = accuracy(length, method, call())
            ratio = np.median(seconds[method] / seconds["exact"])
            beside = f"{found['beside top-k']:.4f}" if "beside top-k" in found else ""
            ms = 1e3 * np.median(seconds[method])
            print(f"| {method} | {ms:.0f} | {ratio:.2f} | {found['error']:.4f} | {beside} |", flush=True)


if __name__ == "__main__":
    record()
    main()
