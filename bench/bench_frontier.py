"""Every method of choosing keys at equal time: attention's time in a whole model against what it does to the next tokens.

    python bench/bench_frontier.py [--length 4096] [--text prose] [--methods NAME ...] [--figure FILE]
    python bench/bench_frontier.py --dinov2 [--length 4096] [--picture coffee]
    python bench/bench_frontier.py --continued 32768

Each method, by a few settings as ``python -m icecore evaluate --method`` takes them, attends in all layers of SmolLM2. Time is
CPU time of one thread in attention alone, which other programs disturb less than the clock's; exact attention takes its turn on
the same queries and keys in every fifth layer. Error: of outputs there, mean |out - exact| / mean |exact|. Of the text's second
half: perplexity by exact attention's, and the mean Kullback-Leibler divergence of next tokens from its, which has less noise.
With ``--dinov2``: the relative difference of DINOv2's features from those by exact attention, of all patches of a picture. With
``--continued``: the error of outputs alone, of three heads of SmolLM2 on one key head, continued to a length (data.py).

At equal time: each method's divergence, difference or error in the time of near/far attention's settings, interpolated between
its own settings (logarithms of both), without those that are slower and no better. Where its slowest takes less time, that one
counts; where its fastest takes more, there is none. `--methods`: these alone, and near/far attention.
"""

import argparse
import time
from math import isqrt
from typing import ClassVar

import data
import numpy as np
from measure import relative_error
from recorded import record
from scipy.special import log_softmax

import icecore
from icecore import nn
from icecore.evaluation import methods, models, perplexity, pictures, texts

#: Method -> settings, fast ones first.
GRID = {
    "near/far by tolerance": [
        "near_far:tolerance=0.1,window=512", "near_far:tolerance=0.05,window=512", "near_far:tolerance=0.02,window=512",
        "near_far:tolerance=0.02,window=768",
    ],
    "near/far by k": ["near_far:k=64,window=512", "near_far:k=256,window=512"],
    "window": ["window:window=512", "window:window=1024", "window:window=2048"],
    "minference": [
        "minference:vertical=60,slash=200", "minference:vertical=250,slash=500", "minference:vertical=500,slash=700",
    ],
    "xattention": ["xattention:threshold=0.7", "xattention:threshold=0.9", "xattention:threshold=0.97"],
    "block_sparse": ["block_sparse:k=512", "block_sparse:k=1024", "block_sparse:k=2048"],
    "pages": ["pages:k=64", "pages:k=256", "pages:k=512"],
    "arkvale": ["arkvale:k=256", "arkvale:k=512", "arkvale:k=1280"],
    "retroinfer": [
        "retroinfer:retrieval=0.01,estimation=0.1,segment=256", "retroinfer:retrieval=0.018,estimation=0.232",
        "retroinfer:retrieval=0.05,estimation=0.4",
    ],
    "zeta": ["zeta:k=64", "zeta:k=256"],
    # about as slow as exact attention, or slower: one cheap setting each
    "top_k": ["top_k:k=64"],
    "sparq": ["sparq:k=64,components=8"],
    "magicpig": ["magicpig:bits=8,tables=50"],
    "vattention": ["vattention:k=64,sinks=64,window=64,epsilon=0.1,delta=0.1"],
    "pdci": ["pdci:k=64,visit=256"],
}
NEAR_FAR = ("near/far by tolerance", "near/far by k")
#: Of pictures, which are not causal.
IMAGE_GRID = {
    "near/far by tolerance": [f"near_far:tolerance={tolerance}" for tolerance in (0.2, 0.1, 0.05, 0.02)],
    "near/far by k": [f"near_far:k={k}" for k in (64, 256)],
    "block_sparse": [f"block_sparse:k={k}" for k in (512, 1024, 2048)],
    "pages": [f"pages:k={k}" for k in (64, 256, 512)],
    "arkvale": [f"arkvale:k={k}" for k in (256, 512, 1280)],
    "retroinfer": ["retroinfer:retrieval=0.018,estimation=0.232", "retroinfer:retrieval=0.05,estimation=0.4"],
    "zeta": ["zeta:k=64", "zeta:k=256"],
} | {name: GRID[name] for name in ("top_k", "sparq", "magicpig", "vattention", "pdci")}
#: Of 32k tokens and more: budgets grow with the length, and what takes as long as exact attention is left out.
LONG_GRID = {
    "near/far by tolerance": [f"near_far:tolerance={tolerance},window=512" for tolerance in (0.15, 0.05, 0.02)],
    "near/far by k": [f"near_far:k={k},window=512" for k in (64, 256)],
    "window": [f"window:window={window}" for window in (1024, 4096, 8192)],
    "minference": [
        "minference:vertical=250,slash=500", "minference:vertical=500,slash=1500", "minference:vertical=1000,slash=6096",
    ],
    "xattention": ["xattention:threshold=0.7", "xattention:threshold=0.9"],
    "block_sparse": [f"block_sparse:k={k}" for k in (1024, 4096)],
    "pages": [f"pages:k={k}" for k in (256, 1024)],
    "arkvale": [f"arkvale:k={k}" for k in (512, 2048)],
    "retroinfer": ["retroinfer:retrieval=0.005,estimation=0.1", "retroinfer:retrieval=0.018,estimation=0.232"],
    "zeta": [f"zeta:k={k}" for k in (64, 256)],
}
#: Of a model exact attention takes its turn in layers 0, EVERY, 2 EVERY and so on.
EVERY = 5
#: What is below it is rounding, and has no logarithm.
LEAST = 1e-9


def timed(attend, *arrays, layer):
    """(what it gives, seconds of this thread)."""
    start = time.thread_time()
    out = attend(*arrays, layer=layer)  # (query_heads, n, head_width)
    return out, time.thread_time() - start


class Text:
    """The second half of a text before a decoder: perplexity and distributions of next tokens, beside exact attention's."""

    #: Column -> its format; methods are compared by the last one.
    columns: ClassVar = {"perplexity ratio": ".4f", "divergence": ".5f"}

    def __init__(self, weights, tokens):
        self.weights, self.tokens = weights, np.asarray(tokens)
        exact = self.forward(self.attend(methods.EXACT))
        self.reference = list(self._log_probabilities(exact))
        self.exact_loss = self._scores(exact)[0]

    def attend(self, method):
        return method.causal

    def exact_beside(self, *arrays, layer):
        return timed(self.attend(methods.EXACT), *arrays, layer=layer) if layer % EVERY == 0 else None

    def forward(self, attention):
        return nn.forward(self.weights, self.tokens, attention=attention)  # (n, width)

    def judge(self, hidden):
        loss, divergence = self._scores(hidden)
        return np.exp(loss - self.exact_loss), divergence

    def _log_probabilities(self, hidden):
        """Of next tokens: chunks of (rows, vocabulary)."""
        rows = hidden[len(hidden) // 2 - 1 : -1]
        return (log_softmax(logits, axis=1) for _, logits in nn.logits_in_chunks(self.weights, rows))

    def _scores(self, hidden):
        """(mean loss, divergence)."""
        targets, loss, divergence = self.tokens[len(self.tokens) // 2 :], 0.0, 0.0
        scored = len(targets)
        for own, exact in zip(self._log_probabilities(hidden), self.reference, strict=True):
            now, targets = targets[: len(own)], targets[len(own) :]
            loss -= own[np.arange(len(now)), now].sum(dtype=np.float64)
            divergence += np.sum(np.exp(exact) * (exact - own), dtype=np.float64)
        return loss / scored, divergence / scored


class Picture:
    """A picture before an image encoder: its patches' features beside those by exact attention."""

    columns: ClassVar = {"difference": ".4f"}

    def __init__(self, weights, pixels):
        self.weights, self.pixels = weights, pixels
        self.exact = self.forward(self.attend(methods.EXACT))

    def attend(self, method):
        return method.bidirectional

    exact_beside = Text.exact_beside

    def forward(self, attention):
        return nn.encode_image(self.weights, self.pixels, attention=attention)  # (1 + patches, width)

    def judge(self, features):
        return (relative_error(features, self.exact),)


class Heads:
    """Three heads on one key head of a decoder's layer, whose queries, keys and values are continued to a length."""

    columns: ClassVar = {"error": ".4f"}

    def __init__(self, length):
        self.source, query, key, value = data.capture(length)
        self.rows = query[0, :3], key[0, :1], value[0, :1]  # (heads, n, 64)
        self.exact, self.seconds = timed(self.attend(methods.EXACT), *self.rows, layer=0)

    def attend(self, method):
        return method.causal

    def exact_beside(self, *_, layer):
        return self.exact, self.seconds  # once: it takes longer than all methods together

    def forward(self, attention):
        return attention(*self.rows, layer=0)

    def judge(self, out):
        return (relative_error(out, self.exact),)


def run(case, method):
    """(what the model gives with a method, time by exact attention's, error of outputs)."""
    seconds, exact_seconds, errors = [], [], []

    def attention(*arrays, layer):
        out, own = timed(case.attend(method), *arrays, layer=layer)
        seconds.append(own)
        if beside := case.exact_beside(*arrays, layer=layer):
            errors.append(relative_error(out, beside[0]))
            exact_seconds.append(beside[1])
        return out

    result = case.forward(attention)
    return result, np.mean(seconds) / np.mean(exact_seconds), np.mean(errors)  # exact takes as long in every layer


def measure(case, grid):
    """Print a table; {method: [(time by exact's, last column of the case)]}."""
    names = ["method", "setting", "time by exact", *{"error": ".4f"} | case.columns]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)
    points = {}
    for name, settings in grid.items():
        for setting in settings:
            result, ratio, error = run(case, methods.parse(setting))
            columns = case.judge(result)
            points.setdefault(name, []).append((ratio, columns[-1]))
            figures = dict(zip(case.columns, map(format, columns, case.columns.values()), strict=True))
            figures = {"error": f"{error:.4f}"} | figures
            print(f"| {name} | {setting.partition(':')[2]} | {ratio:.2f} | {' | '.join(figures.values())} |", flush=True)
    return points


def frontier(points):
    """Those of a method's (time, error) that no faster one equals, by time."""
    best = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def in_time(points, limit):
    """Error of a method in a time, interpolated on its frontier; NaN where its fastest setting takes more."""
    times, errors = np.log(np.maximum(frontier(points), LEAST)).T
    return float(np.exp(np.interp(np.log(limit), times, errors, left=np.nan)))


def compare(points, grid):
    """Print what each method has in the times of near/far attention's settings, and who has the least."""
    limits = {
        setting.partition(":")[2]: point[0]
        for name in NEAR_FAR for setting, point in zip(grid[name], points[name], strict=True)
    }
    found = {name: [in_time(own, limit) for limit in limits.values()] for name, own in points.items()}
    print("\n| | " + " | ".join(f"{setting}: {limit:.2f}" for setting, limit in limits.items()) + " |")
    print("|---|" + "---|" * len(limits))
    for name, row in found.items():
        print(f"| {name} | " + " | ".join("" if np.isnan(value) else f"{value:.5f}" for value in row) + " |")
    least = [min(found, key=lambda name, at=at: np.nan_to_num(found[name][at], nan=np.inf)) for at in range(len(limits))]
    print("| the least | " + " | ".join(least) + " |")


def draw(points, label, path):
    """Divergence or difference against time, a line for each method."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    drawing = Figure(figsize=(8, 5), layout="constrained")
    axis = drawing.subplots()
    for number, (name, own) in enumerate(points.items()):
        style = {"linewidth": 2.5, "color": "black"} if name in NEAR_FAR else {"color": f"C{number % 10}", "alpha": 0.8}
        axis.loglog(*zip(*own, strict=True), "osD^vP*"[number % 7] + "-", label=name, **style)
    axis.axvline(1, color="gray", linestyle=":", label="time of exact")
    axis.set(xlabel="time of attention by exact attention's", ylabel=label)
    ticks = (0.2, 0.3, 0.5, 1, 2)
    axis.set_xticks(ticks, map(str, ticks))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
    drawing.legend(loc="outside right upper", fontsize=8)
    drawing.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--text", choices=texts.TEXTS, default="prose")
    parser.add_argument("--dinov2", action="store_true")
    parser.add_argument("--continued", type=int, metavar="LENGTH")
    parser.add_argument("--picture", choices=pictures.PICTURES, default="coffee")
    parser.add_argument("--methods", nargs="+", choices=sorted({*GRID, *IMAGE_GRID} - {*NEAR_FAR}), metavar="NAME")
    parser.add_argument("--figure", metavar="FILE")
    given = parser.parse_args()
    icecore.set_num_threads(1)
    if given.continued:
        case, grid = Heads(given.continued), LONG_GRID
        print(case.source)
    elif given.dinov2:
        weights = models.load("dinov2").weights
        patch = weights.config.patch
        case, grid = Picture(weights, pictures.views(given.picture, isqrt(given.length) * patch, patch)[0]), IMAGE_GRID
    else:
        model = models.load("smollm2")
        case, grid = Text(model.weights, perplexity.leading_tokens(model, given.text, given.length)), GRID
    if given.methods:
        grid = {name: settings for name, settings in grid.items() if name in (*NEAR_FAR, *given.methods)}
    points = measure(case, grid)
    compare(points, grid)
    if given.figure:
        draw(points, [*case.columns][-1], given.figure)


if __name__ == "__main__":
    record()
    main()
