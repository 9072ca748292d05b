"""Compare every kernel of each usable instruction set with the scalar one."""

from icecore import _native


def add_arguments(parser):
    """No arguments."""


def run(arguments):
    """Print one line a kernel; status 1 if any failed."""
    failures = 0
    for isa in _native.usable_isas():
        failed, report = _native.selftest(isa)
        failures += failed
        print(f"{isa}:\n{report}", end="" if report.endswith("\n") else "\n")
    print(f"{failures} failed" if failures else "all kernels agree")
    return 1 if failures else 0
