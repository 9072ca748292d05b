"""Files that are the old one or the whole new one, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def replacing(path):
    """A binary file under a temporary name beside `path`, which takes its place in the end and keeps its mode.

    A symbolic link stays one: what it points at is replaced. The contents are on the disk before the name is, and the name
    before this returns. Whatever is raised leaves the old file as it was, and nothing else; an OSError names `path`. What
    processes that were killed left of their saves to `path` goes with the next one.
    """
    path = Path(os.path.realpath(path))
    file, temporary = _temporary(path)
    try:
        with file:
            _sweep(path, temporary)
            with contextlib.suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # what a full disk says names no file
        raise
    sync_folder(path.parent)


def _beginning(path):
    """What names of temporary files for `path` begin with, however long its own name is."""
    return f".icecore-{hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()}-"


def is_temporary(path, name):
    """Whether a name is that of a temporary file for `path`."""
    return name.startswith(_beginning(path))


def _temporary(path):
    """A new file beside `path`, which is locked as long as its process lives and has it open, and its name."""
    while True:
        temporary = path.with_name(f"{_beginning(path)}{secrets.token_hex(8)}.tmp")
        file = open(temporary, "xb")
        if _locked(file) is not False and os.fstat(file.fileno()).st_nlink:
            return file, temporary
        file.close()  # swept before it was locked


def _locked(file):
    """Whether a lock of the file was taken; None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):
        return None
    return True


def _sweep(path, own):
    """Remove temporary files for `path` whose processes are gone: nobody holds their locks."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            if is_temporary(path, entry.name) and entry.name != own.name:
                with contextlib.suppress(OSError), open(entry.path, "rb") as file:
                    if _locked(file):
                        os.unlink(entry.path)


@contextlib.contextmanager
def at_work_in(folder):
    """Others can see that a process is at work in a new folder, and when it has died there."""
    mark = folder / "lock"
    with open(mark, "xb") as file:
        _locked(file)
        yield
    mark.unlink(missing_ok=True)


def is_abandoned(folder):
    """Whether nobody is at work in a folder; None where that cannot be seen."""
    try:
        with open(folder / "lock", "rb") as file:
            return _locked(file)
    except FileNotFoundError:
        return True if fcntl else None
    except OSError:
        return None


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
    """One process at a time, where the system has locks of files; a folder that is not there is made."""
    path = Path(path)
    while True:
        path.mkdir(exist_ok=True)
        if fcntl is None:
            yield
            return
        try:
            file = open(path / "lock", "ab")
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else removed by who held it before
                yield
                return
