"""Fuzzing of the loaders that are written in Python: files of models, tokenizers, indexes, caches and plans.

    python loaders.py TARGET [OPTION...]      changes the target's seeds; options of libFuzzer, such as -max_total_time=20
    python loaders.py TARGET FILE...          runs these inputs as they are
    python loaders.py                         names the targets

With atheris, libFuzzer looks at what the changes reach; without it they are random. A target raises when a loader raises
something that it does not document, when a message does not name the file, or when what was loaded cannot be used.
"""

# ruff: noqa: E402 - the environment and the instrumentation come before the modules they are for
import json
import os
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

os.environ["ICECORE_TUNING"] = "off"
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

try:
    import atheris
except ImportError:
    atheris = None

import numpy as np

with atheris.instrument_imports(include=["icecore"]) if atheris else nullcontext():
    import icecore
    from icecore import nn

from helpers import VARIANTS, index_bytes, normal, resealed
from model_files import DECODERS, SETTINGS, decoder_tensors, write_model
from test_nn_bert import CONFIG as BERT
from test_nn_bert import tiny_tensors as bert_tensors
from test_nn_damaged_files import added_merges, dinov2_onnx, edited, edited_json
from test_nn_near_far_cache import saved_with_sliding
from test_nn_tokenizer import byte_tokenizer, write_tokenizer
from test_nn_weights import HF_CONFIG, hf_tensors, write_gguf

from icecore._plan import HeadPlan, LayerPlan, Plan

MAX_INPUT = 1 << 18


class Target(NamedTuple):
    """`prepare` gets an empty folder and returns its seeds and the function that is run on each input."""

    prepare: Callable
    mutate: Callable = edited


def accepted(load, place, also=()):
    """What is loaded; None where it is refused as documented: by a ValueError that names the place."""
    try:
        return load()
    except (ValueError, *also) as error:
        if str(place) not in str(error):
            raise AssertionError("the message does not name the file") from error
        return None


def reread(place, load, use):
    """The function of a target: writes the input to a file, loads that, and uses what was loaded."""

    def run(data):
        place.write_bytes(data)
        loaded = accepted(load, place.parent, (FileNotFoundError,))
        if loaded is not None:
            use(loaded)

    return run


def use_model(weights):
    """A forward pass over a few tokens or pixels."""
    config = weights.config
    if isinstance(weights, nn.VitWeights):
        nn.encode_image(weights, np.ones((config.patch, 2 * config.patch, 3), np.float32))
        return
    tokens = np.arange(min(5, config.context_length)) % config.vocabulary
    if isinstance(weights, nn.BertWeights):
        nn.encode_tokens(weights, [tokens])
        return
    nn.forward(weights, tokens)
    cache = nn.NearFarCache(k=2, window=4, sinks=1)
    nn.forward(weights, tokens[:-1] if len(tokens) > 1 else tokens, cache=cache)


def use_tokenizer(tokenizer):
    tokens = tokenizer.encode("ab and, a<think>    b<|end|> é")
    tokenizer.decode(tokens)


# Models --------------------------------------------------------------------------------------------------


def safetensors(folder):
    place = write_model(folder, HF_CONFIG, hf_tensors()) / "model.safetensors"
    return [place.read_bytes()], reread(place, lambda: nn.load_model(folder), use_model)


FAMILIES = [*DECODERS, "bert"]


def configurations(folder):
    """The first byte of an input is the family whose tensors lie beside the configuration."""
    runs, seeds = [], []
    for number, family in enumerate(FAMILIES):
        own = folder / family
        own.mkdir()
        settings, tensors = (BERT, bert_tensors()) if family == "bert" else (SETTINGS[family], decoder_tensors(family))
        place = write_model(own, settings, tensors) / "config.json"
        runs.append(reread(place, lambda own=own: nn.load_model(own), use_model))
        scaling = {"layer_types": None, "rope_scaling": {"rope_type": "default"}}
        for more in ({}, {"rope_parameters": {"rope_theta": 1e4}}, scaling):
            seeds.append(bytes([number]) + json.dumps(settings | more).encode())

    def run(data):
        if data:
            runs[data[0] % len(runs)](data[1:])

    return seeds, run


def mutate_configuration(data, rng):
    return data[:1] + mutate_json(data[1:], rng)


def mutate_json(data, rng):
    try:
        return edited_json(json.loads(data), rng) if rng.random() < 0.8 else edited(data, rng)
    except (ValueError, RecursionError):
        return edited(data, rng)


def gguf(folder):
    place = write_gguf(folder / "model.gguf", hf_tensors())
    return [place.read_bytes()], reread(place, lambda: nn.load_model(place), use_model)


def tokenizer(folder):
    place = write_tokenizer(folder / "tokenizer.gguf", **byte_tokenizer(merges=["e n", "en d"]) | added_merges())
    return [place.read_bytes()], reread(place, lambda: nn.load_tokenizer(place), use_tokenizer)


def onnx(folder):
    place = dinov2_onnx(folder / "model.onnx")
    return [place.read_bytes()], reread(place, lambda: nn.load_model(place), use_model)


# Indexes and caches --------------------------------------------------------------------------------------


def sealed(data):
    """The file with the checksums of what it holds, where it has a header to hold them."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        body = f"{zlib.crc32(data[start:]):08x}"
        return resealed(data, lambda header: header["__metadata__"].update(checksum=body))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error):
        return data


def mutate_saved(data, rng):
    """Changes the JSON header, the JSON of parameters in it, or bytes."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        what = rng.integers(3)
        if what == 0:
            metadata = header["__metadata__"]
            metadata["parameters"] = edited_json(json.loads(metadata["parameters"]), rng).decode()
            text = json.dumps(header).encode()
        elif what == 1:
            text = edited_json(header, rng)
        else:
            return data[:start] + edited(data[start:], rng)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return edited(data, rng)
    return len(text).to_bytes(8, "little") + text + data[start:]


def index(folder):
    place, seeds = folder / "index", []
    for options in VARIANTS.values():
        for dtype in ("float32", "bfloat16"):
            own = icecore.Index(3, dtype=dtype, **options)
            own.add(normal(0, 1024, 3))  # which are sealed
            own.add(normal(1, 3, 3))
            seeds.append(index_bytes(own))

    def use(loaded):
        queries = np.ones((2, loaded.dim), np.float32)
        loaded.search(queries, 3)
        loaded.search(queries, 3, exact=True)
        loaded.save(folder / "again")
        if loaded.stats["read_only"]:
            loaded = loaded.copy()
        loaded.add(queries)
        loaded.remove(loaded.ids[:2])
        loaded.compact()
        loaded.search(queries, 3, filter=loaded.ids[:5])
        icecore.Index.view(folder / "again").search(queries, 3)

    return seeds, saved(place, (icecore.Index.load, icecore.Index.view), use)


def cache(folder):
    place, seeds = folder / "cache", []
    rows = np.random.default_rng(0).standard_normal((2, 2, 70, 4), np.float32)
    batched = {"k": 5, "batch": 2, "dtype": "bfloat16"}
    for options in ({"k": 4}, {"tolerance": 0.1, "dtype": "int8"}, {"k": 4, "dtype": "int4"}, batched):
        own = icecore.KVCache(2, 4, window=16, sinks=2, **options)
        tokens = rows if "batch" in options else rows[0]
        own.append(tokens, tokens)
        own.attend(tokens[..., -3:, :])
        seeds.append(index_bytes(own))

    def use(loaded):
        shape = (*(() if loaded.batch is None else (loaded.batch,)), loaded.num_kv_heads, 2)
        keys, values = (np.ones((*shape, width), np.float32) for width in (loaded.dim, loaded.value_dim))
        loaded.append(keys, values)
        loaded.attend(keys)
        fork = loaded.fork()
        fork.evict(len(fork) // 2)
        fork.attend(keys[..., :1, :])
        fork.save(folder / "again")
        icecore.KVCache.view(folder / "again").attend(keys[..., :1, :])

    return seeds, saved(place, (icecore.KVCache.load, icecore.KVCache.view), use)


def saved(place, openers, use):
    runs = [reread(place, lambda opener=opener: opener(place), use) for opener in openers]

    def run(data):
        for each in runs:
            each(sealed(data))

    return run


def near_far_cache(folder):
    """cache.json of a saved near/far cache."""
    path = saved_with_sliding(folder)
    place = path / "cache.json"
    rows = np.ones((2, 1, 8), np.float32)

    def use(loaded):
        for layer, options in enumerate(({}, {"window": 7})):
            with suppress(ValueError):  # where a layer's file is not named any more
                loaded.attend(nn.exact_attention, layer, rows, rows, rows, **options)

    return [place.read_bytes()], reread(place, lambda: nn.NearFarCache.load(path), use)


def plan(folder):
    heads = (HeadPlan("near_far", 64, 16, (0.1, 0.2), (0.1, 0.2)), HeadPlan("window", 64, 16, (0.1, 0.2), (0.1, 0.2)))
    layers = {number: LayerPlan(True, 0.1, heads, 0.1, 1.0, 2.0, 8) for number in range(2)}
    place = folder / "plan.json"
    Plan(0.1, 100, layers).save(place)

    def use(loaded):
        str(loaded)
        loaded.save(folder / "again")
        if Plan.load(folder / "again") != loaded:
            raise AssertionError("the plan is another one when it is saved")

    return [place.read_bytes()], reread(place, lambda: Plan.load(place), use)


TARGETS = {
    "safetensors": Target(safetensors),
    "configurations": Target(configurations, mutate_configuration),
    "gguf": Target(gguf),
    "tokenizer": Target(tokenizer),
    "onnx": Target(onnx),
    "index_file": Target(index, mutate_saved),
    "cache_file": Target(cache, mutate_saved),
    "near_far_cache": Target(near_far_cache, mutate_json),
    "plan": Target(plan, mutate_json),
}

# Running -------------------------------------------------------------------------------------------------


def fuzz_plainly(seeds, run, mutate, seconds, maximum, prefix):
    """Random changes without a look at coverage: the same ones each time."""
    rng, end, runs = np.random.default_rng(0), time.monotonic() + seconds, 0
    while runs < len(seeds) or (runs < maximum and time.monotonic() < end):
        data = seeds[runs % len(seeds)]
        for _ in range(rng.integers(1, 4) if runs >= len(seeds) else 0):
            data = mutate(data, rng)
        try:
            run(data)
        except BaseException:
            place = Path(f"{prefix}crash-{zlib.crc32(data):08x}")
            place.write_bytes(data)
            print(f"the input is kept as {place}", file=sys.stderr)
            raise
        runs += 1
    print(f"Done {runs} runs")


def main(name, *arguments):
    target = TARGETS[name]
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory(prefix="icecore-fuzz-") as folder:
        seeds, run = target.prepare(Path(folder))
        files = [argument for argument in arguments if not argument.startswith("-")]
        if files:
            for file in files:
                run(Path(file).read_bytes())
        elif atheris:
            corpus = Path(folder, "corpus")
            corpus.mkdir()
            for number, seed in enumerate(seeds):
                (corpus / str(number)).write_bytes(seed)

            def mutate(data, capacity, seed):
                return target.mutate(data, np.random.default_rng(seed))[:capacity]

            options = [f"-max_len={MAX_INPUT}", *arguments, str(corpus)]
            atheris.Setup([sys.argv[0], *options], run, custom_mutator=mutate)
            atheris.Fuzz()
        else:
            options = dict(argument.split("=", 1) for argument in arguments)
            seconds, prefix = float(options.get("-max_total_time", 10)), options.get("-artifact_prefix", "")
            fuzz_plainly(seeds, run, target.mutate, seconds, float(options.get("-runs", "inf")), prefix)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:])
    else:
        print(*TARGETS)
