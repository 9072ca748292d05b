"""Whether what near/far attention says of itself is true: the measured error, captured mass and lse of `AttentionInfo`.

    python bench/bench_reported.py [--text library] [--layers 3 13 23] [--keys 8192] [--settings 0.05 0.02 k=256]
    python bench/bench_reported.py --decoding [--keys 8192] [--settings 0.05 0.02]

Heads of SmolLM2 on a text, and the inputs of tests/hostile_inputs.py, causal and not, each against float64 on sampled rows that
near/far attention computed. The true error is what `AttentionInfo.error` is about: half the relative error of the mass counts
as one more component. Shares are of heads that near/far attention computed, and of all their rows together. `--decoding`: the
first 3072 tokens of each causal input are a prompt, the others are decoded one by one from a `KVCache`.
"""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_tolerance import FACTOR, ROUNDING, TEXTS, run_layers, truth
from recorded import record

import icecore
from icecore import nn
from icecore._settings import DEFAULT_WINDOW

ROWS = 512
#: Tokens before those that are decoded.
PROMPT = 3072
#: Half the relative error of the mass counts.
MASS_SHARE = 0.5
#: Rows that see fewer windows are exact, or the first by which a tolerance is measured.
FIRST_WINDOWS = 4


class Head(NamedTuple):
    """What a call says of one head, and what is true."""

    error: float
    said_error: float
    output_error: float  # without the mass
    mass_off: np.ndarray  # (rows,)
    lse_off: np.ndarray  # (rows,)
    tolerance: float  # nan with k


def options_of(setting):
    """As `icecore.attention` takes them."""
    return {"k": int(setting[2:])} if setting.startswith("k=") else {"tolerance": float(setting)}


def check(arrays, exact, rows, causal, setting):
    """A `Head` for each head of a call, or none where it was exact."""
    options = options_of(setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of errors above the tolerance, which are counted here
        out, lse, info = icecore.attention(*arrays, causal=causal, return_lse=True, return_info=True, **options)
    heads = []
    for head in range(len(out)):
        if info.path != "near_far" or not info.summaries[head, rows].any():
            continue
        norm = np.linalg.norm(exact.out[head], axis=-1)
        distance = np.linalg.norm(out[head, rows] - exact.out[head], axis=-1)
        off = np.float64(lse[head, rows]) - exact.lse[head]
        said = np.float64(info.captured_mass[head, rows])
        with_mass = np.hypot(distance, MASS_SHARE * norm * np.expm1(off))
        heads.append(Head(
            with_mass.sum() / norm.sum(), float(info.error[head]), distance.sum() / norm.sum(),
            abs(said * np.expm1(off)), abs(off), options.get("tolerance", np.nan),
        ))
    return heads


def share(kept):
    kept = [*kept]
    return f"{100 * np.mean(kept):.1f} %".replace(".0 %", " %") if kept else ""


def report(name, setting, heads):
    """A row of the table."""
    said = [head for head in heads if np.isfinite(head.said_error) and head.error > ROUNDING]
    factors = np.array([head.said_error / head.error for head in said])
    mass_off = np.concatenate([head.mass_off for head in heads])
    tolerant = [head.lse_off / head.tolerance for head in heads if np.isfinite(head.tolerance)]
    lse_off = np.concatenate([*tolerant, []])
    cells = [
        name, setting, str(len(heads)), share((factors <= FACTOR) & (factors >= 1 / FACTOR)) if len(said) else "",
        share(factors < 1 / FACTOR), share(factors > FACTOR), f"{np.exp(np.mean(np.log(factors))):.2f}" if len(said) else "",
        f"{np.median(mass_off):.3f}", share(mass_off <= 0.2), f"{lse_off.mean():.2f}" if len(lse_off) else "",
        share(off.mean() <= 1 for off in tolerant), share(lse_off <= 5),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def sampled(keys, causal):
    """Rows that near/far attention computes."""
    first = FIRST_WINDOWS * DEFAULT_WINDOW if causal else 0
    return np.sort(np.random.default_rng(0).choice(np.arange(first, keys), min(ROWS, keys - first), replace=False))


def hostile(keys, settings):
    from hostile_inputs import CASES

    for causal in (True, False):
        found, rows = {setting: [] for setting in settings}, sampled(keys, causal)
        for case in CASES.values():
            arrays = case(0, keys)
            exact = truth(*arrays, rows, causal=causal)
            for setting, heads in found.items():
                heads += check(arrays, exact, rows, causal, setting)
        for setting, heads in found.items():
            report(f"hostile, {'' if causal else 'not '}causal", setting, heads)


def decoding(keys, settings):
    """A row for each hostile input and tolerance: errors of the decoded tokens."""
    from hostile_inputs import CASES

    columns = "input", "tolerance", "error / tolerance", "of the worst window", "measured / tolerance", "near keys"
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, case in CASES.items():
        query, key, value = case(0, keys)
        exact = icecore.attention(query, key, value, causal=True)[0, PROMPT:].astype(np.float64)
        for setting in settings:
            tolerance = float(setting)
            cache = icecore.KVCache(1, query.shape[-1], value_dim=value.shape[-1], tolerance=tolerance)
            cache.append(key[:, :PROMPT], value[:, :PROMPT], query[:, :PROMPT])
            out, near = np.empty_like(exact), 0
            for token in range(PROMPT, keys):
                cache.append(key[:, token : token + 1], value[:, token : token + 1])
                row, info = cache.attend(query[:, token : token + 1], return_info=True)
                out[token - PROMPT], near = row[0, 0], near + int(info.near_keys[0, 0])
            error, norm = np.linalg.norm(out - exact, axis=-1), np.linalg.norm(exact, axis=-1)
            windows = [slice(first, first + DEFAULT_WINDOW) for first in range(0, len(error), DEFAULT_WINDOW)]
            worst = max(error[rows].sum() / norm[rows].sum() for rows in windows)
            cells = error.sum() / norm.sum() / tolerance, worst / tolerance, info.error[0] / tolerance
            numbers = [f"{cell:.2f}" for cell in cells]
            print(f"| {name} | {setting} | {' | '.join(numbers)} | {near / len(error):.0f} |", flush=True)


def smollm2(text, layers, keys, settings):
    path, found, rows = nn.find_smollm2(), {setting: [] for setting in settings}, sampled(keys, True)
    weights, tokenizer = nn.load_gguf(path), nn.load_tokenizer(path)

    def take(layer, *arrays):
        exact = truth(*arrays, rows, causal=True)
        for setting, heads in found.items():
            heads += check(arrays, exact, rows, True, setting)

    tokens = tokenizer.encode(TEXTS[text]()[: 8 * keys])[:keys]
    run_layers(partial(nn.forward, weights, tokens), nn.exact_attention, layers, take)
    for setting, heads in found.items():
        report(f"SmolLM2, {text}", setting, heads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", choices=TEXTS, default="library")
    parser.add_argument("--layers", nargs="*", type=int, default=[3, 13, 23])
    parser.add_argument("--keys", type=int, default=8192)
    parser.add_argument("--settings", nargs="*", default=["0.05", "0.02", "k=256"])
    parser.add_argument("--decoding", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    if given.decoding:
        decoding(given.keys, [setting for setting in given.settings if not setting.startswith("k=")])
        return
    columns = (
        "input", "setting", "heads", f"measured error within {FACTOR} x", "below", "above", "measured / true, geometric mean",
        "captured mass off by, median row", "rows within 0.2", "lse off by / tolerance, mean", "heads where that is <= 1",
        "rows within 5 x",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    hostile(given.keys, given.settings)
    smollm2(given.text, given.layers, given.keys, given.settings)


if __name__ == "__main__":
    record()
    main()
