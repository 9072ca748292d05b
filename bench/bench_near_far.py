"""Near/far attention against exact attention and PyTorch: time and error, build time included, and the frontier of the two.

    python -m pytest bench/bench_near_far.py
    python bench/bench_near_far.py [--length 8192 32768 131072] [--dinov2] [--figure FILE]

The causal sets are SmolLM2's (data.py); beyond 8192 tokens they are continued, and their errors say little about models. Errors
are those of sampled queries, in float64. PyTorch at 131,072 is timed on one key head of three, and multiplied.
"""

import argparse

import numpy as np
import pytest
from baselines import torch_sdpa
from data import capture
from index_data import dinov2_heads
from measure import alternate, machine

import icecore

METHODS = {
    "tolerance 0.1": {"tolerance": 0.1},
    "tolerance 0.05": {"tolerance": 0.05},
    "tolerance 0.03": {"tolerance": 0.03},
    "tolerance 0.02": {"tolerance": 0.02},
    "k=64": {"k": 64},
    "k=256": {"k": 256},
}
TORCH = {"torch float32": False, "torch bfloat16": True}


def workload(name):
    """(source, query, key, value, options) of "8192", "dinov2 6" and the like."""
    if name.startswith("dinov2"):
        arrays = dinov2_heads(int(name.split()[1]))
        return f"DINOv2 layer {name.split()[1]}", *arrays, {"causal": False}
    return *capture(int(name)), {"causal": True}


def truth(query, key, value, causal, rows, k=256):
    """Float64 outputs of some queries: exact, and by the k largest scores alone."""
    group, keys = query.shape[1] // key.shape[1], key.shape[2]
    exact = np.zeros((query.shape[1], len(rows), value.shape[-1]))
    top = np.zeros_like(exact)
    for h in range(query.shape[1]):
        for i, row in enumerate(rows):
            end = row + 1 if causal else keys
            scores = key[0, h // group, :end].astype(np.float64) @ query[0, h, row] / np.sqrt(query.shape[-1])
            weight = np.exp(scores - scores.max())
            exact[h, i] = weight @ value[0, h // group, :end] / weight.sum()
            best = np.argpartition(-scores, min(k, end - 1))[:k]
            top[h, i] = weight[best] @ value[0, h // group, best] / weight[best].sum()
    return exact, top


def error(out, exact):
    """Mean over heads and queries, and of the worst head."""
    distance, size = np.linalg.norm(out - exact, axis=-1), np.linalg.norm(exact, axis=-1)
    return distance.mean() / size.mean(), (distance.mean(axis=-1) / size.mean(axis=-1)).max()


@pytest.mark.parametrize("method", ["exact", *METHODS, *TORCH])
@pytest.mark.parametrize("name", ["8192", "16384"])
def test_near_far(benchmark, name, method):
    source, query, key, value, options = workload(name)
    benchmark.group = f"{name}, {source}"
    benchmark.extra_info.update(machine())
    if method in TORCH:
        pytest.importorskip("torch")
        call = torch_sdpa(query, key, value, bfloat16=TORCH[method], **options)
    else:
        def call():
            return icecore.attention(query, key, value, **options, **METHODS.get(method, {}))
    if method in METHODS:
        rows = np.linspace(query.shape[2] // 4, query.shape[2] - 1, 12).astype(int)
        mean, worst = error(call()[0][:, rows], truth(query, key, value, options["causal"], rows)[0])
        assert mean < 0.3
        benchmark.extra_info.update(error=mean, worst_head=worst)
    benchmark.pedantic(call, rounds=3, warmup_rounds=1)


def compare(name, with_torch=True):
    """Rows for one workload: dicts of method, ms, ratios, errors, near keys."""
    source, query, key, value, options = workload(name)
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    calls = {method: lambda o=o: icecore.attention(query, key, value, **options, **o) for method, o in METHODS.items()}
    factor = {}
    if length <= 32768:
        calls["exact"] = lambda: icecore.attention(query, key, value, **options)
    if with_torch:
        part = 1 if length <= 32768 else key.shape[1]
        arrays = query[:, : query.shape[1] // part], key[:, : key.shape[1] // part], value[:, : key.shape[1] // part]
        for method, bfloat16 in TORCH.items():
            calls[method] = torch_sdpa(*arrays, bfloat16=bfloat16, **options)
            factor[method] = part
    seconds = alternate(calls, rounds=5 if length <= 8192 else 3 if length <= 32768 else 1)
    seconds = {method: times * factor.get(method, 1) for method, times in seconds.items()}
    rows = np.linspace(length // 4 if options["causal"] else 0, length - 1, 48).astype(int)
    exact, top = truth(query, key, value, options["causal"], rows)
    print(f"\n{name}: {length} tokens, {query.shape[1]} query heads, {group} a key head, {source}; "
          f"exact top-256: error {error(top, exact)[0]:.4f}, worst head {error(top, exact)[1]:.3f}\n")
    print("| method | ms | × exact | × torch float32 | × torch bfloat16 | error | worst head | near keys | captured mass |")
    print("|---|---|---|---|---|---|---|---|---|")
    found = []
    for method, times in seconds.items():
        ratios = [np.median(seconds[other] / times) if other in seconds else np.nan for other in ("exact", *TORCH)]
        row = {"workload": name, "method": method, "ms": float(np.median(times) * 1e3), "ratios": ratios}
        facts = " | | | |"
        if method in METHODS:
            out, info = icecore.attention(query, key, value, return_info=True, **options, **METHODS[method])
            mean, worst = error(out[0][:, rows], exact)
            row |= {"error": float(mean), "worst": float(worst)}
            facts = f"{mean:.4f} | {worst:.3f} | {info.near_keys.mean():.0f} | {info.captured_mass.mean():.3f} |"
        found.append(row)
        print(f"| {method} | {row['ms']:.0f} | " + " | ".join(f"{r:.2f}" for r in ratios) + f" | {facts}", flush=True)
    found.append({"workload": name, "method": "exact top-256", "error": float(error(top, exact)[0])})
    return found


def figure(rows, path):
    """Error against time; exact top-256 as a line, since nobody finds it for free."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["workload"] for row in rows))
    drawing, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 3.4), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = {row["method"]: row for row in rows if row["workload"] == name}
        for kind, style, label in (("tolerance", "o-", "near/far by tolerance"), ("k=", "s-", "near/far by k")):
            points = sorted((row["ms"], row["error"]) for method, row in own.items() if method.startswith(kind))
            axis.loglog(*zip(*points, strict=True), style, label=label)
        axis.axhline(own["exact top-256"]["error"], color="gray", linestyle=":", label="error of exact top-256")
        for method, color in (("exact", "tab:green"), ("torch float32", "tab:red")):
            if method in own:
                axis.axvline(own[method]["ms"], color=color, linestyle="--", label=f"time of {method}")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.set(title=name, xlabel="ms", xlim=(10 ** np.floor(np.log10(axis.get_xlim()[0])), None), ylim=(0.005, 0.5))
    axes[0, 0].set_ylabel("relative error of the output")
    drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    drawing.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", nargs="*", default=["8192", "32768"])
    parser.add_argument("--dinov2", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--figure", metavar="FILE")
    given = parser.parse_args()
    print(machine())
    rows = []
    for name in [*given.length, *(f"dinov2 {layer}" for layer in (1, 6, 10) if given.dinov2)]:
        rows += compare(name, not given.no_torch)
    if given.figure:
        figure(rows, given.figure)


if __name__ == "__main__":
    main()
