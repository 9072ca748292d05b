"""Every kernel of every usable instruction set does what the scalar one does."""

import pytest

from icecore import _native


@pytest.mark.parametrize("name", _native.usable_isas())
def test_selftest(name):
    failures, report = _native.selftest(name)
    assert failures == 0, report
