"""Attention to given keys against gathering and attending in PyTorch, and against exact attention over all keys.

    python -m pytest bench/bench_attend_indices.py               (pytest-benchmark's own table)
    python bench/bench_attend_indices.py [shapes] [heads]        (ratios side by side, as quoted in bench/README.md)
"""

import sys

import numpy as np
import pytest
from baselines import torch_array, torch_gather
from bench_exact import TYPES, storage
from data import gaussian
from measure import alternate, machine, relative_error
from recorded import record

import icecore

HEADS, KEY_HEADS, QUERIES, KEYS, DIM = 9, 3, 4096, 32768, 64
COUNTS = [64, 256, 1024]
#: How the query heads of a key head choose: each its own keys, or all the same ones.
SHARING = {"own": HEADS, "shared": KEY_HEADS}


def chosen(heads, queries, keys, count, seed=0):
    """(1, heads, queries, count) random indices."""
    return np.random.default_rng(seed).integers(0, keys, (1, heads, queries, count), dtype=np.int32)


def calls_of(sharing, count, dtype, queries=QUERIES, keys=KEYS):
    """Calls on equal inputs, the inputs, and the indices."""
    arrays = gaussian(HEADS, KEY_HEADS, queries, keys, DIM)
    ours = [a.astype(storage(dtype)) for a in arrays]
    indices = chosen(SHARING[sharing], queries, keys, count)
    calls = {
        "icecore": lambda: icecore.attend_indices(*ours, indices),
        "torch": torch_gather(*arrays, indices, bfloat16=dtype == "bfloat16"),
    }
    return calls, arrays, indices


@pytest.mark.parametrize("method", ["icecore", "torch"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("count", COUNTS)
def test_attend_indices(benchmark, count, sharing, dtype, method):
    benchmark.group = f"{QUERIES} queries, {count} of {KEYS} keys, {sharing} {dtype}"
    pytest.importorskip("torch")
    calls, arrays, indices = calls_of(sharing, count, dtype)
    out = calls[method]()
    out = np.asarray(out, np.float32) if method == "icecore" else torch_array(out)
    query, key, value = (a.astype(np.float64) for a in arrays)
    exact = icecore.attend_indices(query[:, :, :2], key, value, indices[:, :, :2])
    error = relative_error(out[:, :, :2], exact)
    assert error < (1e-5 if dtype == "float32" else 2e-2)
    benchmark.extra_info.update(machine(), error=error, pairs=HEADS * QUERIES * count)
    benchmark.pedantic(calls[method], rounds=5, warmup_rounds=1)


def table(*columns):
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def row(*cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def shapes():
    table("keys a query", "lists", "type", "icecore ms", "ns a pair", "torch ms", "torch / icecore")
    for dtype in TYPES:
        for count in COUNTS:
            for sharing in SHARING:
                calls, _, _ = calls_of(sharing, count, dtype)
                seconds = alternate(calls, rounds=3)
                ours, torch = np.median(seconds["icecore"]), np.median(seconds["torch"])
                pair, ratio = ours / (HEADS * QUERIES * count), np.median(seconds["torch"] / seconds["icecore"])
                row(count, sharing, dtype, f"{ours * 1e3:.1f}", f"{pair * 1e9:.2f}", f"{torch * 1e3:.0f}", f"{ratio:.1f}")
        arrays = [a.astype(storage(dtype)) for a in gaussian(HEADS, KEY_HEADS, QUERIES, KEYS, DIM)]
        exact = np.median(alternate({"exact": lambda a=arrays: icecore.attention(*a)}, rounds=1)["exact"])
        row(f"{KEYS}: `attention`", "", dtype, f"{exact * 1e3:.0f}", f"{exact / (HEADS * QUERIES * KEYS) * 1e9:.2f}", "", "")


def heads():
    """Query heads that share a list: row by row up to 8, then in panels."""
    table("query heads a list", *(f"{dtype}, ns a pair" for dtype in TYPES))
    for group in (1, 2, 4, 8, 9, 16, 48):
        cells = []
        for dtype in TYPES:
            arrays = [a.astype(storage(dtype)) for a in gaussian(group, 1, 512, KEYS, DIM)]
            indices = chosen(1, 512, KEYS, 512)
            seconds = alternate({"icecore": lambda a=arrays, i=indices: icecore.attend_indices(*a, i)}, rounds=5)
            cells.append(f"{np.median(seconds['icecore']) / (group * 512 * 512) * 1e9:.2f}")
        row(group, *cells)


if __name__ == "__main__":
    record()
    print(machine())
    for part in sys.argv[1:] or ["shapes", "heads"]:
        {"shapes": shapes, "heads": heads}[part]()
