"""A source folder that was not built says what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

import icecore


def test_importing_from_a_source_folder_that_is_not_built_says_what_to_run(tmp_path):
    package = Path(icecore.__file__).parent
    shutil.copytree(package, tmp_path / "icecore", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    for command in (["-c", "import icecore"], ["-m", "icecore", "info"], ["-c", "import icecore.nn"]):
        # without site-packages, where an editable installation may lend the compiled part of another folder
        run = subprocess.run([sys.executable, "-S", *command], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode != 0
        assert "icecore is not built in" in run.stderr
        assert str(tmp_path) in run.stderr and "pip install -e ." in run.stderr
