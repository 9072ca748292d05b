"""A needle in running text, at depths from its beginning to its end and for several lengths."""

import numpy as np

from . import ruler
from .cost import Cost
from .haystack import names
from .questions import ask, compare, contains, overall

__all__ = ["LENGTHS", "MIN_LENGTH", "cases", "check", "compare", "context", "cost", "overall", "run"]

LENGTHS = (1000, 2000, 4000)
MIN_LENGTH = 1000
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Needles of a case, each in a context of its own, where `--samples` says nothing else.
SAMPLES = 2
#: Tokens of an answer at most.
NEW_TOKENS = 16


def cases(lengths, names):
    """One for each text, length and depth."""
    return [{"text": name, "length": length, "depth": depth, "samples": SAMPLES}
            for name in names or ["manual"] for length in lengths for depth in DEPTHS]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"], steps=NEW_TOKENS)] * case["samples"]


def check(model, case):
    """ImportError if the case's text is not installed, ValueError if there is none or the length does not do."""
    contexts(model, **case)


def run(model, case, method, exact):
    """Read contexts and say what their needles are; arguments and result as of the other tasks, see `ask`."""
    return ask(model, contexts(model, **case), method, exact, rule=contains, new_tokens=NEW_TOKENS, lasting=True)


def contexts(model, samples, **case):
    """A `context` of each seed below `samples`."""
    return [context(model, seed=seed, **case) for seed in range(samples)]


def context(model, text, length, depth, seed):
    """A text with one magic number of RULER's in it, at a depth of 0 to 1; of `length` tokens with question and answer."""
    rng = np.random.default_rng(seed)
    return ruler.needles(model, text, length - NEW_TOKENS, rng, keys=names(rng, 1), values=1, depths=[depth])
