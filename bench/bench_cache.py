"""Decoding from a KVCache against PyTorch: time of a step (appends inside), its 99th percentile, error, memory.

    python -m pytest bench/bench_cache.py
    python bench/bench_cache.py [--length 8192 32768 131072] [--steps 4000] [--cold] [--calls] [--file] [--batch] [--memory]
                                 [--perplexity manual source prose]

Eight key heads with one query head each, d = 64 (data.py); beyond 8192 tokens they are continued, and errors there say little
about models. PyTorch attends to the same tokens as one array, without appending; its best type for each column. `--cold`: steps
as a model takes them, with nine query heads on three key heads and 64 MB of other memory read before each; `--calls` times
append, fork, truncate; `--file` saving and opening, and the first step after it; `--batch` steps of eight sequences of
different lengths, as one cache and as eight; `--memory` of caches that grow, by that of float32's
keys and values; `--perplexity` what each storage makes of SmolLM2's.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from baselines import torch_sdpa
from data import LAYERS, continued, decode_heads, smollm2
from measure import machine
from recorded import record

import icecore
from icecore import nn
from icecore.evaluation import texts

BUDGETS = {
    "k=256": {"k": 256},
    "k=128": {"k": 128},
    "tolerance 0.03": {"tolerance": 0.03},
}
STORAGES = ("float32", "bfloat16", "int8", "int4")
TORCH = {"float32": False, "bfloat16": True}


def prefilled(dtype, budget, key, value, end):
    """A cache of the first `end` tokens, sealed."""
    cache = icecore.KVCache(len(key), key.shape[-1], dtype=dtype, **budget)
    for first in range(0, end, 4096):
        rows = slice(first, min(first + 4096, end))
        cache.append(key[:, rows], value[:, rows])
        cache.attend(np.zeros((len(key), 1, key.shape[-1]), np.float32))
    return cache


def decode(cache, query, key, value, first, steps):
    """Seconds of each step, outputs (heads, steps, dim), and the most bytes held at once for each number stored."""
    seconds, outs, maximum = np.empty(steps), [], 0.0
    for step in range(steps):
        rows = slice(first + step, first + step + 1)
        start = time.perf_counter()
        cache.append(key[:, rows], value[:, rows])
        outs.append(cache.attend(query[:, rows]))
        seconds[step] = time.perf_counter() - start
        if step % 8 == 0:
            maximum = max(maximum, cache.nbytes / (key[:, : rows.stop].size + value[:, : rows.stop].size))
    return seconds, np.concatenate(outs, axis=1), maximum


def truth(query, key, value, rows, k=256):
    """Float64 outputs of some tokens' queries: exact, and by the k largest scores alone."""
    exact = np.empty((len(query), len(rows), value.shape[-1]))
    top = np.empty_like(exact)
    for i, row in enumerate(rows):
        scores = np.einsum("hd,hsd->hs", query[:, row].astype(np.float64), key[:, : row + 1].astype(np.float64)) / np.sqrt(64)
        weight = np.exp(scores - scores.max(axis=1, keepdims=True))
        exact[:, i] = np.einsum("hs,hsd->hd", weight / weight.sum(axis=1, keepdims=True), value[:, : row + 1])
        weight[scores < -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]] = 0
        top[:, i] = np.einsum("hs,hsd->hd", weight / weight.sum(axis=1, keepdims=True), value[:, : row + 1])
    return exact, top


def error(out, exact):
    """Mean norm of the error by the mean norm of what is exact."""
    return np.linalg.norm(out - exact, axis=-1).mean() / np.linalg.norm(exact, axis=-1).mean()


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_decode(benchmark, dtype, budget):
    benchmark.group = f"decode 8192 {dtype}"
    _, query, key, value = decode_heads(8192)
    cache = prefilled(dtype, BUDGETS[budget], key, value, 8000)
    _, outs, _ = decode(cache, query, key, value, 8000, 64)
    rows = np.arange(0, 64, 8)
    exact, top = truth(query, key, value, 8000 + rows)
    assert error(outs[:, rows], exact) < 1.5 * error(top, exact)
    benchmark.extra_info.update(machine(), error=error(outs[:, rows], exact), top_256=error(top, exact), bytes=cache.nbytes)
    position = iter(range(8064, 8192))

    def step():
        rows = slice(at := next(position), at + 1)
        cache.append(key[:, rows], value[:, rows])
        cache.attend(query[:, rows])

    benchmark.pedantic(step, rounds=100, warmup_rounds=5)


def torch_seconds(query, key, value, rounds=25):
    """{type: median seconds} of one step."""
    found = {}
    for name, bfloat16 in TORCH.items():
        call = torch_sdpa(query[None, :, -1:], key[None], value[None], causal=False, bfloat16=bfloat16)
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        found[name] = np.median(times[5:])
    return found


def compare(length, steps):
    """Print a table of the last `steps` of `length` tokens."""
    source, query, key, value = decode_heads(length)
    rows = np.arange(0, steps, max(steps // 16, 1))
    exact, top = truth(query, key, value, length - steps + rows)
    print(f"\n{length} tokens, {len(key)} key heads, the last {steps} steps, {source}; exact top-256: {error(top, exact):.4f}")
    print("\n| storage | budget | step, ms | p99 | × torch float32 | × torch bfloat16 | error | MB, of float32, at most |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype in STORAGES:
        for name, budget in BUDGETS.items():
            cache = prefilled(dtype, budget, key, value, length - steps)
            before = torch_seconds(query, key, value)
            seconds, outs, maximum = decode(cache, query, key, value, length - steps, steps)
            after = torch_seconds(query, key, value)
            share = cache.nbytes / (key.nbytes + value.nbytes)
            ratios = [min(before[t], after[t]) / np.median(seconds) for t in TORCH]
            print(
                f"| {dtype} | {name} | {np.median(seconds) * 1e3:.3f} | {np.quantile(seconds, 0.99) * 1e3:.3f} | "
                + " | ".join(f"{ratio:.1f}" for ratio in ratios)
                + f" | {error(outs[:, rows], exact):.4f} | {cache.nbytes / 1e6:.0f}, {share:.2f} x, {maximum / 4:.2f} x |",
                flush=True,
            )


def cold(length, steps, threads=(1, 2)):
    """Print a table of steps of whole layers whose keys and values are in no cache of the processor's, as in a model that reads
    its weights between two steps of a layer. Layers and storages take turns."""
    weights, prompt, rows = np.ones(2**24, np.float32), length - steps, np.arange(0, steps, max(steps // 16, 1))
    given = [[continued(array, length) for array in smollm2(layer=layer)] for layer in LAYERS]
    caches, wanted = {}, []
    for query, key, value in given:
        group = len(query) // len(key)
        wanted.append(truth(query, key.repeat(group, axis=0), value.repeat(group, axis=0), prompt + rows)[0])
    for dtype in ("float32", "bfloat16", "int8"):
        caches[dtype] = [icecore.KVCache(len(key), key.shape[-1], dtype=dtype, tolerance=0.02) for _, key, _ in given]
        for cache, (query, key, value) in zip(caches[dtype], given, strict=True):
            cache.append(key[:, :prompt], value[:, :prompt], query[:, :prompt])
            cache.attend(query[:, prompt - 1 : prompt])
    seconds = {(dtype, count): [] for dtype in caches for count in threads}
    outs = {dtype: [[] for _ in given] for dtype in caches}
    for step in range(steps):
        one = slice(prompt + step, prompt + step + 1)
        for dtype, own in caches.items():
            for cache, (query, key, value), found in zip(own, given, outs[dtype], strict=True):
                cache.append(key[:, one], value[:, one])
                for count in threads:
                    weights.sum()
                    clock = time.thread_time if count == 1 else time.perf_counter
                    start = clock()
                    out = cache.attend(query[:, one], num_threads=count)
                    seconds[dtype, count].append(clock() - start)
                found.append(out)
    print(f"\n{length} tokens, SmolLM2, layers {', '.join(map(str, LAYERS))}, tolerance 0.02, the last {steps} steps; "
          "on one thread time of the processor\n")
    print("| storage | " + " | ".join(f"step on {count} threads, ms" for count in threads) + " | error | MB |")
    print("|---|" + "---|" * (len(threads) + 2))
    for dtype, own in caches.items():
        errors = [error(np.concatenate(out, axis=1)[:, rows], exact) for out, exact in zip(outs[dtype], wanted, strict=True)]
        times = " | ".join(f"{1e3 * np.mean(np.median(np.reshape(seconds[dtype, count], (steps, -1)), axis=0)):.3f}"
                           for count in threads)
        print(f"| {dtype} | {times} | {np.mean(errors):.4f} | {sum(cache.nbytes for cache in own) / 1e6:.0f} |", flush=True)


def calls(length):
    """Microseconds of what is not a step."""
    _, query, key, value = decode_heads(length)
    cache = prefilled("float32", {"k": 256}, key, value, length - 600)

    def clock(call):
        start = time.perf_counter()
        result = call()
        return (time.perf_counter() - start) * 1e6, result

    fork, child = clock(cache.fork)
    fork_of_bfloat16 = clock(prefilled("bfloat16", {"k": 256}, key[:, :1000], value[:, :1000], 1000).fork)[0]
    print(f"\n{length} tokens: fork {fork:.0f} us (of 1000 tokens: {fork_of_bfloat16:.0f} us)")
    first = length - 600
    one = slice(first, first + 1)
    print(f"first append after a fork: {clock(lambda: child.append(key[:, one], value[:, one]))[0]:.0f} us")
    appended = time.perf_counter()
    for i in range(first, first + 512):
        cache.append(key[:, i : i + 1], value[:, i : i + 1])
    print(f"append: {(time.perf_counter() - appended) / 512 / len(key) * 1e6:.2f} us a key and head, copying alone")
    worst = 0.0
    for i in range(first + 512, length - 16):
        cache.append(key[:, i : i + 16], value[:, i : i + 16])
        cache.attend(query[:, i : i + 16])
        worst = max(worst, clock(lambda: cache.truncate(len(cache) - 16))[0])
        cache.append(key[:, i : i + 1], value[:, i : i + 1])
    print(f"truncate of 16 tokens: at most {worst:.0f} us")


def files(length, rounds=5):
    """Print a table of a cache's file: saved, viewed and continued, loaded; medians, the file in the system's cache."""
    _, query, key, value = decode_heads(length + 1)
    rows = slice(length, length + 1)
    print(f"\n{length} tokens, {len(key)} key heads, k=256, window 512; the median of {rounds}\n")
    print("| storage | file, MB | save, s | view, ms | first step after it, ms | second, ms | a step before, ms | load, s |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype in TORCH:
        cache = prefilled(dtype, {"k": 256}, key, value, length)
        seconds = {name: [] for name in ("save", "view", "first", "second", "before", "load")}

        def clock(name, call, seconds=seconds):
            start = time.perf_counter()
            result = call()
            seconds[name].append(time.perf_counter() - start)
            return result

        def step(one):
            one.append(key[:, rows], value[:, rows])
            return one.attend(query[:, rows])

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "cache.safetensors")
            for _ in range(rounds):
                clock("save", lambda path=path, cache=cache: cache.save(path))
                fork = cache.fork()
                expected = step(fork)
                clock("before", lambda fork=fork: step(fork))
                view = clock("view", lambda path=path: icecore.KVCache.view(path))
                out = clock("first", lambda view=view: step(view))
                assert (out == expected).all()
                clock("second", lambda view=view: step(view))
                clock("load", lambda path=path: icecore.KVCache.load(path))
            size = path.stat().st_size / 1e6
        found = {name: np.median(own) for name, own in seconds.items()}
        print(
            f"| {dtype} | {size:.0f} | {found['save']:.2f} | {found['view'] * 1e3:.2f} | {found['first'] * 1e3:.2f} | "
            f"{found['second'] * 1e3:.2f} | {found['before'] * 1e3:.2f} | {found['load']:.2f} |",
            flush=True,
        )


def batches(length, rounds=40, sequences=8):
    """Print a table of steps of sequences with length / sequences, 2 length / sequences, ... tokens; caches take turns."""
    _, query, key, value = decode_heads(length)
    lengths = [length * (i + 1) // sequences - rounds for i in range(sequences)]
    print(f"\n{sequences} sequences of {lengths[0]} to {lengths[-1]} tokens, k=256; medians of {rounds} steps\n")
    print("| key heads | threads | one cache, ms | a cache for each, ms | ratio |")
    print("|---|---|---|---|---|")
    for heads in (1, 3, 8):
        for threads in sorted({1, icecore.get_num_threads()}):
            each = [prefilled("float32", {"k": 256}, key[:heads], value[:heads], n) for n in lengths]
            one = icecore.KVCache(heads, key.shape[-1], k=256, batch=sequences)
            one.append(*(np.stack([array[:heads]] * sequences) for array in (key, value)), lengths=lengths)
            one.attend(np.zeros((sequences, heads, 1, key.shape[-1]), np.float32))

            def step(new, one=one, threads=threads):
                one.append(new[1], new[2])
                return one.attend(new[0], num_threads=threads)

            def steps(new, each=each, threads=threads):
                outs = []
                for cache, *own in zip(each, *new, strict=True):
                    cache.append(own[1], own[2])
                    outs.append(cache.attend(own[0], num_threads=threads))
                return np.stack(outs)

            seconds = {step: [], steps: []}
            for turn in range(rounds):
                new = [np.stack([array[:heads, n + turn][:, None] for n in lengths]) for array in (query, key, value)]
                outs = []
                for call, own in seconds.items():
                    start = time.perf_counter()
                    outs.append(call(new))
                    own.append(time.perf_counter() - start)
                assert (outs[0] == outs[1]).all()
            own, others = (1e3 * np.median(times) for times in seconds.values())
            print(f"| {heads} | {threads} | {own:.3f} | {others:.3f} | {others / own:.2f} |", flush=True)


def perplexities(name, prompt=1024, length=3072, chunk=32):
    """Print a table of SmolLM2's perplexity of a text behind a prompt, read a few tokens at a time from caches."""
    path = nn.find_smollm2()
    weights, tokens = nn.load_gguf(path), np.asarray(nn.load_tokenizer(path).encode(texts.text(name))[:length])
    spans = [slice(0, prompt), *(slice(first, min(first + chunk, length)) for first in range(prompt, length, chunk))]
    print(f"\n{name}: tokens {prompt} to {length} of SmolLM2-135M, {chunk} at a time\n")
    print("| storage | budget | perplexity | ratio to float32's | divergence from float32 |")
    print("|---|---|---|---|---|")
    for budget in ({"k": length}, {"tolerance": 0.02}):
        exact = None
        for dtype in STORAGES:
            cache = nn.NearFarCache(dtype=dtype, **budget)
            hidden = np.concatenate([nn.forward(weights, tokens[rows], cache=cache) for rows in spans])
            exact = hidden if exact is None else exact
            wanted, own = (nn.perplexity(nn.score(weights, states, tokens, prompt)[0]) for states in (exact, hidden))
            print(
                f"| {dtype} | {', '.join(map('{}={}'.format, budget, budget.values()))} | {own:.4f} | {own / wanted:.4f} "
                f"| {nn.divergence(weights, hidden, exact, prompt):.5f} |",
                flush=True,
            )


def memory(heads=2, width=64, chunk=64, end=40000):
    """Print a table of the memory of growing caches: by float32's keys and values, and by a float32 cache of as many."""
    random, first = np.random.default_rng(0), {}  # length -> bytes of the float32 cache
    print("\n| storage | tokens | least | median | at most | by float32's cache: median | at most |\n" + "|---" * 7 + "|")
    for dtype in STORAGES:
        cache, shares = icecore.KVCache(heads, width, dtype=dtype, k=8), {}
        for length in range(chunk, end, chunk):
            rows = random.standard_normal((heads, chunk, width), np.float32)
            cache.append(rows, rows)
            cache.attend(rows[:, -1:])
            bases = length * heads * 2 * width * 4, first.setdefault(length, cache.nbytes)
            shares.setdefault(length.bit_length(), []).append([cache.nbytes / base for base in bases])
        for bits, own in shares.items():
            if bits > 12:
                (least, median, most), (_, of_cache, most_of_cache) = np.quantile(own, [0, 0.5, 1], axis=0).T
                figures = " | ".join(f"{share:.2f}" for share in (least, median, most, of_cache, most_of_cache))
                print(f"| {dtype} | {2 ** (bits - 1)} to {min(2**bits, end) - 1} | {figures} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", nargs="*", type=int, default=[8192, 32768, 131072])
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--file", action="store_true")
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--perplexity", nargs="+", metavar="TEXT", choices=texts.TEXTS)
    given = parser.parse_args()
    print(machine())
    if given.perplexity:
        for name in given.perplexity:
            perplexities(name)
        return
    if given.memory:
        memory()
        return
    for length in given.length:
        if given.cold:
            cold(length, given.steps)
        elif given.calls:
            calls(length)
        elif given.file:
            files(length)
        elif given.batch:
            batches(length)
        else:
            compare(length, given.steps)


if __name__ == "__main__":
    record()
    main()
