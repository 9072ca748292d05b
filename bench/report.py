"""Write the tables of README.md and bench/README.md from the runs in bench/results.

    python bench/report.py

`<!-- NAME N -->` begins the N-th table of bench/results/NAME.json and `<!-- end -->` ends it. What was measured with another
version than the current one is marked: a table below it, or single rows, which are then {"version": ..., "cells": [...]}.
"""

import json
import re

from recorded import ROOT, current_version

FILES = (ROOT / "README.md", ROOT / "bench" / "README.md")
PLACE = re.compile(r"(<!-- (\w+) (\d+) -->\n).*?(<!-- end -->)", re.DOTALL)


def line_of(cells):
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def lines_of(run, table, current):
    """A table in Markdown."""
    yield line_of(table["columns"])
    yield "|" + "---|" * len(table["columns"])
    for row in table["rows"]:
        first, *others = row["cells"] if isinstance(row, dict) else row
        old = isinstance(row, dict) and row["version"] != current
        yield line_of([f"{first} ({row['version']})" if old else first, *others])
    if run["version"] != current:
        yield f"\nVersion: {run['version']} (now {current})."


def written(text, current=None):
    """The text with its tables as the results are."""

    def fill(place):
        begin, name, number, end = place.groups()
        run = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        lines = lines_of(run, run["tables"][int(number) - 1], current or current_version())
        return begin + "\n" + "\n".join(lines) + "\n\n" + end

    return PLACE.sub(fill, text)


if __name__ == "__main__":
    for file in FILES:
        file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")
