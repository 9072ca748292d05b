"""What near/far attention costs small models in accuracy at tasks in the style of Long Range Arena, beside exact top-k.

    python bench/long_range/long_range.py [TASK ...] [--count N] [--seconds S] [--methods "NAME" ...]

Every sequence of the test goes through all methods in turn. Near/far is forced, also where a call would choose the exact path.
The last rows show what the tasks need: a window of keys alone, and a window where the token that answers sees everything.
"""

import argparse
import importlib
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

import icecore
from icecore import _cost_model, nn

WINDOW = 128
WEIGHTS = Path(__file__).parent / "weights"
TASKS = sorted(folder.name for folder in WEIGHTS.iterdir())  # those that a model was trained for


def load(name):
    """The task, its model, and the head that answers: (outputs, width) and (outputs,) float32."""
    from safetensors.numpy import load_file

    task = importlib.import_module(name).TASK
    stored = load_file(WEIGHTS / name / "model.safetensors")
    head = tuple(stored[f"classifier.{part}"].astype(np.float32) for part in ("weight", "bias"))
    return task, nn.load_model(WEIGHTS / name), head


def answer(task, weights, head, tokens, attention):
    """The class that the model gives a sequence, (length,) of integers."""
    (hidden,) = nn.encode_tokens(weights, [tokens], attention=attention)
    scores = head[0] @ hidden[task.answer_at] + head[1]  # (outputs,)
    return int(scores[: task.classes].argmax())


def methods(task):
    """{name: attention of query, key, value (heads, n, d)}."""

    def near_far(query, key, value, **options):
        with _cost_model.use(_cost_model.NearFarAlways()):
            return icecore.attention(query, key, value, **options)

    def top(query, key, value, k):
        return icecore.attention(query, key, value, k=k, selector="pdci", visit=key.shape[1])

    def around_and_answer(query, key, value):
        index = np.arange(query.shape[1])
        seen = abs(index[:, None] - index) < WINDOW  # (n, n)
        seen[task.answer_at] = True
        return icecore.attention(query, key, value, attn_mask=seen)

    return {
        "exact": icecore.attention,
        **{f"near/far, tolerance {each}": partial(near_far, tolerance=each) for each in (0.02, 0.05, 0.1, 0.2)},
        "near/far, k=64": partial(near_far, k=64),
        **{f"exact top-{each}": partial(top, k=each) for each in (16, 64)},
        "published method, k=64": partial(icecore.attention, k=64, selector="pdci"),
        f"window of {WINDOW}": partial(icecore.attention, window=WINDOW),
        f"window of {WINDOW}, the answer sees all": around_and_answer,
    }


class Timed:
    """An attention for a model that adds up its seconds."""

    def __init__(self, attention):
        self.attention, self.seconds = attention, 0.0

    def __call__(self, query, key, value, *, layer):
        start = time.perf_counter()
        out = self.attention(query, key, value)
        self.seconds += time.perf_counter() - start
        return out


def interval(right, count, z=1.96):
    """Wilson's 95 % interval of a share."""
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def evaluate(name, count, limit, chosen):
    """Print the table of one task and the `chosen` methods, from `count` sequences or as many as `limit` seconds allow."""
    task, weights, head = load(name)
    sequences, answers = task.test_set(count)
    attentions = {method: Timed(methods(task)[method]) for method in chosen or methods(task)}
    given = {method: [] for method in attentions}  # answers
    seconds = dict.fromkeys(attentions, 0.0)  # whole passes
    end = time.perf_counter() + limit
    for tokens in sequences:
        if time.perf_counter() > end:
            break
        for method, attention in attentions.items():
            start = time.perf_counter()
            given[method].append(answer(task, weights, head, tokens, attention))
            seconds[method] += time.perf_counter() - start
    n = len(given["exact"])
    answers, lengths = answers[:n], [len(tokens) for tokens in sequences[:n]]
    print(f"\n{name}: {n} sequences of {min(lengths)} to {max(lengths)} tokens; "
          f"the most frequent answer is right for {100 * np.bincount(answers).max() / n:.1f} %\n")
    print("| | right | 95 % interval | of exact's | same answers | attention, ms | × exact | whole pass, ms |")
    print("|---|---|---|---|---|---|---|---|")
    right = {method: int((np.array(each) == answers).sum()) for method, each in given.items()}
    for method, attention in attentions.items():
        low, high = interval(right[method], n)
        same = np.mean(np.array(given[method]) == given["exact"])
        print(f"| {method} | {100 * right[method] / n:.1f} % | {100 * low:.1f} to {100 * high:.1f} % "
              f"| {100 * right[method] / right['exact']:.1f} % | {100 * same:.1f} % | {1e3 * attention.seconds / n:.1f} "
              f"| {attentions['exact'].seconds / attention.seconds:.2f} | {1e3 * seconds[method] / n:.1f} |", flush=True)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    importlib.import_module("recorded").record()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default all")
    parser.add_argument("--count", type=int, default=300, help="sequences of each test; default 300")
    parser.add_argument("--seconds", type=float, default=np.inf, help="of each task; the table is then of fewer sequences")
    parser.add_argument("--methods", nargs="+", default=[], help="rows of the table, the first of them exact; default all")
    options = parser.parse_args()
    for each in options.tasks or TASKS:
        evaluate(each, options.count, options.seconds, options.methods)
