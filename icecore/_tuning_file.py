"""The file in which ``python -m icecore tune`` keeps what it measured: JSON, an entry for each processor and instruction set.

``ICECORE_TUNING`` names it, or says ``off``; else it is ``icecore/tuning.json`` in ``XDG_CACHE_HOME`` or ``~/.cache``. Read
once, at first use. Entries of other machines and versions are left alone; a file that cannot be used brings one warning, and
the shipped costs.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import threading
import warnings
from dataclasses import asdict
from pathlib import Path

from icecore._files import replacing

FORMAT = 1
NOWHERE = "there is no file to write: ICECORE_TUNING is off, or there is no home directory"

_lock = threading.Lock()
_models = None


def _renew_lock():
    """In a forked process: another thread of the parent's may have held it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def path():
    """Where the file is or would be; None if switched off or the user has no home."""
    named = os.environ.get("ICECORE_TUNING", "")
    if named:
        return None if named == "off" else Path(named)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(cache) / "icecore" / "tuning.json"


@functools.cache
def processor():
    """Name of this machine's processor, as the operating system gives it."""
    wanted = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(map(str.strip, line.split(":", 1)) for line in first.splitlines() if ":" in line)
    return ", ".join(f"{name} {facts[name]}" for name in wanted if name in facts) or platform.machine()


def key(isa):
    """What an entry must name to be used here."""
    from icecore import __version__

    return {"isa": isa, "processor": processor(), "icecore": __version__}


def _read(file):
    """The entries; ValueError where it is not such a file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("icecore tuning") != FORMAT or not isinstance(content.get("entries"), list):
        raise ValueError("it is not a tuning file of icecore, or of another version's format")
    for entry in content["entries"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), dict):
            raise ValueError("it has an entry without a model")
    return content["entries"]


def models(model_type):
    """{instruction set: model} for this machine; ``model_type(**costs)`` raises TypeError or ValueError on bad costs."""
    global _models
    if _models is None:
        with _lock:
            if _models is None:
                _models = _load(model_type)
    return _models


def _load(model_type):
    file = path()
    if file is None:
        return {}
    try:
        entries = _read(file)
        own = [entry for entry in entries if key(entry.get("isa")).items() <= entry.items()]
        return {entry["isa"]: model_type(**entry["model"]) for entry in own}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        warnings.warn(f"icecore cannot use {file}: {error}; write a new one: python -m icecore tune", stacklevel=2)
        return {}


def save(model, isa, threads):
    """Puts the model in the file, in the place of an earlier one for the same key; returns the path. OSError if it cannot."""
    global _models
    file = path()
    if file is None:
        raise OSError(NOWHERE)
    try:
        entries = _read(file)
    except (OSError, ValueError, RecursionError):
        entries = []
    own = key(isa)
    entries = [entry for entry in entries if not own.items() <= entry.items()]
    entries.append({**own, "threads": threads, "model": asdict(model)})
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as target:
        target.write((json.dumps({"icecore tuning": FORMAT, "entries": entries}, indent=1) + "\n").encode())
    with _lock:
        _models = None
    return file
