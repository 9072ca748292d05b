"""The tables of the README files are those of bench/results, and `--json` writes what a script prints."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("report")


def test_the_tables_are_those_of_the_results(report):
    for file in report.FILES:
        text = file.read_text(encoding="utf-8")
        assert report.written(text) == text, f"python bench/report.py writes {file.name} anew"


def test_every_table_is_shown_once_and_no_figure_stands_outside(report):
    texts = [file.read_text(encoding="utf-8") for file in report.FILES]
    shown = [(name, int(number)) for text in texts for _, name, number, _ in report.PLACE.findall(text)]
    runs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (BENCH / "results").glob("*.json")}
    assert sorted(shown) == sorted((name, i + 1) for name, run in runs.items() for i in range(len(run["tables"])))
    assert all(run["version"] and run["machine"] and run["command"] for run in runs.values())
    outside = report.PLACE.sub("", texts[1])
    assert len(re.findall(r"^\|---", outside, re.MULTILINE)) == 1  # the list of files


def test_what_an_older_version_measured_is_marked(report):
    run = {"version": "1", "tables": []}
    rows = [["x", "1"], {"version": "0", "cells": ["y", "2"]}, {"version": "1", "cells": ["z", "3"]}]
    table = {"columns": ["a", ""], "rows": rows}
    lines = ["| a | |", "|---|---|", "| x | 1 |", "| y (0) | 2 |", "| z | 3 |"]
    assert list(report.lines_of(run, table, "1")) == lines
    assert "Version: 1 (now 2)." in list(report.lines_of(run, table, "2"))[-1]


def test_json_holds_what_was_printed(report, tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "run.json"
    script.write_text("from recorded import record\nrecord()\nimport sys\n"
                      "print('words\\n| a | |\\n|---|---|\\n| [x] |  |\\n| \"y\" | 2 |\\n')\n"
                      "print(sys.argv[1:])\nprint('| b |\\n|---|\\n| 1 |')\n")
    command = [sys.executable, str(script), "--length", "8", "--json", str(path), "more"]
    code = f"import sys, runpy; sys.path.insert(0, {str(BENCH)!r}); sys.argv = {command[1:]!r}; runpy.run_path(sys.argv[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "['--length', '8', 'more']" in done.stdout
    run = json.loads(path.read_text(encoding="utf-8"))
    assert run["tables"] == [
        {"columns": ["a", ""], "rows": [["[x]", ""], ['"y"', "2"]]}, {"columns": ["b"], "rows": [["1"]]},
    ]
    assert run["command"] == f"python {script} --length 8 more"
    assert run["version"] == report.current_version() and "threads" in run["machine"]
