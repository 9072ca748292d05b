"""GGUF files: opened once, read by the loaders of weights and tokenizer."""

from pathlib import Path

from .extras import import_extra


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
        If the file is not GGUF.
    """
    gguf = import_extra("gguf")
    if isinstance(path, gguf.GGUFReader):
        return path
    with Path(path).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
    return gguf.GGUFReader(path)


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
