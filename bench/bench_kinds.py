"""Kinds of attention that models ask for: what they cost beside plain exact attention, or against the same in PyTorch.

    python -m pytest bench/bench_kinds.py                 (pytest-benchmark's own table)
    python bench/bench_kinds.py [--rounds 9]              (ratios side by side, as quoted in bench/README.md)
"""

import argparse
import gc

import numpy as np
import pytest
from measure import alternate, machine, relative_error
from recorded import record

import icecore

TYPES = ("float32", "bfloat16")
HEADS, DIM = 8, 64


def tensors(dtype, *shapes):
    import torch

    torch.manual_seed(0)
    return [torch.randn(shape).to(getattr(torch, dtype)) for shape in shapes]


def arrays(dtype, *shapes):
    from icecore.torch import as_array

    return [as_array(tensor) for tensor in tensors(dtype, *shapes)]


# ---- Options of scores, by the time of a call without them ----

PLAIN = "none"
OPTIONS = {
    PLAIN: {},
    "softcap": {"softcap": 30.0},
    "sink logits": {"sink_logits": np.linspace(-1, 1, HEADS, dtype=np.float32)},
    "ALiBi": {"alibi_slopes": np.exp2(-np.arange(1, HEADS + 1)).astype(np.float32)},
}
#: (queries, keys)
LENGTHS = {"prefill of 4096": (4096, 4096), "step after 65536": (1, 65536)}


def score_calls(dtype, queries, keys):
    query, key, value = arrays(dtype, (HEADS, queries, DIM), *[(HEADS // 2, keys, DIM)] * 2)
    return {name: lambda options=options: icecore.attention(query, key, value, causal=True, **options)
            for name, options in OPTIONS.items()}  # fmt: skip


# ---- Calls that PyTorch computes by operations of its own ----


def latent_calls(dtype, heads=128, keys=16384):
    """A step of multi-head latent attention (DeepSeek): one latent of 576 for all heads, whose first 512 are the value."""
    import torch

    query, latent = tensors(dtype, (1, heads, 1, 576), (1, 1, keys, 576))
    query_rows, latent_rows = arrays(dtype, (1, heads, 1, 576), (1, 1, keys, 576))

    def by_torch():  # as matrices of all heads: its fused function reads the latent anew for each
        weights = torch.softmax((query[:, :, 0] @ latent[:, 0].transpose(1, 2)).float() / 24.0, dim=-1)
        return (weights.to(query.dtype) @ latent[:, 0, :, :512])[:, :, None]

    return {"icecore": lambda: icecore.attention(query_rows, latent_rows, latent_rows[..., :512]), "torch": by_torch}


def indexer_calls(dtype, queries=32, keys=16384, k=2048):
    """The lightning indexer of DeepSeek-V3.2: 64 heads of 128 over one key for each token, the 2048 best of it."""
    import torch

    shapes = (1, 64, queries, 128), (1, keys, 128), (1, queries, 64)
    query, key, weights = tensors(dtype, *shapes)
    query_rows, key_rows = arrays(dtype, *shapes[:2])
    weight_rows = weights.float().numpy()

    def by_torch():
        scores = torch.relu(query.flatten(1, 2) @ key.transpose(1, 2)).unflatten(1, (64, queries))
        return torch.einsum("bhls,blh->bls", scores.float(), weights.float()).topk(k).indices.sort().values

    return {"icecore": lambda: icecore.indexer_top_k(query_rows, key_rows, weight_rows, k)[:, 0], "torch": by_torch}


def block_calls(dtype, queries=64, keys=16384, blocks=32, size=64):
    """32 of 256 blocks of 64 keys for each query, as lists of blocks and of their keys."""
    query, key, value = arrays(dtype, (1, HEADS, queries, DIM), *[(1, HEADS // 2, keys, DIM)] * 2)
    random = np.random.default_rng(0)
    chosen = np.argsort(random.random((1, HEADS // 2, queries, keys // size)), axis=-1)[..., :blocks].astype(np.int32)
    single = (chosen[..., None] * size + np.arange(size, dtype=np.int32)).reshape(*chosen.shape[:3], -1)
    return {
        "icecore": lambda: icecore.attend_indices(query, key, value, chosen, block_size=size),
        "the keys one by one": lambda: icecore.attend_indices(query, key, value, single),
    }


CALLS = {"latent step of 128 heads": latent_calls, "indexer, 32 queries": indexer_calls, "blocks of 64 keys": block_calls}


# ---- Benchmarks ----


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_scores(benchmark, dtype, name):
    pytest.importorskip("torch")
    calls = score_calls(dtype, 512, 512)
    assert np.isfinite(np.asarray(calls[name](), np.float32)).all()
    benchmark.extra_info.update(machine())
    benchmark.pedantic(calls[name], rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("case", CALLS)
def test_calls(benchmark, case):
    pytest.importorskip("torch")
    calls = CALLS[case]("float32", keys=4096)
    own, other = (np.asarray(call()) for call in calls.values())
    if case.startswith("indexer"):
        assert np.mean([len(np.intersect1d(*pair)) for pair in zip(own[0], other[0], strict=True)]) > 0.999 * own.shape[-1]
    else:
        assert relative_error(own, other) < 1e-5
    benchmark.extra_info.update(machine())
    benchmark.pedantic(calls["icecore"], rounds=3, warmup_rounds=1)


def print_scores(rounds):
    print("| call | type | ms without options | " + " | ".join(name for name in OPTIONS if name != PLAIN) + " |")
    print("|---" * (2 + len(OPTIONS)) + "|")
    for length, shape in LENGTHS.items():
        for dtype in TYPES:
            turns = rounds if shape[0] > 1 else 20 * rounds  # a step takes milliseconds
            seconds = alternate(score_calls(dtype, *shape), rounds=turns, rest=0.0)
            ratios = [f"{np.median(times / seconds[PLAIN]):.3f}" for name, times in seconds.items() if name != PLAIN]
            print(f"| {length} | {dtype} | {1e3 * np.median(seconds[PLAIN]):.2f} | {' | '.join(ratios)} |", flush=True)


def print_calls(rounds):
    print("| call | type | ms | of | × icecore |\n|---|---|---|---|---|")
    for case, make in CALLS.items():
        for dtype in TYPES:
            seconds = alternate(make(dtype), rounds=rounds)
            own, (other, times) = seconds["icecore"], list(seconds.items())[1]
            print(f"| {case} | {dtype} | {1e3 * np.median(own):.1f} | {other} | {np.median(times / own):.2f} |", flush=True)


if __name__ == "__main__":
    record()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(machine())
    gc.disable()  # as timeit does: options are objects, and a collection falls to calls that have them
    for part in (print_scores, print_calls):
        print()
        part(arguments.rounds)
