"""Exact attention against PyTorch and naive NumPy: prefill and decode shapes, float32 and bfloat16.

    python -m pytest bench/bench_exact.py                 (pytest-benchmark's own table)
    python bench/bench_exact.py [prefill] [decode]        (ratios side by side, as quoted in bench/README.md)
    python bench/bench_exact.py small                     (what a call costs that has next to nothing to do)
"""

import sys

import numpy as np
import pytest
from baselines import naive_numpy, torch_array, torch_sdpa
from data import gaussian
from measure import alternate, machine, relative_error
from recorded import record

import icecore

PREFILL = [(n, d, causal) for n in (1024, 4096, 16384) for d in (64, 128) for causal in (False, True)]
DECODE = [8192, 32768, 131072]
TYPES = ["float32", "bfloat16"]


def storage(name):
    """The NumPy dtype of a storage type."""
    if name == "float32":
        return np.float32
    return pytest.importorskip("ml_dtypes").bfloat16


def heads(length):
    """So many heads that a call takes long enough to time."""
    return max(1, 8192 // length)


def prefill_calls(length, dim, causal, dtype):
    """Calls on equal inputs, and the inputs."""
    arrays = gaussian(heads(length), heads(length), length, length, dim)
    ours = [a.astype(storage(dtype)) for a in arrays]
    calls = {
        "icecore": lambda: icecore.attention(*ours, causal=causal),
        "torch": torch_sdpa(*arrays, causal=causal, bfloat16=dtype == "bfloat16"),
    }
    return calls, arrays


def decode_calls(length, dtype):
    """One query for each of 8 heads over `length` keys."""
    arrays = gaussian(8, 8, 1, length, 64)
    ours = [a.astype(storage(dtype)) for a in arrays]
    calls = {
        "icecore": lambda: icecore.attention(*ours, causal=True),
        "torch": torch_sdpa(*arrays, causal=True, bfloat16=dtype == "bfloat16"),
    }
    return calls, arrays


def small_calls(threads):
    """A thousand calls of one query for each of 9 heads over 64 keys."""
    arrays = gaussian(9, 9, 1, 64, 64)
    attend, torch = (lambda: icecore.attention(*arrays, num_threads=threads)), torch_sdpa(*arrays, causal=False)
    calls = {"icecore": attend} if threads else {"icecore": attend, "torch": torch}
    return {name: lambda call=call: [call() for _ in range(1000)] for name, call in calls.items()}


def oracle(arrays, rows=slice(None), **options):
    """float64 results of some query rows."""
    query, key, value = (a.astype(np.float64) for a in arrays)
    return icecore.attention(query[:, :, rows], key, value, **options)


def run(benchmark, calls, method, error, flop, bytes_read):
    if method == "torch":
        pytest.importorskip("torch")
    benchmark.extra_info.update(machine(), error=error, gflop=flop / 1e9, megabytes=bytes_read / 1e6)
    benchmark.pedantic(calls[method], rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("method", ["icecore", "torch"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("length", "dim", "causal"), PREFILL)
def test_prefill(benchmark, length, dim, causal, dtype, method):
    benchmark.group = f"prefill {length} d={dim} {'causal' if causal else 'full'} {dtype}"
    if method == "torch":
        pytest.importorskip("torch")
    calls, arrays = prefill_calls(length, dim, causal, dtype)
    rows = slice(length - 4, length)  # the error on the last queries, which see the same keys either way
    exact = oracle(arrays, rows, causal=causal)
    out = calls[method]()
    out = np.asarray(out, np.float32) if method == "icecore" else torch_array(out)
    error = relative_error(out[:, :, rows], exact)
    assert error < (1e-5 if dtype == "float32" else 2e-2)
    flop = heads(length) * 4 * length * length * dim / (2 if causal else 1)
    run(benchmark, calls, method, error, flop, sum(a.nbytes for a in arrays))


@pytest.mark.parametrize("method", ["icecore", "torch"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("length", DECODE)
def test_decode(benchmark, length, dtype, method):
    benchmark.group = f"decode {length} {dtype}"
    if method == "torch":
        pytest.importorskip("torch")
    calls, arrays = decode_calls(length, dtype)
    exact = oracle(arrays)
    out = calls[method]()
    error = relative_error(np.asarray(out, np.float32) if method == "icecore" else torch_array(out), exact)
    assert error < (1e-5 if dtype == "float32" else 2e-2)
    run(benchmark, calls, method, error, 8 * 4 * length * 64, sum(a.nbytes for a in arrays))


@pytest.mark.parametrize("method", ["icecore", "numpy"])
def test_against_naive_numpy(benchmark, method):
    benchmark.group = "naive NumPy 2048"
    arrays = gaussian(2, 2, 2048, 2048, 64)
    calls = {"icecore": lambda: icecore.attention(*arrays, causal=True), "numpy": naive_numpy(*arrays, causal=True)}
    error = relative_error(calls[method](), oracle(arrays, causal=True))
    assert error < 1e-5
    run(benchmark, calls, method, error, 2 * 2 * 2048 * 2048 * 64, sum(a.nbytes for a in arrays))


def print_small():
    print("| 9 heads × 64 keys, one query | icecore us | torch us |\n|---|---|---|")
    for name, threads in (("threads by default", None), ("one thread", 1)):
        seconds = alternate(small_calls(threads), rounds=31)
        ours, torch = (f"{np.median(seconds[of]) * 1e3:.1f}" if of in seconds else "-" for of in ("icecore", "torch"))
        print(f"| {name} | {ours} | {torch} |", flush=True)


def main(wanted):
    print(machine())
    if "small" in wanted:
        print_small()
        wanted = set(wanted) - {"small"}
    if not wanted:
        return
    print("| shape | type | icecore ms | torch ms | torch / icecore |\n|---|---|---|---|---|")
    for dtype in TYPES:
        cases = []
        if "prefill" in wanted:
            cases += [(f"{heads(n)} × {n}, d={d}{', causal' * c}", prefill_calls(n, d, c, dtype)) for n, d, c in PREFILL]
        if "decode" in wanted:
            cases += [(f"decode, 8 heads × {n}", decode_calls(n, dtype)) for n in DECODE]
        for name, (calls, _) in cases:
            seconds = alternate(calls)
            ours, torch = np.median(seconds["icecore"]), np.median(seconds["torch"])
            ratio = np.median(seconds["torch"] / seconds["icecore"])
            print(f"| {name} | {dtype} | {ours * 1e3:.2f} | {torch * 1e3:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    record()
    main(sys.argv[1:] or ["prefill", "decode"])
