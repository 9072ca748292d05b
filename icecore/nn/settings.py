"""A model's settings, as its file has them: checked as they are read."""

import reprlib
import sys
from contextlib import contextmanager


@contextmanager
def refusing(path, what):
    """The one door of a file that may hold anything: whatever it leads to is a ValueError that names it.

    Files that are missing or cannot be read, packages and memory that are lacking stay what they are.

    Parameters
    ----------
    path : path-like
    what : str
        What the file is not, for the message: "is not a usable model", say.
    """
    try:
        yield
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(f"{path} {what}: {reason}") from error


class Settings(dict):
    """Settings by name; what is null has its default. One that is missing or that cannot be is a ValueError that names it.

    Parameters
    ----------
    contents : dict
    file : path-like
        For messages.
    """

    def __init__(self, contents, file):
        super().__init__(contents)
        self._file = file

    def __missing__(self, name):
        raise ValueError(f"{self._file} has no {name!r}")

    def count(self, name, default=None):
        """A positive integer."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {reprlib.repr(value)}")
        return value

    def number(self, name, default=None):
        """A finite number above 0."""
        value = self._value(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
            raise ValueError(f"{name} must be a finite number above 0, got {reprlib.repr(value)}")
        return float(value)

    def flag(self, name, default):
        """True or False."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {reprlib.repr(value)}")
        return value

    def part(self, name, default=None):
        """Settings within a setting."""
        value = self._value(name, default)
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be an object, got {reprlib.repr(value)}")
        return Settings(value, self._file)

    def multiple(self, name, divisor):
        """A positive integer that the setting `divisor` divides."""
        value, parts = self.count(name), self.count(divisor)
        if value % parts:
            raise ValueError(f"{name} must be a multiple of {divisor}={parts}, got {value}")
        return value

    def expect(self, **values):
        """Raise ValueError if a setting is there, is not null and is not one of its `values` (a tuple each)."""
        for name, expected in values.items():
            value = self.get(name)
            if value is not None and value not in expected:
                allowed = " or ".join(dict.fromkeys(map(repr, expected or (None,))))
                raise ValueError(f"{name}={reprlib.repr(value)} is not supported; expected {allowed}")

    def _value(self, name, default):
        value = self.get(name)
        if value is not None:
            return value
        return self[name] if default is None else default
