"""Results as they come, one JSON object a line, so that a run that was stopped goes on where it was."""

import json
import platform
from pathlib import Path

import icecore

#: What the results of a record depend on: a line with the same is not computed again.
IDENTITY = ("model", "task", "case", "method", "icecore", "python")
#: Key of a result that is handed to other methods in this run and not stored.
MEMORY = "memory"


def identity(model, task, case, method):
    """The fields of a record that say what it is the result of; texts come with Python, hence its version."""
    return {
        "model": model,
        "task": task,
        "case": case,
        "method": {"name": method.name} | method.options,
        "icecore": icecore.__version__,
        "python": platform.python_version(),
    }


class Results:
    """Records by what they are the result of, with a file if a path is given.

    Parameters
    ----------
    path : path-like, optional
        A file of JSON lines, read if it exists and continued. A last line that was cut off is dropped.

    Raises
    ------
    ValueError
        If a line is not a record.
    OSError
        If the file cannot be read or written.
    """

    def __init__(self, path=None):
        self.path = None if path is None else Path(path)
        self._records = {}
        if self.path is not None:
            with self.path.open("a+", encoding="utf-8") as file:
                file.seek(0)
                text = file.read()
                whole = text[: text.rfind("\n") + 1]
                if len(whole) < len(text):
                    file.truncate(len(whole.encode()))
            for number, line in enumerate(whole.splitlines(), 1):
                self._hold(_record(line, f"{path}, line {number}"))

    def find(self, wanted):
        """The record of an `identity`, or None."""
        return self._records.get(_key(wanted))

    def add(self, record):
        """Hold a record, and write it to the file at once."""
        self._hold(record)
        if self.path is not None:
            stored = record | {"result": {name: value for name, value in record["result"].items() if name != MEMORY}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(stored) + "\n")

    def _hold(self, record):
        self._records[_key(record)] = record


def _key(record):
    return json.dumps([record[name] for name in IDENTITY], sort_keys=True)


def _record(line, where):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    expected = {*IDENTITY, "seconds", "result"}
    if not isinstance(record, dict) or set(record) != expected:
        raise ValueError(f"{where} is not a result; expected an object of {', '.join(sorted(expected))}")
    return record
