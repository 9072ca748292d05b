"""Whether attention(k=, tolerance=) takes the fastest path: its time against all paths, around the lengths where they cross.

    python bench/bench_path_choice.py

Exact attention, near/far attention and, with a tolerance, the rounded path (both forced), and the call that chooses take turns;
figures are medians in milliseconds,
predicted ones in brackets, ratios those of the same turns. Where no key is far the forced call is exact, too. SmolLM2's and
DINOv2's queries, keys and values (data.py, index_data.py), cut to their first tokens.
"""

import argparse
import math

import ml_dtypes
import numpy as np
from data import capture
from index_data import dinov2_heads
from measure import alternate, machine
from recorded import record

import icecore
from icecore import _cost_model

METHODS = {"k=64": {"k": 64}, "k=256": {"k": 256}, "tolerance 0.05": {"tolerance": 0.05}}
LENGTHS = (512, 1024, 2048, 4096, 8192)
#: A choice is wrong when a path not taken is faster by more than this factor; what noise leaves open is below it.
WRONG = 1.1


class Always:
    """A cost model by which one path is always taken."""

    def __init__(self, path):
        self.path, self.prices = path, _cost_model.NearFarAlways.prices

    def predict(self, work):
        return {path: 0.0 if path == self.path else math.inf for path in ("exact", "near_far", "rounded")}

    def trial_seconds(self, work):
        return 0.0


def compare(name, arrays, causal):
    """Prints one row; returns (time of the call by exact attention's, whether the choice was wrong) of each method."""

    def exact():
        return icecore.attention(*arrays, causal=causal)

    def forced(path, options):
        with _cost_model.use(_cost_model.NearFarAlways() if path == "near_far" else Always(path)):
            return icecore.attention(*arrays, causal=causal, **options)

    infos = {
        method: icecore.attention(*arrays, causal=causal, return_info=True, **options)[1] for method, options in METHODS.items()
    }
    calls = {"exact": exact}
    for method, options in METHODS.items():
        for path in infos[method].predicted:
            if path != "exact":
                calls[f"{path} {method}"] = lambda p=path, o=options: forced(p, o)
        calls[method] = lambda o=options: icecore.attention(*arrays, causal=causal, **o)
    # no rest: all calls share their threads, and those of a short call that has to wake them first come late
    seconds = alternate(calls, 31 if arrays[0].shape[2] <= 2048 else 5, rest=0)
    cells, found = [], []
    for method, info in infos.items():
        times = {path: seconds["exact" if path == "exact" else f"{path} {method}"] for path in info.predicted}
        ms = {path: f"{1e3 * np.median(times[path]):.2f} ({1e3 * info.predicted[path]:.2f})" for path in times}
        ratio = np.median(seconds[method] / times["exact"])
        wrong = any(np.median(times[info.path] / other) > WRONG for other in times.values())
        cells += [", ".join(text for path, text in ms.items() if path != "exact")]
        cells += [f"{info.path.replace('_', '/')}{' (wrong)' * wrong}, {ratio:.2f}"]
        found.append((ratio, wrong))
    print(f"| {name} | {ms['exact']} | {' | '.join(cells)} |", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(machine() | {"tuning": _cost_model.origin()})
    print("\n| input | exact | " + " | ".join(f"{method}: near/far | path, time by exact's" for method in METHODS) + " |")
    print("|---" * (2 + 2 * len(METHODS)) + "|")
    sets = [("SmolLM2, causal", capture(max(LENGTHS))[1:], True), ("DINOv2 layer 6", dinov2_heads(6), False)]
    found = []
    for source, arrays, causal in sets:
        for length in LENGTHS:
            short = [a[:, :, :length] for a in arrays]
            for dtype in (np.float32, ml_dtypes.bfloat16):
                name = f"{source}, {short[0].shape[2]}, {np.dtype(dtype).name}"
                found += compare(name, [a.astype(dtype) for a in short], causal)
    ratios, wrong = zip(*found, strict=True)
    print(f"\nchosen path / exact: at most {max(ratios):.2f}; wrong choices: {sum(wrong)} of {len(found)}")


if __name__ == "__main__":
    record()
    main()
