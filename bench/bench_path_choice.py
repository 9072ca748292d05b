"""Whether attention(k=, tolerance=) takes the faster path: its time against both paths, around the lengths where they cross.

    python bench/bench_path_choice.py

Exact attention, near/far attention (forced) and the call that chooses take turns; figures are medians, ratios those of the same
turns. SmolLM2's and DINOv2's queries, keys and values (data.py, index_data.py), cut to their first tokens.
"""

import argparse

import ml_dtypes
import numpy as np
from data import capture
from index_data import dinov2_heads
from measure import alternate, machine

import icecore
from icecore import _cost_model

METHODS = {"k=64": {"k": 64}, "k=256": {"k": 256}, "tolerance 0.05": {"tolerance": 0.05}}
LENGTHS = (512, 1024, 2048, 4096, 8192)
#: A choice is wrong when the path not taken is faster by more than this factor; what noise leaves open is below it.
WRONG = 1.1


def compare(name, arrays, causal, rounds):
    """Prints one row a method; returns (time of the call by exact attention's, whether the choice was wrong) of each."""

    def exact():
        return icecore.attention(*arrays, causal=causal)

    def forced(options):
        with _cost_model.use(_cost_model.NearFarAlways()):
            return icecore.attention(*arrays, causal=causal, **options)

    calls = {"exact": exact}
    for method, options in METHODS.items():
        calls[f"forced {method}"] = lambda o=options: forced(o)
        calls[method] = lambda o=options: icecore.attention(*arrays, causal=causal, **o)
    seconds, found = alternate(calls, rounds), []
    for method, options in METHODS.items():
        info = icecore.attention(*arrays, causal=causal, return_info=True, **options)[1]
        times = {"exact": seconds["exact"], "near_far": seconds[f"forced {method}"]}
        other = times["exact" if info.path == "near_far" else "near_far"]
        ratio, lost = np.median(seconds[method] / times["exact"]), np.median(times[info.path] / other)
        ms = {path: 1e3 * np.median(times[path]) for path in times}
        said = {path: 1e3 * info.predicted[path] for path in times}
        found.append((ratio, lost > WRONG))
        print(f"| {name} | {method} | {ms['exact']:.2f} ({said['exact']:.2f}) | {ms['near_far']:.2f} ({said['near_far']:.2f}) "
              f"| {info.path.replace('_', '/')}{' (wrong)' if lost > WRONG else ''} | {ratio:.2f} |", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(machine() | {"tuning": _cost_model.origin()})
    print("\n| input | call | exact, ms (predicted) | near/far, ms (predicted) | path | call / exact |")
    print("|---|---|---|---|---|---|")
    sets = [("SmolLM2, causal", capture(max(LENGTHS))[1:], True), ("DINOv2 layer 6", dinov2_heads(6), False)]
    found = []
    for source, arrays, causal in sets:
        for length in LENGTHS:
            short = [a[:, :, :length] for a in arrays]
            for dtype in (np.float32, ml_dtypes.bfloat16):
                name = f"{source}, {short[0].shape[2]}, {np.dtype(dtype).name}"
                found += compare(name, [a.astype(dtype) for a in short], causal, given.rounds)
    ratios, wrong = zip(*found, strict=True)
    print(f"\nchosen path / exact: at most {max(ratios):.2f}; wrong choices: {sum(wrong)} of {len(found)}")


if __name__ == "__main__":
    main()
