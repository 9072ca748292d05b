"""Models in Hugging Face's layout: config.json beside one or more .safetensors files.

A .safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: type, shape and place of each
tensor) and the tensors' bytes. It is read here, tensor by tensor, so that a model is never held twice.
"""

import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np

from .settings import Settings
from .tensors import Stored

LARGEST_HEADER = 100_000_000  # the format's own limit
INDEX = "model.safetensors.index.json"
TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # of files -> what NumPy reads
SHARD = re.compile(r".*-(\d+)-of-(\d+)\.safetensors")
POINTER = b"version https://git-lfs"


def read_model(path):
    """Open a model: its settings, and how to read its tensors.

    Parameters
    ----------
    path : path-like
        The directory, or one .safetensors file that holds the whole model.

    Returns
    -------
    settings : Settings
        The contents of config.json.
    stored : dict of str to Stored
        Each reads its tensor as float32, from float32, float16 or bfloat16; ValueError for other types.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, or two hold the same tensor.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}; expected a folder with config.json and .safetensors files "
            "(models of the Hugging Face Hub must be downloaded first)"
        )
    files, stored = _files(path), {}
    settings = _json((path if path.is_dir() else path.parent) / "config.json")
    for file, expected in files.items():
        own = _tensors(file)
        twice, missing = stored.keys() & own.keys(), expected - own.keys()
        if twice:
            raise ValueError(f"{min(twice)} is in {file.name} and in another file too")
        if missing:
            raise ValueError(f"{file} lacks {min(missing)}, which {INDEX} says it holds")
        stored |= own
    return settings, stored


def _json(file):
    """An object in a JSON file, as Settings."""
    contents = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(contents, dict):
        raise ValueError(f"{file} holds no JSON object")
    return Settings(contents, file)


def _files(path):
    """The files that make up a model, and for each the tensors that an index says it must hold.

    With an index those that it names; else model.safetensors where there is one; else all, which may be shards of one save.
    """
    if not path.is_dir():
        return {path: set()}
    if (path / INDEX).exists():
        return _indexed(path)
    if (path / "model.safetensors").exists():
        return {path / "model.safetensors": set()}
    files = {file: set() for file in sorted(path.glob("*.safetensors"))}
    if not files:
        raise FileNotFoundError(f"no .safetensors file in {path}")
    shards = [SHARD.fullmatch(file.name) for file in files]
    counts = {int(shard[2]) for shard in shards if shard}
    if len(counts) > 1:
        raise ValueError(f"shards of several saves lie in {path}, and no {INDEX} says which belong together")
    present = {int(shard[1]) for shard in shards if shard}
    for count in counts:
        missing = next((number for number in range(1, count + 1) if number not in present), None)
        if missing is not None:
            raise FileNotFoundError(f"shard {missing} of {count} is missing in {path}")
    return files


def _indexed(path):
    """The files that an index names, and which tensors it says each holds."""
    files, present = {}, {file.name for file in path.iterdir()}
    for name, file in _json(path / INDEX)["weight_map"].items():
        if Path(file).name != file or not file:
            raise ValueError(f"{INDEX} names {file!r}; expected a file in the same folder")
        if file not in present:
            raise FileNotFoundError(f"{path / file} is missing, which {INDEX} names")
        files.setdefault(path / file, set()).add(name)
    return files


def _tensors(file):
    """Each tensor of one file, by name."""
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(0)
        first = opened.read(len(POINTER))
        if first == POINTER:
            raise ValueError(f"{file} is a pointer of Git LFS, not the file itself: git lfs pull")
        length = int.from_bytes(first[:8], "little")
        if len(first) < 8 or length > LARGEST_HEADER:
            raise ValueError(f"{file} is not a safetensors file; those of other formats must be converted")
        opened.seek(8)
        text = opened.read(length)
    if len(text) < length:
        raise ValueError(f"{file} is cut off in its header, or is not a safetensors file")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = sorted((entry["data_offsets"], name) for name, entry in header.items())
        end = 0
        for (first, last), name in entries:
            if first != end or last < first:
                raise ValueError(f"{name} is out of place")
            end = last
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not a safetensors file: its header is damaged ({error})") from error
    if 8 + length + end != size:
        cut = "is cut off" if 8 + length + end > size else "holds more than its tensors"
        raise ValueError(f"{file} {cut}: its header tells of {8 + length + end} bytes, it has {size}")
    return {name: _stored(file, name, 8 + length, **entry) for name, entry in header.items()}


def _stored(file, name, start, dtype, shape, data_offsets):
    """A tensor of a file whose tensors lie from `start` on."""
    first, last = data_offsets
    if not all(isinstance(axis, int) and axis >= 0 for axis in shape):
        raise ValueError(f"tensor {name} of {file} has shape {shape}")
    if dtype in TYPES and math.prod(shape) * np.dtype(TYPES[dtype]).itemsize != last - first:
        raise ValueError(f"tensor {name} of {file} has {last - first} bytes; expected those of {dtype} {shape}")
    return Stored(tuple(shape), partial(_as_float32, file, name, dtype, tuple(shape), start + first))


def _as_float32(file, name, dtype, shape, offset):
    """A tensor of a safetensors file as a float32 array."""
    if dtype not in TYPES:
        raise ValueError(f"tensor {name} is {dtype}; F32, F16 and BF16 are supported")
    values = np.fromfile(file, TYPES[dtype], math.prod(shape), offset=offset)
    if dtype == "BF16":  # the upper half of a float32
        values = values.astype(np.uint32)
        values <<= 16
        values = values.view(np.float32)
    return values.astype(np.float32, copy=False).reshape(shape)
