"""A long list of lines, each with a name and a number, of which some are asked for again."""

import re

import numpy as np

from . import texts
from .cost import Cost
from .questions import ANSWER_TOKENS, ROOM, Question, ask, compare, overall

__all__ = ["LENGTHS", "MIN_LENGTH", "cases", "check", "compare", "context", "cost", "overall", "run"]

LENGTHS = (2000, 4000, 8000)
MIN_LENGTH = 1000
QUESTIONS = 20
#: What stands before a line's number and after it.
BEGINNING, END = "line {}: REGISTER_CONTENT is <", ">\n"


def cases(lengths, names):
    """One for each length; the lines are no text's."""
    return [{"length": length, "seed": 0} for length in lengths]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"], steps=QUESTIONS * ANSWER_TOKENS)]


def check(model, case):
    """ValueError if the lines do not fill the length."""
    context(model, **case)


def run(model, case, method, exact):
    """Read the lines, then complete some; arguments and result as of the other tasks, see `ask`."""
    return ask(model, *context(model, **case), method)


def context(model, length, seed):
    """Lines, as many as fit, and questions about some of them, evenly over the depth.

    Names are single words and numbers have three digits, so that a small model can do it at all.

    Parameters
    ----------
    model : Model
    length : int
        Tokens of the context with a question and its answer, at most.
    seed : int
        Of the names' order and of the numbers.

    Returns
    -------
    context : str
    questions : list of Question
        In the order of the lines.

    Raises
    ------
    ValueError
        If there are too few names for so many lines.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(sorted(set(re.findall(r"\b[a-z]{5,8}\b", texts.manual()))))
    numbers = rng.integers(100, 1000, len(names))
    beginnings = [BEGINNING.format(name) for name in names]
    lines = [f"{beginning}{number}{END}" for beginning, number in zip(beginnings, numbers, strict=True)]
    ends = np.cumsum([len(model.tokenizer.encode(line)) for line in lines])
    room = length - ROOM
    if room > ends[-1]:
        raise ValueError(f"length must be at most {ROOM + ends[-1]} for task lines, got {length}")
    count = int(np.searchsorted(ends, room, side="right"))
    chosen = ((np.arange(QUESTIONS) + 0.5) * count / QUESTIONS).astype(int)
    return "".join(lines[:count]), [Question(beginnings[at], str(numbers[at])) for at in chosen]
