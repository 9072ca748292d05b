"""Models in Hugging Face's layout: config.json beside one or more .safetensors files."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from .extras import import_extra


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
    stored : dict of str to callable
        Each reads the tensor of its name as float32, from float32, float16 or bfloat16; ValueError for other types.

    Raises
    ------
    ImportError
        If the package safetensors is missing.
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no .safetensors file in {path}")
    stored = {name: read for file in files for name, read in _tensors(file).items()}
    file = directory / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"), object_hook=lambda contents: Settings(contents, file))
    return settings, stored


class Settings(dict):
    """An object in a config.json; a setting that is missing is named together with the file."""

    def __init__(self, contents, file):
        super().__init__(contents)
        self._file = file

    def __missing__(self, name):
        raise ValueError(f"{self._file} has no {name!r}")

    def expect(self, **values):
        """Raise ValueError if a setting is there, is not null and is not one of its `values` (a tuple each)."""
        for name, expected in values.items():
            value = self.get(name)
            if value is not None and value not in expected:
                allowed = " or ".join(map(repr, expected or (None,)))
                raise ValueError(f"{name}={value!r} is not supported; expected {allowed}")


def _tensors(file):
    """What reads each tensor of one file, by name."""
    safetensors = import_extra("safetensors")
    try:
        entries = safetensors.deserialize(file.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from error
    return {name: partial(_as_float32, name, **entry) for name, entry in entries}


def _as_float32(name, dtype, shape, data):
    """A tensor of a safetensors file as a float32 array."""
    if dtype == "BF16":  # the upper half of a float32
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in ("F32", "F16"):
        values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
    else:
        raise ValueError(f"tensor {name} is {dtype}; F32, F16 and BF16 are supported")
    return values.reshape(shape)
