"""Questions about long contexts: each context is read once, and each question about it is asked and answered from there."""

import re
from itertools import islice
from typing import NamedTuple

import numpy as np

from icecore import nn

from .methods import EXACT
from .results import MEMORY
from .statistics import retained, share
from .watch import COLUMNS, Watch

#: Tokens of an answer at most: a number of five digits and what stands before it.
ANSWER_TOKENS = 8
#: Tokens kept free for a question with its answer.
ROOM = 40


class Question(NamedTuple):
    """What follows the context, up to the beginning of the answer, and how the right answer goes on."""

    text: str
    answer: str


def begins(came, question):
    """Whether the answer begins as the right one: of one."""
    return [came.lstrip().startswith(question.answer.strip())]


def contains(came, question):
    """Whether each word of the right answer is somewhere in what came, in any case: RULER's rule."""
    return [word.lower() in came.lower() for word in re.findall(r"\w+", question.answer)]


def ask(model, contexts, method, exact=None, *, rule=begins, new_tokens=ANSWER_TOKENS, lasting=False):
    """Read contexts, answer each question greedily, and say how likely the right answer is.

    Parameters
    ----------
    model : Model
    contexts : list of (array_like of int, list of Question)
        Tokens, and what is asked about them.
    method : Method
    exact : dict or None
        The result of exact attention; None if this is it, or to compare with nothing.
    rule : callable
        ``rule(came, question)`` says of each part of the right answer whether what came has it.
    new_tokens : int
        Of an answer at most.
    lasting : bool
        What is right by the rule stays right whatever follows: an answer ends where all of it is right.

    Returns
    -------
    dict
        ``right`` (of each part of each answer), ``answers`` (what came), of each question ``log_probability`` of the right
        answer, mean over its tokens in nats, and ``divergence``: KL of the distributions of these tokens from exact
        attention's, mean over them. The means of `Watch` over the contexts. Of exact attention ``memory``: the hidden states
        before these tokens, in place of the divergence; where `exact` lacks them they are computed and put there.
    """
    encode, watch = model.tokenizer.encode, Watch(method)
    right, answers, likely, states = [], [], [], []
    for context, questions in contexts:
        read = method.cache()
        nn.forward(model.weights, context, attention=watch.method.causal, cache=read)
        for question in questions:
            text, tokens, came = encode(question.text), [], ""
            for token in islice(_continued(model, text, method, read.fork()), new_tokens):
                tokens.append(token)
                came = model.tokenizer.decode(tokens)
                if lasting and all(rule(came, question)):
                    break
            answers.append(came)
            right += rule(came, question)
            followed = np.concatenate([text, encode(question.answer)])
            hidden = nn.forward(model.weights, followed, attention=method.causal, cache=read.fork())  # (n, width)
            losses, _ = nn.score(model.weights, hidden, followed, start=len(text))
            likely.append(-float(np.mean(losses, dtype=np.float64)))
            states.append(hidden[len(text) - 1 : -1])  # (tokens of the answer, width)
    result = {"right": right, "answers": answers, "log_probability": likely} | watch.means()
    if method == EXACT or exact is None:
        return result | {MEMORY: states}
    if MEMORY not in exact:  # of an earlier run, which stored no states
        exact[MEMORY] = ask(model, contexts, EXACT, new_tokens=0)[MEMORY]
    divergences = [nn.divergence(model.weights, *pair) for pair in zip(states, exact[MEMORY], strict=True)]
    return result | {"divergence": [max(0.0, value) for value in divergences]}  # by rounding it may be below 0


def _continued(model, tokens, method, cache):
    """The tokens that come after `tokens`, one by one, up to the end of the text."""
    hidden = nn.forward(model.weights, tokens, attention=method.causal, cache=cache)  # (n, width)
    for token in nn.continue_from(model.weights, hidden[-1], cache, attention=method.causal):
        if token == model.tokenizer.end:
            return
        yield token


def compare(result, exact):
    """The columns of a report for one case."""
    return overall([(result, exact)]) | {name: result[name] for name in COLUMNS}


def overall(pairs):
    """The columns of a report for all cases together, from pairs of a method's and exact attention's results."""
    mine, exact = ([right for results in side for right in results["right"]] for side in zip(*pairs, strict=True))
    kept = retained(mine, exact)
    return {
        "right": f"{sum(mine)} of {len(mine)}",
        "accuracy": share(sum(mine), len(mine)).share,
        "retained": kept.share,
        "retained_of": f"{kept.count} of {kept.total}",
        "interval": (kept.minimum, kept.maximum),
    } | {name: _mean(name, pairs) for name in ("log_probability", "divergence")}


def _mean(name, pairs):
    """Over all questions, or None where results do not say."""
    values = [value for result, _ in pairs for value in result.get(name, ())]
    return float(np.mean(values)) if values else None
