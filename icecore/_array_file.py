"""An index or a cache as a file: safetensors (a length, a JSON header, arrays), which any reader of that format opens.

The header's metadata hold the format's version, the parameters of what is saved, and checksums of data and header. Arrays lie
so that a memory map of the file can be used in place.
"""

from __future__ import annotations

import errno
import json
import operator
import os
import struct
import zlib
from typing import NamedTuple

import numpy as np

from icecore._files import replacing

#: Types of the core's arrays: (name in the file, bytes). 16-bit floats are named by the parameter dtype.
TYPES = {"b": ("U8", 1), "i": ("I32", 4), "l": ("I64", 8), "f": ("F32", 4)}
HALF = {"float32": "BF16", "float16": "F16", "bfloat16": "BF16", "int8": "BF16", "int4": "BF16"}
LARGEST_HEADER = 100_000_000
UNKNOWN = "00000000"


class Format(NamedTuple):
    """What a file holds: its name there and in messages, the version, and which parameter is the width of an array's rows."""

    name: str
    noun: str
    version: int
    widths: dict


def _header(form, table, parameters, checksum):
    half = HALF.get(parameters["dtype"])
    entries, offset = {}, 0
    for name, kind, count in table:
        type_name, size = TYPES.get(kind, (half, 2))
        # rows of bytes hold their scales too, or lie in halves
        width = parameters[form.widths[name]] if name in form.widths and kind != "b" else None
        shape = [count] if width is None else [count // width, width]
        entries[name] = {"dtype": type_name, "shape": shape, "data_offsets": [offset, offset + count * size]}
        offset += count * size
    metadata = {
        "format": form.name,
        "version": str(form.version),
        "parameters": json.dumps(parameters),
        "checksum": checksum,
        "header_checksum": UNKNOWN,
    }
    text = _padded({"__metadata__": metadata, **entries})
    metadata["header_checksum"] = f"{zlib.crc32(text):08x}"
    return _padded({"__metadata__": metadata, **entries})


def _padded(header):
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-(8 + len(text)) % 64)


def write(form, parameters, give, file):
    """Writes to a seekable binary file what the core's `give` gives, piece by piece."""
    state = {"table": None, "checksum": 0, "start": file.tell()}

    def take(table, piece):
        if table is not None:
            state["table"] = table
            header = _header(form, table, parameters, UNKNOWN)
            file.write(struct.pack("<Q", len(header)) + header)
        else:
            state["checksum"] = zlib.crc32(piece, state["checksum"])
            file.write(piece)

    give(take)
    end = file.tell()
    file.seek(state["start"] + 8)
    file.write(_header(form, state["table"], parameters, f"{state['checksum']:08x}"))
    file.seek(end)


def save(form, parameters, give, path):
    """`path` is the old file or the whole new one."""
    with replacing(path) as file:
        write(form, parameters, give, file)


def contents(path):
    """The file as an array of uint8, in memory."""
    return np.fromfile(_checked(path), np.uint8)


def mapped(path):
    """The file as an array of uint8, read as it is used."""
    path = _checked(path)
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
    try:
        return np.memmap(path, np.uint8, mode="r") if size else np.empty(0, np.uint8)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"icecore: no address space left to map {path}") from error
        raise


def _checked(path):
    """TypeError for what is no path: a number would be a file that is open."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path must be a str or an os.PathLike, got {type(path).__name__}")
    return path


class Refused(ValueError):
    """A file that is not what it should be, or a damaged one."""


def _object(pairs):
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name is used twice")
    return dict(pairs)


def parse(form, data, verify):
    """`data`: the whole file as an array of uint8. (parameters, [(name, type, bytes)]); raises Refused with the reason."""
    if len(data) < 8:
        raise Refused("it is too short for a header")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(LARGEST_HEADER, len(data) - 8):
        raise Refused("it is not a safetensors file, or its header is cut off")
    text, body = data[8 : 8 + length].tobytes(), data[8 + length :]
    try:
        header = json.loads(text, object_pairs_hook=_object)
        metadata = header.pop("__metadata__")
        if metadata["format"] != form.name:
            raise Refused(f"it holds {metadata['format']!r}, not {form.noun}")
        if metadata["version"] != str(form.version):
            raise Refused(f"it is of version {metadata['version']!r}; this icecore reads version {form.version}")
        checksum = metadata["header_checksum"]
        plain = text.replace(f'"header_checksum":"{checksum}"'.encode(), f'"header_checksum":"{UNKNOWN}"'.encode(), 1)
        if not isinstance(checksum, str) or f"{zlib.crc32(plain):08x}" != checksum:
            raise Refused("its header is damaged")
        parameters = json.loads(metadata["parameters"])
        arrays = _arrays(header, body, HALF.get(parameters["dtype"]))
        if verify and f"{zlib.crc32(body):08x}" != metadata["checksum"]:
            raise Refused("its data are damaged: the checksum differs")
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"its header is not one of {form.noun} ({error})") from error
    return parameters, arrays


def _arrays(header, body, half):
    kinds = {name: (kind, size) for kind, (name, size) in TYPES.items()} | {half: ("h", 2)}
    arrays, end = [], 0
    for name, entry in header.items():
        kind, size = kinds[entry["dtype"]]
        first, last = entry["data_offsets"]
        count = 1
        for axis in entry["shape"]:
            count *= operator.index(axis)
        if first != end or last - first != count * size or last > len(body):
            raise Refused(f"{name} is cut off or out of place")
        arrays.append((name, kind, body[first:last]))
        end = last
    if end != len(body):
        raise Refused(f"{len(body) - end} bytes at its end belong to no array")
    return arrays
