"""`--json PATH` for the scripts here: the tables that a run prints, with version, machine and command, for report.py."""

import argparse
import atexit
import json
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def current_version():
    """What is measured here: the newest version of CHANGELOG.md, released or not."""
    return re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]


def tables_of(text):
    """The Markdown tables of a text: [{"columns": [...], "rows": [[...], ...]}, ...], cells as they stand."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        columns, _, *rows = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in block.splitlines())
        found.append({"columns": columns, "rows": rows})
    return found


class Copied:
    """A stream that remembers what is written to it."""

    def __init__(self, stream):
        self.stream, self.written = stream, []

    def write(self, text):
        self.written.append(text)
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def record():
    """Takes ``--json PATH`` out of the command line; the file is written when the run ends, complete or not."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    own, sys.argv[1:] = parser.parse_known_args()
    if own.json is not None:
        sys.stdout = Copied(sys.stdout)
        atexit.register(save, own.json, shlex.join(["python", sys.argv[0], *sys.argv[1:]]), sys.stdout.written)


def save(path, command, written):
    """Write one run."""
    import icecore
    from icecore import _native, _tuning_file

    machine = f"{_tuning_file.processor()}, {_native.isa()}, threads: {icecore.get_num_threads()}"
    run = {"version": current_version(), "machine": machine, "command": command, "tables": tables_of("".join(written))}
    path.write_text(as_json(run), encoding="utf-8")


def as_json(run):
    """JSON with the cells of a row on one line, so that changes can be read."""
    string = r'"(?:[^"\\]|\\.)*"'
    cells = re.compile(rf"\[\s*{string}(?:,\s*{string})*\s*\]")
    text = json.dumps(run, ensure_ascii=False, indent=1)
    return cells.sub(lambda row: json.dumps(json.loads(row[0]), ensure_ascii=False), text) + "\n"
