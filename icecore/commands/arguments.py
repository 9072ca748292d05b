"""Arguments that several commands take."""

from contextlib import nullcontext
from pathlib import Path

import icecore


def add_threads(parser):
    """Add ``--threads``."""
    parser.add_argument("--threads", type=int, help="threads (default: all)")


def check(args, *files):
    """ValueError if ``--threads`` or the folder of one of the options `files` cannot be right."""
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    for option in files:
        path = getattr(args, option)
        if path and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"--{option}: no folder {Path(path).resolve().parent}")


def threads(args):
    """A context in which calls use ``--threads``."""
    return nullcontext() if args.threads is None else icecore.threads(args.threads)
