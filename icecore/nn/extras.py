"""Lazy import of the optional packages that read models."""

from importlib import import_module


def import_extra(name):
    """Import an optional package, or raise ImportError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is needed here: pip install 'icecore[models]'") from error
