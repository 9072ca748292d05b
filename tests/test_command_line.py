"""``python -m icecore`` among other commands."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("reader", ["head -n 1", "true"])
def test_whoever_reads_the_output_may_have_enough_early(reader):
    """No traceback, whether the pipe closes before or after the first line."""
    command = f"'{sys.executable}' -m icecore info | {reader}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert result.stderr == ""
    assert result.stdout == "" or result.stdout.startswith("icecore:")
