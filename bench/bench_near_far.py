"""Near/far attention against exact attention, PyTorch and exact top-k: time and error on SmolLM2's shapes, build time included.

    python -m pytest bench/bench_near_far.py
    python bench/bench_near_far.py [LENGTH ...]           (ratios side by side, as quoted in bench/README.md)
"""

import sys

import numpy as np
import pytest
from baselines import naive_top_k, torch_sdpa
from data import capture
from measure import alternate, machine, relative_error

import icecore

LENGTHS = [8192, 16384]
BUDGETS = [64, 256]
TORCH = {"torch float32": False, "torch bfloat16": True}


def calls_on(query, key, value, budgets=BUDGETS):
    """Every method on the same causal inputs."""
    calls = {f"near/far k={k}": lambda k=k: icecore.attention(query, key, value, k=k, causal=True) for k in budgets}
    calls["exact"] = lambda: icecore.attention(query, key, value, causal=True)
    return calls


@pytest.mark.parametrize("method", [*(f"near/far k={k}" for k in BUDGETS), "exact", *TORCH])
@pytest.mark.parametrize("length", LENGTHS)
def test_causal_prefill(benchmark, length, method):
    source, query, key, value = capture(length)
    benchmark.group = f"causal prefill {length}, {source}"
    calls = calls_on(query, key, value)
    if method in TORCH:
        pytest.importorskip("torch")
        calls[method] = torch_sdpa(query, key, value, causal=True, bfloat16=TORCH[method])
    benchmark.extra_info.update(machine())
    if method.startswith("near"):
        k = int(method.split("=")[1])
        out, info = icecore.attention(query, key, value, k=k, causal=True, return_info=True)
        error = relative_error(out, calls["exact"]())
        assert error < 0.2
        benchmark.extra_info.update(error=error, path=info.path, near_keys=float(info.near_keys.mean()),
                                    captured_mass=float(info.captured_mass.mean()))
    benchmark.pedantic(calls[method], rounds=3, warmup_rounds=1)


def main(lengths):
    print(machine())
    for length in lengths:
        source, query, key, value = capture(length)
        calls = calls_on(query, key, value)
        exact = calls["exact"]()
        for name, bfloat16 in TORCH.items():
            calls[name] = torch_sdpa(query, key, value, causal=True, bfloat16=bfloat16)
        seconds = alternate(calls, rounds=5)
        print(f"\n{length} tokens, {query.shape[1]} query heads on {key.shape[1]} key heads, {source}")
        print("| method | ms | × exact | × torch float32 | × torch bfloat16 | error | near keys | captured mass |")
        print("|---|---|---|---|---|---|---|---|")
        for name, times in seconds.items():
            ratios = [np.median(seconds[other] / times) for other in ("exact", *TORCH)]
            facts = "| | |"
            if name.startswith("near"):
                k = int(name.split("=")[1])
                out, info = icecore.attention(query, key, value, k=k, causal=True, return_info=True)
                # accuracy is quoted on real captures only
                error = "" if source.endswith("continued") else f"{relative_error(out, exact):.4f}"
                facts = f"{error} | {info.near_keys.mean():.0f} | {info.captured_mass.mean():.3f} |"
            columns = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {name} | {np.median(times) * 1e3:.0f} | {columns} | {facts}", flush=True)
        if source.endswith("continued"):
            continue
        rows = np.linspace(length // 4, length - 1, 24).astype(int)
        for k in BUDGETS:
            top = naive_top_k(query, key, value, k=k, causal=True, window=512, sinks=16, rows=rows)
            near = icecore.attention(query, key, value, k=k, causal=True)[:, :, rows]
            for name, out in ((f"near/far k={k}", near), (f"exact top-{k}, sinks 16, window 512", top)):
                print(f"| {name}, 24 queries | | | | | {relative_error(out, exact[:, :, rows]):.4f} | | |")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or LENGTHS)
