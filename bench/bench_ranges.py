"""Windows to both sides and packed documents without a mask, against PyTorch with one: time, and memory besides the inputs.

    python -m pytest bench/bench_ranges.py                 (pytest-benchmark's own table)
    python bench/bench_ranges.py [--only time]              (ratios side by side, as quoted in bench/README.md)
"""

import argparse
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
from measure import alternate, machine, relative_error
from recorded import record

HEADS, DIM, WINDOW, DOCUMENTS = 4, 64, 64, 16
TYPES = ("float32", "bfloat16")


def window_calls(query, key, value):
    """Of queries that see 64 keys to both sides, as ModernBERT's local layers."""
    import torch
    from torch.nn import functional

    import icecore.torch

    def mask():
        place = torch.arange(query.shape[2])
        return (place[:, None] - place).abs() <= WINDOW

    built = None

    def by_torch():
        nonlocal built  # a model makes it once for all layers
        built = mask() if built is None else built
        return functional.scaled_dot_product_attention(query, key, value, built)

    return {
        "icecore": lambda: icecore.torch.attention(query, key, value, window=(WINDOW, WINDOW)),
        "torch, mask": by_torch,
    }


def document_calls(query, key, value):
    """Of 16 documents of equal length, one after another."""
    import torch
    from torch.nn import functional

    import icecore.torch

    length = query.shape[2]
    packed = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
    starts = torch.arange(0, length + 1, length // DOCUMENTS, dtype=torch.int32)
    apart = [tensor[0].unflatten(1, (DOCUMENTS, -1)).transpose(0, 1) for tensor in (query, key, value)]
    built = None

    def by_mask():
        nonlocal built
        number = torch.arange(length) // (length // DOCUMENTS)
        built = number[:, None] == number if built is None else built
        return functional.scaled_dot_product_attention(query, key, value, built)

    return {
        "icecore": lambda: icecore.torch.varlen_attention(*packed, starts, starts).transpose(0, 1)[None],
        "torch, mask": by_mask,
        "torch, a batch": lambda: functional.scaled_dot_product_attention(*apart).transpose(0, 1).flatten(1, 2)[None],
    }


CASES = {"window of 64 to both sides": window_calls, "16 documents": document_calls}


def calls_of(case, dtype, length):
    import torch

    torch.manual_seed(0)
    return CASES[case](*(torch.randn(1, HEADS, length, DIM).to(getattr(torch, dtype)) for _ in range(3)))


@pytest.mark.parametrize("method", ["icecore", "torch, mask"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_ranges(benchmark, case, dtype, method):
    pytest.importorskip("torch")
    calls = calls_of(case, dtype, 2048)
    out, expected = (calls[name]().float().numpy() for name in (method, "torch, mask"))
    error = relative_error(out, expected)
    assert error < (1e-5 if dtype == "float32" else 2e-2)
    benchmark.extra_info.update(machine(), error=error)
    benchmark.pedantic(calls[method], rounds=3, warmup_rounds=1)


def _grown(case, dtype, length, method):
    calls = calls_of(case, dtype, length)
    calls_of(case, dtype, DOCUMENTS)[method]()  # what a library loads at its first call
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak()
    calls[method]()
    return _peak() - before


def _peak():
    """The most memory that this process has held, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def grown(*arguments):
    """MB by which one call, its result included, raises the most that a process of its own holds (Linux)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, arguments)


def time(length):
    print("| case | type | method | ms | × icecore |\n|---|---|---|---|---|")
    for case in CASES:
        for dtype in TYPES:
            seconds = alternate(calls_of(case, dtype, length), rounds=3)
            for method, times in seconds.items():
                ratio = np.median(times / seconds["icecore"])
                print(f"| {case} | {dtype} | {method} | {np.median(times) * 1e3:.1f} | {ratio:.1f} |", flush=True)


def memory(length):
    print("| case | type | method | MB |\n|---|---|---|---|")
    for case in CASES:
        for method in calls_of(case, "float32", DOCUMENTS):
            print(f"| {case} | float32 | {method} | {grown(case, 'float32', length, method):.0f} |", flush=True)


if __name__ == "__main__":
    record()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"time": time, "memory": memory}
    parser.add_argument("--only", choices=parts, help="default: both")
    parser.add_argument("--length", type=int, default=8192)
    arguments = parser.parse_args()
    print(machine())
    for name, part in parts.items():
        if arguments.only in (None, name):
            print()
            part(arguments.length)
