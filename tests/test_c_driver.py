"""The tests of the C core (tests/c) build without a warning and pass."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "c"


def test_the_core_without_python(tmp_path):
    compiler = os.environ.get("CC", "cc").split()[0]
    for tool in ("make", compiler):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    command = ["make", "--silent", f"-j{os.cpu_count()}", "-C", str(FOLDER), "test", f"BUILD={tmp_path}"]
    run = subprocess.run(command, capture_output=True, text=True)
    report = run.stdout.splitlines()
    problems = [line for line in report if line.startswith("FAILED")]
    assert run.returncode == 0, "\n".join([*problems, run.stderr])
    assert any(line.endswith(" passed, 0 failed") for line in report)
