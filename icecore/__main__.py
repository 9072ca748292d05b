"""``python -m icecore``: the command line; each command is a module of `icecore.commands`."""

import argparse
import os
import sys

from icecore import __version__
from icecore.commands import calibrate, demo, evaluate, info, selftest, tune

COMMANDS = {"calibrate": calibrate, "demo": demo, "evaluate": evaluate, "info": info, "selftest": selftest, "tune": tune}


def main(arguments=None):
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m icecore", description="Attention over long sequences on CPUs.")
    parser.add_argument("--version", action="version", version=f"icecore {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, command in COMMANDS.items():
        summary = command.__doc__.splitlines()[0]
        command.add_arguments(subparsers.add_parser(name, help=summary, description=summary))
    parsed = parser.parse_args(arguments)
    try:
        status = COMMANDS[parsed.command].run(parsed) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough: ``python -m icecore info | head -1``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
