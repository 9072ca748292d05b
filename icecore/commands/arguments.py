"""Arguments that several commands take."""

import os
from contextlib import nullcontext
from pathlib import Path

import icecore
from icecore._runtime import MAX_THREADS


def add_threads(parser):
    """Add ``--threads``."""
    parser.add_argument("--threads", type=int, help="threads (default: all)")


def check(args, *files):
    """ValueError if ``--threads``, or a file that one of the options `files` names to be written, cannot be right."""
    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise ValueError(f"--threads must be from 1 to {MAX_THREADS}, got {args.threads}")
    for option in files:
        path = getattr(args, option)
        if not path:
            continue
        folder = Path(path).resolve().parent
        if not folder.is_dir():
            raise ValueError(f"--{option}: no folder {folder}")
        if Path(path).is_dir():
            raise ValueError(f"--{option}: {path} is a folder; expected a file")
        if not os.access(path if Path(path).exists() else folder, os.W_OK):
            raise ValueError(f"--{option}: {path} cannot be written")


def threads(args):
    """A context in which calls use ``--threads``."""
    return nullcontext() if args.threads is None else icecore.threads(args.threads)
