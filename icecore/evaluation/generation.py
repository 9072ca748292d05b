"""Continuations of real texts: where a method's greedy text first differs from exact attention's."""

import numpy as np

from icecore import nn

from .cost import Cost
from .perplexity import cases, check, leading_tokens
from .statistics import share
from .watch import COLUMNS, Watch

__all__ = ["LENGTHS", "MIN_LENGTH", "cases", "check", "compare", "cost", "overall", "run"]

LENGTHS = (4000,)
MIN_LENGTH = 256
#: Tokens of continuation.
NEW_TOKENS = 64


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"] - NEW_TOKENS, steps=NEW_TOKENS)]


def run(model, case, method, exact):
    """Continue a text, or follow exact attention's continuation and say at each step which token would come.

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
        ``tokens``: of exact attention its greedy continuation, of others their most likely token after each of exact's; and
        the means of `Watch` over the prompt. Up to the first difference a method's tokens are
        those that it would generate by itself.
    """
    prompt = leading_tokens(model, case["text"], case["length"])[:-NEW_TOKENS]
    watch, cache, tokens = Watch(method), method.cache(), []
    hidden = nn.forward(model.weights, prompt, attention=watch.method.causal, cache=cache)[-1]  # (width,)
    for step in range(NEW_TOKENS):
        _, logits = next(nn.logits_in_chunks(model.weights, hidden[None]))  # (1, vocabulary)
        tokens.append(int(logits[0].argmax()))
        if step + 1 < NEW_TOKENS:
            followed = tokens[-1] if exact is None else exact["tokens"][step]
            hidden = nn.forward(model.weights, [followed], attention=method.causal, cache=cache)[0]  # (width,)
    return {"tokens": tokens} | watch.means()


def compare(result, exact):
    """The columns of a report for one case."""
    equal = np.equal(result["tokens"], exact["tokens"])
    prefix = len(equal) if equal.all() else int(equal.argmin())
    return {"common_prefix": prefix, "equal_tokens": float(equal.mean()), **{name: result[name] for name in COLUMNS}}


def overall(pairs):
    """The columns of a report for all cases together, from pairs of a method's and exact attention's results."""
    rows = [compare(result, exact) for result, exact in pairs]
    equal = sum(round(row["equal_tokens"] * NEW_TOKENS) for row in rows)
    means = {"common_prefix": float(np.mean([row["common_prefix"] for row in rows]))}
    return means | {"equal_tokens": equal / (NEW_TOKENS * len(rows)), "interval": share(equal, NEW_TOKENS * len(rows))[3:]}
