"""The oldest release of transformers whose interfaces icecore.transformers fits."""

import re

#: As in pyproject.toml: older ones were not tested.
OLDEST = (5, 20)


def check_release(version):
    """ImportError where the installed release is too old."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(f"icecore.transformers needs transformers {oldest} or later, but {version} is installed; expected "
                          f"pip install 'transformers>={oldest}'")
