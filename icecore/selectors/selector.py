"""What all selectors have in common: checked parameters, and the calls of the core and of the oracle that take them."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, fields
from typing import ClassVar

from icecore import _native
from icecore._arrays import integer


@dataclass(frozen=True)
class Selector:
    """A method of choosing keys. The core's ``attend_NAME`` takes its parameters in their order, the oracle's
    ``NAME_attention`` by name, and both a seed where it draws random numbers."""

    name: ClassVar[str]
    _is_seeded: ClassVar[bool] = False
    _needs_causal: ClassVar[bool] = False

    def _check(self, causal):
        """ValueError where it cannot attend so."""
        if self._needs_causal and not causal:
            raise ValueError(f"selector={self.name!r} needs causal=True")

    def _takes_all(self, keys):
        """Whether it would choose all of so many keys, so that attention is exact."""
        return self.k >= keys

    def _parameters(self):
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def _attend(self, problem, seed, near_count):
        seeds = [seed] if self._is_seeded else []
        getattr(_native, f"attend_{self.name}")(problem, *self._parameters().values(), *seeds, near_count)

    def _oracle(self, query, key, value, seed, **options):
        from icecore import reference

        seeds = {"seed": seed} if self._is_seeded else {}
        attend = getattr(reference, f"{self.name}_attention")
        return attend(query, key, value, **self._parameters(), **seeds, **options)

    def _set_integers(self, *names, minimum=1, maximum=None):
        """Check that these parameters are integers within bounds, and keep them as such."""
        for name in names:
            number = integer(getattr(self, name), name, minimum)
            if maximum is not None and number > maximum:
                raise ValueError(f"{name} must be at most {maximum}, got {number}")
            object.__setattr__(self, name, number)

    def _set_shares(self, *names):
        """Check that these parameters are above 0 and below 1, and keep them as floats."""
        for name in names:
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, numbers.Real):
                raise TypeError(f"{name} must be a number, got {type(number).__name__}")
            if not 0 < number < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {number}")
            object.__setattr__(self, name, float(number))
