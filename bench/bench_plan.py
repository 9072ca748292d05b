"""A plan made from one text (or picture) on another one, against every single setting: time and error side by side.

    python bench/bench_plan.py smollm2 [--tolerance 0.02] [--layers 0 3 6 ...] [--plan FILE] [--source] [--whole]
    python bench/bench_plan.py dinov2

SmolLM2-135M: the plan comes from the first 8192 tokens of Python's manual, the test is the next 8192 of it (and with
``--source`` the source of argparse, another kind of text). DINOv2 ViT-S/14: astronaut.png, tested on coffee.png, 8101 patches.
For each layer of the test all settings take turns; times are sums of medians over the layers, errors root mean squares over
the layers of mean |out - exact| / mean |exact| (all heads, all queries from 1024 on where causal). The last column is the time
of the best single setting of equal error, interpolated along the frontier of all single settings (logarithms of both), over the
plan's. PyTorch's attention takes its turns too.

``--whole``: instead the whole of SmolLM2 by the plan and by single settings: seconds of attention, perplexity of the second
half of the test, and the mean Kullback-Leibler divergence of its next tokens from those of exact attention, by which the last
column is then taken.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
from baselines import torch_sdpa
from index_data import cached, normalized_picture
from measure import alternate, machine, relative_error
from recorded import record

import icecore
from icecore import nn
from icecore.evaluation.texts import manual

LENGTH = 8192
SINGLE = {
    "smollm2": [{"tolerance": t, "window": w} for w in (128, 256, 512) for t in (0.01, 0.02, 0.05, 0.1)]
    + [{"k": k, "window": 512} for k in (64, 256)],
    "dinov2": [{"tolerance": t} for t in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)] + [{"k": k} for k in (64, 256)],
}
WHOLE = [{"tolerance": t, "window": w} for w in (512, 768) for t in (0.02, 0.03, 0.05)]
PICTURES = {"plan": "astronaut.png", "test": "coffee.png"}


def texts(tokenizer, source):
    """{"plan": tokens, "test": tokens}."""
    tokens = tokenizer.encode(manual())
    if source:
        return {"plan": tokens[:LENGTH], "test": tokenizer.encode(Path(argparse.__file__).read_text(encoding="utf-8"))[:LENGTH]}
    return {"plan": tokens[:LENGTH], "test": tokens[LENGTH : 2 * LENGTH]}


def load(model, source):
    """(weights, {"plan": run, "test": run}, the model's attention, causal); ``run(attention=...)`` runs the model."""
    if model == "dinov2":
        weights = nn.load_dinov2_onnx(nn.find_dinov2())
        runs = {name: partial(nn.encode_image, weights, normalized_picture(file, 1260)) for name, file in PICTURES.items()}
        return weights, runs, nn.bidirectional_attention, False
    path = nn.find_smollm2()
    weights = nn.load_gguf(path)
    inputs = texts(nn.load_tokenizer(path), source)
    return weights, {name: partial(nn.forward, weights, tokens) for name, tokens in inputs.items()}, nn.exact_attention, True


def captured(model, run, attention, layers, source):
    """{layer: (q, k, v)} of the test, from the cache of the benchmarks where it is there."""

    def compute():
        arrays = {}

        def take(layer, query, key, value):
            if layer in layers:
                arrays.update({f"{n}{layer}": a.astype(np.float16) for n, a in zip("qkv", (query, key, value), strict=True)})

        nn.capture_layers(run, attention=attention)(take)
        return arrays

    stored = cached(f"plan_{model}{'_source' * source}_{'_'.join(map(str, layers))}", compute)
    return {layer: tuple(stored[f"{n}{layer}"].astype(np.float32) for n in "qkv") for layer in layers}


def described(options):
    return ", ".join(f"{name} {value}" for name, value in options.items())


def compare(arrays, plan, single, causal, rounds):
    """{setting: (seconds, error, largest error of a layer)}, the errors' root mean square over layers."""
    found = {}
    for layer, qkv in arrays.items():
        calls = {described(options): partial(icecore.attention, *qkv, causal=causal, **options) for options in single}
        calls |= {"plan": partial(icecore.attention, *qkv, causal=causal, plan=plan[layer])}
        calls |= {"exact": partial(icecore.attention, *qkv, causal=causal)}
        batch = [array[None] for array in qkv]
        torch = {
            "torch float32": torch_sdpa(*batch, causal=causal),
            "torch bfloat16": torch_sdpa(*batch, causal=causal, bfloat16=True),
        }
        rows = slice(1024 if causal else 0, None)
        exact = calls["exact"]()[:, rows]
        for name, times in alternate(calls | torch, rounds=rounds).items():
            error = relative_error(calls[name]()[:, rows], exact) if name in calls else np.nan
            found.setdefault(name, []).append((np.median(times), error))
    columns = {name: np.array(each).T for name, each in found.items()}
    return {name: (times.sum(), np.sqrt(np.square(errors).mean()), errors.max()) for name, (times, errors) in columns.items()}


def frontier_seconds(points, error):
    """Seconds of the best of `points` (seconds, error) of this error, interpolated; NaN beyond them."""
    best, points = [], sorted(points)
    for seconds, own in points:
        if not best or own < best[-1][1]:
            best.append((seconds, own))
    times, errors = np.log(np.array(best)).T
    if not errors.min() <= np.log(error) <= errors.max():
        return np.nan
    return float(np.exp(np.interp(np.log(error), errors[::-1], times[::-1])))


def report(found):
    print("| setting | ms, all layers | error | worst layer | best single setting of equal error / it |\n|---|---|---|---|---|")
    single = [(s, e) for name, (s, e, _) in found.items() if name not in ("plan", "exact") and not np.isnan(e)]
    for name, (seconds, error, worst) in found.items():
        ratio = f"{frontier_seconds(single, error) / seconds:.2f}" if name == "plan" else ""
        accuracy = "| |" if np.isnan(error) else f"{error:.4f} | {worst:.3f} |"
        print(f"| {name} | {1e3 * seconds:.0f} | {accuracy} {ratio} |")


def whole_model(weights, run, plan, rounds):
    """[(setting, median seconds of attention, perplexity ratio, divergence)] of the second half of the test; all take turns."""
    tokens = np.asarray(run.args[1])
    half, seconds = len(tokens) // 2, 0.0

    def timed(attend):
        def attention(query, key, value, *, layer):
            nonlocal seconds
            start = time.perf_counter()
            out = attend(query, key, value, layer=layer)
            seconds += time.perf_counter() - start
            return out

        return attention

    def single(query, key, value, *, layer, **options):
        return icecore.attention(query, key, value, causal=True, **options)

    calls = {"exact": single, "plan": plan.attention} | {described(options): partial(single, **options) for options in WHOLE}
    times, rows, exact = {name: [] for name in calls}, [], None
    for turn in range(rounds):
        for name, call in calls.items():
            seconds = 0.0
            hidden = run(attention=timed(call))
            times[name].append(seconds)
            if name == "exact":
                exact = hidden
            if turn == 0:
                perplexity = nn.perplexity(nn.score(weights, hidden, tokens, half)[0])
                rows.append((name, perplexity, nn.divergence(weights, hidden, exact, half)))
    return [(name, np.median(times[name]), own / rows[0][1], divergence) for name, own, divergence in rows]


def report_whole(rows):
    print("| setting | attention, s | perplexity ratio | divergence | best single setting of equal divergence / it |")
    print("|---|---|---|---|---|")
    single = [(seconds, divergence) for name, seconds, _, divergence in rows if name not in ("exact", "plan")]
    for name, seconds, ratio, divergence in rows:
        gain = f"{frontier_seconds(single, divergence) / seconds:.2f}" if name == "plan" else ""
        print(f"| {name} | {seconds:.2f} | {ratio:.4f} | {divergence:.5f} | {gain} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(SINGLE))
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--layers", type=int, nargs="*", help="of the test (default: every third)")
    parser.add_argument("--plan", type=Path, help="read the plan from this file, or make it and write it there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", action="store_true")
    parser.add_argument("--whole", action="store_true", help="the whole model instead of single layers")
    given = parser.parse_args()
    if given.whole and given.model != "smollm2":
        parser.error("--whole is of smollm2")
    print(machine())
    weights, runs, attention, causal = load(given.model, given.source)
    if given.plan and given.plan.exists():
        plan = icecore.Plan.load(given.plan)
    else:
        captures = nn.capture_layers(runs["plan"], attention=attention)
        plan = icecore.calibrate(captures, tolerance=given.tolerance, causal=causal)
        if given.plan:
            plan.save(given.plan)
    print(plan)
    if given.whole:
        report_whole(whole_model(weights, runs["test"], plan, given.rounds))
        return
    layers = list(plan)[::3] if given.layers is None else given.layers
    arrays = captured(given.model, runs["test"], attention, layers, given.source)
    report(compare(arrays, plan, SINGLE[given.model], causal, given.rounds))


if __name__ == "__main__":
    record()
    main()
