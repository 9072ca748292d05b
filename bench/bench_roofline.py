"""Kernels of every usable instruction set against what one core can do at most: products, exponentials, bytes read.

    python bench/bench_roofline.py [--figure FILE]

Builds `roofline/` with the core's sources, in a folder of its own; needs make and a C compiler. The limits are measured by
loops of nothing but multiply-adds, dot products or tile products, nothing but exponentials, and nothing but loads. A kernel's
share is its least time by these limits over its own.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from recorded import record, tables_of

from icecore import _native

HERE = Path(__file__).parent / "roofline"


def run(seconds=2e-3):
    """The tables as text, each timing of so many seconds at least."""
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(["make", "-C", HERE, f"BUILD={folder}"], capture_output=True, text=True, check=False)
        if made.returncode:
            raise RuntimeError(f"make failed:\n{made.stderr}")
        return subprocess.run([f"{folder}/roofline", str(seconds)], capture_output=True, text=True, check=True).stdout


def draw(rows, path):
    """Shares, a bar for each kernel, a colour for each set."""
    from matplotlib.figure import Figure

    shares = {}
    for isa, kernel, *_, share in rows:
        if share.endswith("%"):
            shares.setdefault(kernel, {})[isa] = float(share.split()[0])
    sets = list(dict.fromkeys(row[0] for row in rows))
    drawing = Figure(figsize=(8, 5), layout="constrained")
    axis, height = drawing.subplots(), 0.8 / len(sets)
    for number, isa in enumerate(sets):
        places = [i + number * height for i, kernel in enumerate(shares) if isa in shares[kernel]]
        axis.barh(places, [own[isa] for own in shares.values() if isa in own], height, label=isa)
    axis.set_yticks([i + 0.4 - height / 2 for i in range(len(shares))], shares)
    axis.invert_yaxis()
    axis.axvline(100, color="gray", linestyle=":")
    axis.set_xlabel("% of what one core can do")
    axis.legend(fontsize=8)
    drawing.savefig(path, dpi=110)


def test_every_set_has_limits_and_kernels():
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    limits, kernels = tables_of(run(1e-5))
    assert [row[0] for row in limits["rows"]] == _native.usable_isas()
    assert list(dict.fromkeys(row[0] for row in kernels["rows"])) == _native.usable_isas()
    assert all(float(share.split()[0]) > 0 for *_, share in kernels["rows"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", metavar="FILE")
    given = parser.parse_args()
    text = run()
    print(text)
    if given.figure:
        draw(tables_of(text)[1]["rows"], given.figure)


if __name__ == "__main__":
    record()
    main()
