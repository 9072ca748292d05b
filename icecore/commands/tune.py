"""Measure what exact and near/far attention cost on this machine, so that calls take the faster path."""

import sys

import numpy as np

import icecore
from icecore import _native, _tune, _tuning_file
from icecore._cost_model import COEFFICIENTS

from .arguments import check


def add_arguments(parser):
    """Add --seconds and --threads."""
    parser.add_argument("--seconds", type=float, default=20.0, help="time to spend, at least one round (default: 20)")
    parser.add_argument("--threads", type=int, help="threads (default: all)")
    parser.set_defaults(parser=parser)


#: Costs that are never nothing.
PRODUCTS = ("product_float32", "product_bfloat16", "near_float32")


def run(arguments):
    """Measure, print the table and write the file; status 1 if it cannot be written or the times make no sense."""
    if not arguments.seconds > 0:
        arguments.parser.error(f"--seconds must be above 0, got {arguments.seconds}")
    try:
        check(arguments)
    except ValueError as problem:
        arguments.parser.error(str(problem))
    if _tuning_file.path() is None:
        print(_tuning_file.NOWHERE, file=sys.stderr)
        return 1
    with icecore.threads(arguments.threads or icecore.get_num_threads()):
        isa, threads = _native.isa(), icecore.get_num_threads()
        print(f"{isa}, {threads} thread{'s' * (threads > 1)}, {_tuning_file.processor()}\n", flush=True)
        cases = _tune.measured(arguments.seconds)
        model = _tune.fit(cases)
        print(table(cases, model))
    products = PRODUCTS + ("product_thirds",) * any(case.work.thirds for case in cases)
    free = [name for name in products if not getattr(model, name) > 0]
    if free:
        print(f"not saved: by these times {' and '.join(free)} would cost nothing; measure again when the machine is less busy,"
              " or longer (--seconds)", file=sys.stderr)
        return 1
    try:
        path = _tuning_file.save(model, isa, threads)
    except OSError as error:
        print(f"not saved: {error}", file=sys.stderr)
        return 1
    print(f"\nin force from now on, with {isa}: {path}")
    return 0


def table(cases, model):
    """Costs, times and crossover as text."""
    lines = ["nanoseconds of one thread:", *(f"  {name:18}{getattr(model, name):10.4f}" for name in COEFFICIENTS), ""]
    lines.append(f"{_tune.HEADS} query heads on {_tune.KEY_HEADS}, float32; milliseconds, measured (and predicted):")
    lines.append(f"  {'':24}{'exact':>20}{'near/far, k=' + str(_tune.SHOWN['k']):>20}")
    float32 = [case for case in cases if not case.work.bfloat16]
    shown = [case for case in float32 if (*case.arrays[0].shape[1:], case.causal) in _tune.SHAPES]
    of_both = ([case for case in shown if case.options == options] for options in ({}, _tune.SHOWN))
    for (tokens, dim, causal), exact, near_far in zip(_tune.SHAPES, *of_both, strict=True):
        name = f"{tokens} tokens, d={dim}{', causal' * causal}"
        predicted = 1e3 * model.exact_seconds(exact.work), 1e3 * model.near_far_seconds(near_far.work)
        measured = (1e3 * np.median(case.seconds) for case in (exact, near_far))
        lines.append(f"  {name:24}" + "".join(f"{m:10.2f} {f'({p:.2f})':>9}" for m, p in zip(measured, predicted, strict=True)))
    lines.append("")
    for causal in (True, False):
        name = "causal" if causal else "not causal"
        lines.append(f"near/far with k={_tune.SHOWN['k']}, d=64, {name}: {_tune.crossover(model, causal)}")
    return "\n".join(lines)
