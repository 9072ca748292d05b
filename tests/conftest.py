"""Fixtures shared by all tests."""

import os

# The oracles' matrix products stay on one thread: two thread pools on the same cores cost seconds a test.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
# Several test processes on the same cores (pytest -n): a thread that waits leaves its core to others.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
# Which path a call takes must not depend on what was measured on this machine.
os.environ["ICECORE_TUNING"] = "off"

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import icecore
from icecore import _native

settings.register_profile(
    "icecore",
    deadline=None,
    max_examples=50,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # `isa` stays the same for all examples
)
settings.load_profile("icecore")


class Capture(NamedTuple):
    """One attention head group of a language model, float32 and read-only."""

    query: np.ndarray  # (3, 2048, 64)
    key: np.ndarray  # (1, 2048, 64)
    value: np.ndarray  # (1, 2048, 64)


@pytest.fixture(scope="session")
def capture():
    with np.load(Path(__file__).parent / "data" / "smollm2_layer15_head0_2048.npz") as file:
        arrays = Capture(*(file[name].astype(np.float32) for name in "qkv"))
    for array in arrays:
        array.flags.writeable = False
    return arrays


@pytest.fixture(params=[os.environ["ICECORE_ISA"]] if os.environ.get("ICECORE_ISA") else _native.usable_isas())
def isa(request):
    """Each usable instruction set in turn; the one of ICECORE_ISA where it is set."""
    before = _native.isa()
    icecore.set_isa(request.param)
    yield request.param
    icecore.set_isa(before)
