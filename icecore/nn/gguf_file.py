"""GGUF files: opened once, read by the loaders of weights and tokenizer."""

from pathlib import Path

import numpy as np

from .extras import import_extra
from .settings import Settings, refusing


def open_gguf(path):
    """Open a GGUF file.

    Opening takes a second or two, so whoever needs both weights and tokenizer opens the file once and hands
    the reader to both loaders.

    Parameters
    ----------
    path : path-like or gguf.GGUFReader
        A reader is returned as it is.

    Returns
    -------
    gguf.GGUFReader

    Raises
    ------
    ImportError
        If the package gguf is missing.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not GGUF, is cut off or otherwise damaged, or is of the other byte order.
    """
    gguf = import_extra("gguf")
    reader = path
    if not isinstance(path, gguf.GGUFReader):
        with Path(path).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError(f"{path} is not a GGUF file")
        with refusing(path, "cannot be read as a GGUF file"):
            reader = _checking_reader(gguf)(path)
    if reader.byte_order == "S":
        raise ValueError(f"{name_of(reader)} is of the other byte order than this machine; gguf-convert-endian converts it")
    return reader


def _checking_reader(gguf):
    """gguf.GGUFReader, save that it does not read on behind the file's end."""

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, *options, **named):
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            if end > len(self.data):
                raise ValueError(f"it is cut off, or damaged: it has {len(self.data)} bytes and should go on to {end}")
            return super()._get(offset, dtype, count, *options, **named)

    return Reader


def name_of(reader):
    """The name of a reader's file, for messages."""
    return getattr(reader.data, "filename", None) or "the GGUF file"


def metadata(reader, key, default=None):
    """A metadata value of a GGUF file.

    Raises
    ------
    ValueError
        If the file lacks the key and there is no default.
    """
    field = reader.get_field(key)
    if field is not None:
        return field.contents()
    if default is None:
        raise ValueError(f"the GGUF file has no {key}")
    return default


def settings_of(reader, architecture):
    """All metadata under an architecture's prefix, without it."""
    prefix = f"{architecture}."
    fields = {key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)}
    return Settings(fields, name_of(reader))
