"""Near/far attention against exact attention and PyTorch: time and error, build time included, and the frontier of the two.

    python -m pytest bench/bench_near_far.py
    python bench/bench_near_far.py [--length 8192 32768 131072] [--dinov2] [--gaussian] [--methods NAME ...]
                                   [--rows FILE] [--figure FILE] [--speed-up FILE]
    python bench/bench_near_far.py --memory [--length 32768 131072]
    python bench/bench_near_far.py --growth [--length 8192 32768 131072] [--methods NAME ...]

The causal sets are SmolLM2's (data.py); beyond 8192 tokens they are continued, and their errors say little about models. Errors
are those of sampled queries, in float64. PyTorch at 131,072 is timed on one key head of three, and multiplied. Rows are
added to a file, of which the figures are drawn. `--memory` prints what a call needs beyond its inputs and output, `--growth`
how time grows with the length where all of it is continued alike.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from baselines import torch_sdpa
from data import capture, gaussian
from index_data import dinov2_heads
from measure import alternate, machine
from recorded import record

import icecore

METHODS = {
    "tolerance 0.2": {"tolerance": 0.2},
    "tolerance 0.17": {"tolerance": 0.17},
    "tolerance 0.15": {"tolerance": 0.15},
    "tolerance 0.1": {"tolerance": 0.1},
    "tolerance 0.05": {"tolerance": 0.05},
    "tolerance 0.04": {"tolerance": 0.04},
    "tolerance 0.03": {"tolerance": 0.03},
    "tolerance 0.03, window 768": {"tolerance": 0.03, "window": 768},
    "tolerance 0.02": {"tolerance": 0.02},
    "tolerance 0.02, window 768": {"tolerance": 0.02, "window": 768},
    "k=64": {"k": 64},
    "k=256": {"k": 256},
    "tolerance 0.15, metric of the queries": {"tolerance": 0.15, "of_queries": True},
    "k=256, metric of the queries": {"k": 256, "of_queries": True},
}
#: Options that calls which are not causal have no use for, or have by themselves.
OF_CAUSAL_CALLS = {"window", "of_queries"}
TORCH = {"torch float32": False, "torch bfloat16": True}


def near_far(query, key, value, *, of_queries=False, **options):
    """`icecore.attention`; of_queries: in the metric of the call's queries, found within the call."""
    if of_queries:
        options["metric"] = icecore.query_metric(query, key.shape[1])
    return icecore.attention(query, key, value, **options)


def workload(name):
    """(source, query, key, value, options) of "8192", "dinov2 6", "gaussian bfloat16" and the like."""
    if name.startswith("gaussian"):
        arrays = gaussian(9, 3, 8192, 8192, 64)
        if name.endswith("bfloat16"):
            from ml_dtypes import bfloat16

            arrays = [array.astype(bfloat16) for array in arrays]
        return "iid Gaussian", *arrays, {"causal": True}
    if name.startswith("dinov2"):
        arrays = dinov2_heads(int(name.split()[1]))
        return f"DINOv2 layer {name.split()[1]}", *arrays, {"causal": False}
    return *capture(int(name)), {"causal": True}


def truth(query, key, value, causal, rows, k=256):
    """Float64 outputs of some queries: exact, and by the k largest scores alone."""
    query, key, value = (array.astype(np.float32) for array in (query, key, value))
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
    distance, size = np.linalg.norm(out.astype(np.float32) - exact, axis=-1), np.linalg.norm(exact, axis=-1)
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
            return near_far(query, key, value, **options, **METHODS.get(method, {}))
    if method in METHODS:
        rows = np.linspace(query.shape[2] // 4, query.shape[2] - 1, 12).astype(int)
        mean, worst = error(call()[0][:, rows], truth(query, key, value, options["causal"], rows)[0])
        assert mean < 0.3
        benchmark.extra_info.update(error=mean, worst_head=worst)
    benchmark.pedantic(call, rounds=3, warmup_rounds=1)


def compare(name, with_torch=True, chosen=tuple(METHODS)):
    """Rows for one workload: dicts of method, ms, ratios, errors, near keys."""
    source, query, key, value, options = workload(name)
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    methods = {method: METHODS[method] for method in chosen if options["causal"] or not OF_CAUSAL_CALLS & {*METHODS[method]}}
    calls = {method: lambda o=o: near_far(query, key, value, **options, **o) for method, o in methods.items()}
    factor = {}
    if length <= 32768:
        calls["exact"] = lambda: icecore.attention(query, key, value, **options)
    if with_torch:
        part = 1 if length <= 32768 else key.shape[1]
        arrays = query[:, : query.shape[1] // part], key[:, : key.shape[1] // part], value[:, : key.shape[1] // part]
        for method, bfloat16 in TORCH.items():
            calls[method] = torch_sdpa(*arrays, bfloat16=bfloat16, **options)
            factor[method] = part
    seconds = alternate(calls, rounds=5 if length <= 8192 else 3 if length <= 32768 else 1, warm=length <= 32768)
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
        if method in methods:
            out, info = near_far(query, key, value, return_info=True, **options, **METHODS[method])
            mean, worst = error(out[0][:, rows], exact)
            row |= {"error": float(mean), "worst": float(worst)}
            facts = f"{mean:.4f} | {worst:.3f} | {info.near_keys.mean():.0f} | {info.captured_mass.mean():.3f} |"
        found.append(row)
        figures = " | ".join("" if np.isnan(r) else f"{r:.2f}" for r in ratios)
        print(f"| {method} | {row['ms']:.0f} | {figures} | {facts}", flush=True)
    found.append({"workload": name, "method": "exact top-256", "error": float(error(top, exact)[0])})
    return found


#: What belongs together in a figure.
KINDS = (("tolerance", "o-", "near/far by tolerance"), ("k=", "s-", "near/far by k"))


def figure(rows, path):
    """Error against time; exact top-256 as a line, since nobody finds it for free."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = ("8192", "32768", "131072", "dinov2 1", "dinov2 6", "dinov2 10")
    names = [name for name in shown if any(row["workload"] == name for row in rows)]
    columns = min(len(names), 3)
    shape = -(-len(names) // columns), columns
    drawing, axes = plt.subplots(*shape, figsize=(3.2 * columns, 5.8), layout="constrained", squeeze=False)
    labels = {}
    for axis, name in zip(axes.flat, names, strict=False):
        own = {row["method"]: row for row in rows if row["workload"] == name}
        for kind, style, label in KINDS:
            methods = [name for name in own if name.startswith(kind) and not OF_CAUSAL_CALLS & {*METHODS[name]}]
            points = sorted((own[name]["ms"], own[name]["error"]) for name in methods)
            if points:
                axis.loglog(*zip(*points, strict=True), style, label=label)
        axis.axhline(own["exact top-256"]["error"], color="gray", linestyle=":", label="error of exact top-256")
        for method, color in (("exact", "tab:green"), ("torch float32", "tab:red")):
            if method in own:
                axis.axvline(own[method]["ms"], color=color, linestyle="--", label=f"time of {method}")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.set(title=name, xlabel="ms", xlim=(10 ** np.floor(np.log10(axis.get_xlim()[0])), None), ylim=(0.005, 0.9))
        labels |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for axis in axes[:, 0]:
        axis.set_ylabel("relative error of the output")
    drawing.legend(labels.values(), labels, loc="outside lower center", ncols=3, fontsize=8)
    drawing.savefig(path, dpi=110)


def speed_up(rows, path):
    """How many times faster than PyTorch, against the length of causal prefill."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    shown = {f"tolerance {tolerance}": f"near/far, tolerance {tolerance}" for tolerance in (0.17, 0.1, 0.05, 0.02)}
    for method, label in (shown | {"exact": "exact"}).items():
        points = [(int(r["workload"]), r["ratios"][1]) for r in rows if r["method"] == method and r["workload"].isdigit()]
        axis.loglog(*zip(*sorted(points), strict=True), "o-", base=2, label=label)
    lengths = sorted({int(row["workload"]) for row in rows if row["workload"].isdigit()})
    axis.axhline(1, color="gray", linestyle=":", label="PyTorch float32")
    axis.set(xlabel="tokens", ylabel="times faster than PyTorch", title="causal prefill, SmolLM2's heads, two threads")
    axis.set_xticks(lengths, [f"{length // 1024}k" for length in lengths])
    ticks = [1, 2, 4, 8, 16, 32]
    axis.set_yticks(ticks, map(str, ticks))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    drawing.savefig(path, dpi=110)


#: Of `--memory`: reads the high-water mark of the process around one call (Linux).
MEMORY = """
import numpy as np, icecore
heads, key_heads, length, causal, dtype, options = {case}
rng = np.random.default_rng(0)
query, key, value = (rng.standard_normal((1, h, length, 64), np.float32) for h in (heads, key_heads, key_heads))
if dtype != "float32":
    import ml_dtypes
    query, key, value = (array.astype(ml_dtypes.bfloat16) for array in (query, key, value))
out = np.ones_like(query)
icecore.attention(query[:, :, :64], key[:, :, :64], value[:, :, :64])
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
icecore.attention(query, key, value, causal=causal, out=out, **options)
print((status("VmHWM") - before) / 1e6, (key.nbytes + value.nbytes) / 1e6)
"""


def memory(lengths):
    """Print what calls need beyond inputs and output, by the keys and values."""
    print("| keys | type | setting | MB beyond inputs and output | × keys and values |")
    print("|---|---|---|---|---|")
    for length in map(int, lengths):
        for dtype in ("float32", "bfloat16"):
            for causal in (True, False):
                case = (9, 3, length, causal, dtype, {"tolerance": 0.1} if causal else {"k": 64})
                run = [sys.executable, "-c", MEMORY.format(case=case)]
                beyond, held = map(float, subprocess.run(run, check=True, capture_output=True, text=True).stdout.split())
                setting = "causal, tolerance 0.1" if causal else "not causal, k=64"
                print(f"| {length} | {dtype} | {setting} | {beyond:.0f} | {beyond / held:.2f} |", flush=True)


def growth(lengths, chosen):
    """Print times of lengths of one kind of text: the first 2048 tokens, continued; and the exponent from the shortest on."""
    lengths = sorted(map(int, lengths))
    arrays = {length: capture(length, 2048)[1:] for length in lengths}
    print("| method | keys | ms | near keys | time grows like n to the |")
    print("|---|---|---|---|---|")
    for method in chosen:
        options = {"causal": True, **METHODS[method]}
        calls = {n: lambda n=n, options=options: icecore.attention(*arrays[n], **options) for n in lengths}
        seconds = alternate(calls, rounds=3)
        first = np.median(seconds[lengths[0]])
        for length in lengths:
            near = icecore.attention(*arrays[length], return_info=True, **options)[1].near_keys.mean()
            time = np.median(seconds[length])
            exponent = f"{np.log(time / first) / np.log(length / lengths[0]):.2f}" if length > lengths[0] else ""
            print(f"| {method} | {length} | {1e3 * time:.0f} | {near:.0f} | {exponent} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", nargs="*", default=["8192", "32768"])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--dinov2", action="store_true")
    parser.add_argument("--gaussian", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--rows", metavar="FILE")
    parser.add_argument("--figure", metavar="FILE")
    parser.add_argument("--speed-up", metavar="FILE")
    given = parser.parse_args()
    print(machine())
    if given.memory:
        return memory(given.length)
    if given.growth:
        return growth(given.length, given.methods)
    kept = Path(given.rows) if given.rows else None
    rows = json.loads(kept.read_text()) if kept and kept.exists() else []
    names = [*given.length, *(f"dinov2 {layer}" for layer in (1, 6, 10) if given.dinov2)]
    names += [f"gaussian {dtype}" for dtype in ("float32", "bfloat16") if given.gaussian]
    for name in names:
        rows = [row for row in rows if row["workload"] != name] + compare(name, not given.no_torch, given.methods)
        if kept:
            kept.write_text(json.dumps(rows, indent=1))
    if given.figure:
        figure(rows, given.figure)
    if given.speed_up:
        speed_up(rows, given.speed_up)


if __name__ == "__main__":
    record()
    main()
