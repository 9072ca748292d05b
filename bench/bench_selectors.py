"""Other methods of choosing keys against exact and near/far attention: time, error, and how many of the best keys are found.

    python -m pytest bench/bench_selectors.py
    python bench/bench_selectors.py [--length 8192 16384]

P-DCI has the published settings, two composite indices of seven projections in trees of two levels, and visits the usual
number of keys. PyTorch's rows are the same methods in its operations (selector_baselines.py). Errors are those of sampled
queries, in float64: relative to exact attention, and to exact top-k attention of as many keys. Causal, on SmolLM2's heads
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
from selector_baselines import (
    torch_arkvale,
    torch_block_sparse,
    torch_magicpig,
    torch_minference,
    torch_retroinfer,
    torch_sparq,
    torch_top_k,
    torch_vattention,
    torch_xattention,
    torch_zeta,
)

import icecore
from icecore.reference.random import random_directions
from icecore.selectors import (
    PDCI,
    ArkVale,
    BlockSparse,
    MagicPIG,
    MInference,
    Pages,
    RetroInfer,
    SparQ,
    TopK,
    VAttention,
    XAttention,
    Zeta,
)

METHODS = {
    "exact": {},
    "near/far, k=64": {"k": 64},
    "window, 1024": {"window": 1024, "sinks": 4},
    "top_k, k=64": {"selector": TopK(64)},
    "top_k, k=256": {"selector": TopK(256)},
    "minference, 500 and 700": {"selector": MInference(500, 700)},
    "block_sparse, k=1024": {"selector": BlockSparse(1024)},
    "pages, k=64": {"selector": Pages(64)},
    "pages, k=256": {"selector": Pages(256)},
    "pdci, k=64": {"selector": PDCI(64)},
    "pdci, k=256": {"selector": PDCI(256)},
    "sparq, k=128": {"selector": SparQ(128)},
    "sparq, k=256": {"selector": SparQ(256)},
    "magicpig, 10 and 150": {"selector": MagicPIG(10, 150)},
    "xattention, stride 8, 0.9": {"selector": XAttention(8, 0.9)},
    "xattention, stride 16, 0.9": {"selector": XAttention(16, 0.9)},
    "zeta, k=256": {"selector": Zeta(256)},
    "vattention, 0.05 and 0.05": {"selector": VAttention()},
    "arkvale, k=256": {"selector": ArkVale(256)},
    "arkvale, k=1280": {"selector": ArkVale(1280)},
    "retroinfer, 1.8 % and 23.2 %": {"selector": RetroInfer()},
}
#: The same in PyTorch: a function of (query, key, value).
BASELINES = {
    "top_k, k=64, in PyTorch": partial(torch_top_k, k=64),
    "top_k, k=256, in PyTorch": partial(torch_top_k, k=256),
    "minference, 500 and 700, in PyTorch": partial(torch_minference, vertical=500, slash=700),
    "block_sparse, k=1024, in PyTorch": partial(torch_block_sparse, k=1024),
    "sparq, k=128, in PyTorch": partial(torch_sparq, k=128),
    "sparq, k=256, in PyTorch": partial(torch_sparq, k=256),
    "magicpig, 10 and 150, in PyTorch": partial(torch_magicpig, bits=10, tables=150),
    "vattention, 0.05 and 0.05, in PyTorch": partial(
        torch_vattention, k=256, sinks=128, window=128, epsilon=0.05, delta=0.05),
    "arkvale, k=256, in PyTorch": partial(torch_arkvale, k=256),
    "arkvale, k=1280, in PyTorch": partial(torch_arkvale, k=1280),
    "retroinfer, 1.8 % and 23.2 %, in PyTorch": partial(torch_retroinfer, retrieval=0.018, estimation=0.232, segment=1024),
    "zeta, k=256, in PyTorch": partial(torch_zeta, k=256, directions=random_directions(0, 3, 64)),
    "xattention, stride 8, 0.9, in PyTorch": partial(torch_xattention, stride=8, threshold=0.9),
    "xattention, stride 16, 0.9, in PyTorch": partial(torch_xattention, stride=16, threshold=0.9),
}


@cache
def workload(length):
    """(source, query, key, value, sampled rows), one key head and its query heads: the slowest take seconds."""
    source, query, key, value = capture(length)
    group = query.shape[1] // key.shape[1]
    return source, query[:, :group], key[:, :1], value[:, :1], np.linspace(length // 4, length - 1, 48).astype(int)


def calls_of(length):
    """{method: call} over one workload."""
    query, key, value = workload(length)[1:4]
    calls = {m: partial(icecore.attention, query, key, value, causal=True, **o) for m, o in METHODS.items()}
    return calls | {name: partial(baseline, query, key, value) for name, baseline in BASELINES.items()}


def accuracy(length, method, out):
    """{"error": relative to exact attention, "beside top-k": to exact top-k attention of as many keys}."""
    _, query, key, value, rows = workload(length)
    options = METHODS.get(method.removesuffix(", in PyTorch"))
    k = options.get("k") or getattr(options.get("selector"), "k", None)
    exact, top = truth(query, key, value, True, rows, k or 64)
    found = {"error": float(error(out[0][:, rows], exact)[0])}
    return found | {"beside top-k": float(error(out[0][:, rows], top)[0])} if k else found


@pytest.mark.parametrize("method", [*METHODS, *BASELINES])
@pytest.mark.parametrize("length", [2048, 8192])
def test_selectors(benchmark, length, method):
    if method in BASELINES:
        pytest.importorskip("torch")
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
