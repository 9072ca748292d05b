"""Files that are the old one or the whole new one, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """A binary file under a temporary name beside `path`, which takes its place in the end and keeps its mode.

    A symbolic link stays one: what it points at is replaced. The contents are on the disk before the name is, and the name
    before this returns. Whatever is raised leaves the old file as it was, and nothing else.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path):
    """Names in a folder are on the disk when this returns, where the system can say so."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_folder(path):
    """One process at a time, where the system has locks of files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(Path(path) / "lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
