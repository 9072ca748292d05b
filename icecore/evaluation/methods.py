"""Methods of attention that are compared: a name and options become what models take as attention and as a cache."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import icecore
from icecore import nn, selectors

#: Method -> the selector that it is.
SELECTORS = {each.name: each for each in (getattr(selectors, name) for name in selectors.__all__)}
#: First tokens that every causal method sees.
SINKS = 16
#: Method -> its options where none are given. near_far takes k in place of tolerance.
DEFAULTS = {
    "exact": {},
    "near_far": {"tolerance": 0.02, "window": 768},
    **{name: {field.name: field.default for field in fields(each)} for name, each in SELECTORS.items()},
    "window": {"window": 1024},
    "plan": {"file": None},
}
#: Option -> its type; others are integers.
TYPES = {"tolerance": float, "file": str, "decode": float, "threshold": float, "epsilon": float, "delta": float,
         "retrieval": float, "estimation": float}


@dataclass(frozen=True)
class Method:
    """A method with its options.

    Attributes
    ----------
    name : str
        exact; near_far; the name of a class of `icecore.selectors`; window: sinks and window only; plan: what
        `icecore.calibrate` found, kept in a file.
    options : dict of str to number or str
        ``tolerance``, ``k`` and ``window`` as of `icecore.attention`; a selector's parameters; ``decode``, the tolerance of the
        cache that goes on where it is to be another than the prompt's; the ``file`` of a plan. A window counts in causal
        attention only.
    watch : callable, optional
        Called as ``watch(layer, info)`` with the `icecore.AttentionInfo` of each call.
    """

    name: str
    options: dict = field(default_factory=dict)
    watch: Callable | None = None

    def causal(self, query, key, value, *, layer, window=None):
        """Attention for decoders: what `nn.forward` takes. Layers with a window of their own attend to it exactly."""
        if window is not None or self.name == "exact":
            return self._attend(layer, query, key, value, causal=True, window=window)
        if self.name == "plan":
            return self._attend(layer, query, key, value, causal=True, plan=self.plan[layer])
        local = {"window": self.options["window"], "sinks": SINKS} if self.name in ("near_far", "window") else {}
        return self._attend(layer, query, key, value, causal=True, **local, **self._budget())

    def bidirectional(self, query, key, value, *, layer):
        """Attention for encoders: what `nn.encode_image` and `nn.encode_tokens` take."""
        if self.name == "window":
            raise ValueError("method window is for decoders, which attend causally")
        if self.name == "plan":
            return self._attend(layer, query, key, value, plan=self.plan[layer])
        return self._attend(layer, query, key, value, **self._budget())

    def cache(self):
        """A new cache for a decoder to generate with."""
        if self.name == "plan":
            return nn.NearFarCache(plan=self.plan)
        if self.name != "near_far":
            return nn.KeyValueCache()
        budget = {"tolerance": self.options["decode"]} if "decode" in self.options else self._budget()
        return nn.NearFarCache(sinks=SINKS, window=self.options["window"], **budget)

    @cached_property
    def plan(self):
        """The `icecore.Plan` of the method plan."""
        return icecore.Plan.load(self.options["file"])

    def watched(self, watch):
        """The same method, which calls `watch`."""
        return replace(self, watch=watch)

    def __str__(self):
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.options.items())])

    def _budget(self):
        """The options of `icecore.attention` that say which keys are near."""
        if self.name in SELECTORS:
            return {"selector": SELECTORS[self.name](**self.options)}
        return {name: self.options[name] for name in ("tolerance", "k") if name in self.options}

    def _attend(self, layer, query, key, value, **options):
        if self.watch is None:
            return icecore.attention(query, key, value, **options)
        out, info = icecore.attention(query, key, value, return_info=True, **options)
        self.watch(layer, info)
        return out


EXACT = Method("exact")


def method(name, *, tolerance=None, k=None, window=None, file=None, decode=None, **others):
    """A method by its name.

    Parameters
    ----------
    name : str
        One of `DEFAULTS`.
    tolerance : float, optional
        Of near_far, above 0 and below 1.
    k : int, optional
        Of selectors that have one; of near_far in place of a tolerance. At least 1.
    window : int, optional
        Of near_far, window and vattention. At least 1.
    file : path-like, optional
        Of plan: where it was saved.
    decode : float, optional
        Of near_far: the tolerance of its cache, above 0 and below 1.
    **others : number, optional
        Other parameters of a selector.

    Returns
    -------
    Method
        With the options of `DEFAULTS` where none are given.

    Raises
    ------
    ValueError
        For an unknown name, an option that the method does not take or lacks, a number out of range, or a file without a plan.
    """
    taken = takes(name)
    options = {"tolerance": tolerance, "k": k, "window": window, "file": file, "decode": decode} | others
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if option not in taken:
            raise ValueError(f"method {name} takes {' and '.join(taken) or 'no options'}, got {option}={value}")
        if option in ("tolerance", "decode") and not 0 < value < 1:
            raise ValueError(f"{option} must be above 0 and below 1, got {value}")
        if option in ("k", "window") and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if tolerance is not None and k is not None:
        raise ValueError(f"method {name} takes tolerance or k, got tolerance={tolerance} and k={k}")
    options = DEFAULTS[name] | given
    if name == "plan" and file is None:
        raise ValueError("method plan needs the file of a plan: plan:file=plan.json")
    if name == "near_far" and k is not None:
        del options["tolerance"]
    found = Method(name, {option: options[option] for option in taken if options.get(option) is not None})
    if name in SELECTORS:
        SELECTORS[name](**found.options)
    if name == "plan":
        try:
            _ = found.plan
        except OSError as error:
            raise ValueError(f"method plan: cannot read {file}: {error}") from error
    return found


def takes(name):
    """The options that a method takes, or ValueError if there is no such method."""
    if name not in DEFAULTS:
        raise ValueError(f"method must be one of {', '.join(DEFAULTS)}, got {name!r}")
    return ("tolerance", "k", "window", "decode") if name == "near_far" else tuple(DEFAULTS[name])


def parse(text, *, tolerance=None, k=None, window=None):
    """A method from ``name`` or ``name:option=value,...``, as the command line has it.

    Parameters
    ----------
    text : str
        For example ``near_far:tolerance=0.01,window=1024``.
    tolerance, k, window : number, optional
        Options where the text does not say them and the method takes them; a tolerance goes before k.

    Returns
    -------
    Method

    Raises
    ------
    ValueError
        If the text is of another form, or as in `method`.
    """
    name, _, settings = text.partition(":")
    options = {}
    for setting in filter(None, settings.split(",")):
        option, _, value = setting.partition("=")
        if option not in takes(name):
            raise ValueError(f"method {name} takes {' and '.join(takes(name)) or 'no options'}, got {setting}")
        try:
            options[option] = TYPES.get(option, int)(value)
        except ValueError:
            raise ValueError(f"method {name}: {option} must be a number, got {value!r}") from None
    budgeted = "tolerance" in options or "k" in options
    for option, value in (("tolerance", tolerance), ("k", k), ("window", window)):
        if value is None or option in options or option not in takes(name) or (budgeted and option != "window"):
            continue
        options[option] = value
        budgeted = budgeted or option != "window"
    return method(name, **options)
