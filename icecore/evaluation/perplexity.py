"""Perplexity of real texts, second half of the context: ratio to exact attention's, and equal next tokens."""

from math import exp, log

import numpy as np

from icecore import nn

from . import texts
from .cost import Cost
from .watch import COLUMNS, Watch

LENGTHS = (8100,)
MIN_LENGTH = 256


def cases(lengths, names):
    """One for each text and length."""
    return [{"text": name, "length": length} for name in names or texts.available() for length in lengths]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"], logits=case["length"] // 2)]


def run(model, case, method, exact):
    """Score a text.

    Parameters
    ----------
    model : Model
    case : dict
    method : Method
    exact : dict or None
        The result of exact attention; None if this is it.

    Returns
    -------
    dict
        ``perplexity``, ``equal_tokens`` (share of places where the most likely next token is exact attention's),
        and the means of `Watch`; of exact attention ``predictions``, the most likely tokens.
    """
    tokens = leading_tokens(model, case["text"], case["length"])
    watch = Watch(method)
    hidden = nn.forward(model.weights, tokens, attention=watch.method.causal)  # (n, width)
    losses, predictions = nn.score(model.weights, hidden, tokens, start=len(tokens) // 2)
    result = {"perplexity": nn.perplexity(losses)} | watch.means()
    if exact is None:
        return result | {"predictions": predictions.tolist()}
    return result | {"equal_tokens": nn.agreement(predictions, exact["predictions"])}


def check(model, case):
    """ImportError if the case's text is not installed, ValueError if there is none or it is too short."""
    leading_tokens(model, case["text"], case["length"])


def leading_tokens(model, name, length):
    """The first tokens of a text, or ValueError if it is too short."""
    tokens = model.tokenizer.encode(texts.text(name))[:length]
    if len(tokens) < length:
        raise ValueError(f"length must be at most {len(tokens)}, the tokens of text {name}, got {length}")
    return tokens


def compare(result, exact):
    """The columns of a report for one case."""
    row = {"perplexity": result["perplexity"], "ratio": result["perplexity"] / exact["perplexity"]}
    return row | {name: result.get(name) for name in ("equal_tokens", *COLUMNS)}


def overall(pairs):
    """The columns of a report for all cases together, from pairs of a method's and exact attention's results."""
    ratios = [result["perplexity"] / exact["perplexity"] for result, exact in pairs]
    equal = [result["equal_tokens"] for result, _ in pairs if "equal_tokens" in result]
    row = {"ratio": exp(sum(map(log, ratios)) / len(ratios)), "worst_ratio": max(ratios)}
    return row | {"equal_tokens": float(np.mean(equal)) if equal else None}
