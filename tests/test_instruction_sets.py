"""csrc/isa/sets.txt, the one list of instruction sets, is whole: what it names is there, and what is there it names."""

import re
from pathlib import Path

from icecore import _native

CSRC = Path(__file__).parents[1] / "csrc"
LINES = [line for line in (CSRC / "isa/sets.txt").read_text().splitlines() if not line.startswith("#")]
NAMES = [line.split("|")[0].strip() for line in LINES]


def test_every_line_has_all_columns():
    for line in LINES:
        name, machine, flags, probe = (part.strip() for part in line.split("|"))
        assert re.fullmatch("[a-z0-9_]+", name) and machine in ("x86_64", "aarch64"), line
        assert all(flag.startswith("-m") for flag in flags.split()) and probe, line


def test_every_instruction_set_has_its_files_and_its_line():
    tables = {file.stem for file in (CSRC / "isa").glob("*.c") if "kernels/table.inc.h" in file.read_text()}
    assert tables == {*NAMES, "scalar"}
    asked = re.findall(r"^int ice_cpu_(\w+)\(void\);", (CSRC / "base/cpu.h").read_text(), re.MULTILINE)
    assert {*asked} == {*NAMES, "scalar"}


def test_those_that_are_built_stand_in_its_order():
    built = _native.built_isas()
    assert built == ["scalar", *(name for name in NAMES if name in built)]
