"""Part of a long real text once more: the tokens of it that a model, shown those before, copies right."""

from itertools import pairwise

import numpy as np

from icecore import nn

from .cost import Cost
from .perplexity import leading_tokens
from .questions import compare, overall
from .watch import Watch

__all__ = ["LENGTHS", "MIN_LENGTH", "cases", "check", "compare", "context", "cost", "overall", "run"]

LENGTHS = (6100,)
MIN_LENGTH = 1000
#: Tokens that come again.
COPIED = 500


def cases(lengths, names):
    """One for each text and length."""
    return [{"text": name, "length": length, "seed": 0} for name in names or ["source"] for length in lengths]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"] - COPIED, steps=COPIED)]


def check(model, case):
    """ImportError if the case's text is not installed, ValueError if there is none or it is too short."""
    context(model, **case)


def context(model, text, length, seed):
    """A text, and part of it from a place at random.

    Parameters
    ----------
    model : Model
    text : str
        One of `texts.TEXTS`.
    length : int
        Tokens of both together.
    seed : int
        Of the place.

    Returns
    -------
    tokens : ndarray, (length - COPIED,)
    again : ndarray, (COPIED,)
    """
    tokens = np.asarray(leading_tokens(model, text, length - COPIED))
    first = np.random.default_rng(seed).integers(len(tokens) - COPIED + 1)
    return tokens, tokens[first : first + COPIED]


def run(model, case, method, exact):
    """Read the text, then its part token by token from the cache, and say after each which would come.

    Parameters
    ----------
    model : Model
    case : dict
    method : Method
    exact : dict or None
        Not used.

    Returns
    -------
    dict
        ``right``, whether the most likely token is the next one, of all but the last; and the means of `Watch` over the text.
    """
    tokens, again = context(model, **case)
    watch, cache, right = Watch(method), method.cache(), []
    nn.forward(model.weights, tokens, attention=watch.method.causal, cache=cache)
    for token, following in pairwise(again):
        hidden = nn.forward(model.weights, [token], attention=method.causal, cache=cache)  # (1, width)
        _, logits = next(nn.logits_in_chunks(model.weights, hidden))  # (1, vocabulary)
        right.append(bool(logits[0].argmax() == following))
    return {"right": right} | watch.means()
