"""Lines, each with a name and a number, of which some are asked for: LongEval's retrieval of lines (LMSYS, 2023)."""

import re

import numpy as np

from .cost import Cost
from .haystack import names
from .questions import ANSWER_TOKENS, Question, ask, compare, overall

__all__ = ["LENGTHS", "MIN_LENGTH", "cases", "check", "compare", "context", "cost", "overall", "run"]

LENGTHS = (2000, 4000, 8000)
MIN_LENGTH = 1000
QUESTIONS = 20
INSTRUCTION = (
    "Below is a record of lines. Each begins with 'line <line index>' and ends with a number, its <REGISTER_CONTENT>. Memorize"
    " it for each line: at the end the <REGISTER_CONTENT> of a line will be asked for. Now the record start:\n\n"
)
LINE = "line {}: REGISTER_CONTENT is <{}>\n"
QUESTION = (
    "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {0}? I need the number.\nThe <REGISTER_CONTENT>"
    " in line {0} is <"
)


def cases(lengths, names):
    """One for each length; the lines are no text's."""
    return [{"length": length, "seed": 0} for length in lengths]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"], steps=QUESTIONS * ANSWER_TOKENS)]


def check(model, case):
    """Every length from `MIN_LENGTH` on does."""


def run(model, case, method, exact):
    """Read the lines, then answer the questions; arguments and result as of the other tasks, see `ask`."""
    return ask(model, [context(model, **case)], method, exact, rule=last_number)


def last_number(came, question):
    """Whether the last number of what came is the right one: LongEval's rule, here for the line that was begun; of one."""
    numbers = re.findall(r"\d+", came.partition("\n")[0])
    return [numbers[-1:] == [question.answer.rstrip(">")]]


def context(model, length, seed):
    """Lines, as many as fit, and questions about some of them, evenly over the depth.

    Parameters
    ----------
    model : Model
    length : int
        Tokens of the context with a question and its answer, at most.
    seed : int
        Of names and numbers.

    Returns
    -------
    context : ndarray of int64
    questions : list of Question
        In the order of the lines.
    """
    rng, encode = np.random.default_rng(seed), model.tokenizer.encode
    indices = names(rng, length // len(LINE.split()))  # a line has more tokens than words
    numbers = rng.integers(1, 50_001, len(indices))
    lines = [encode(LINE.format(*line)) for line in zip(indices, numbers, strict=True)]
    head = encode(INSTRUCTION)
    question = max(len(encode(QUESTION.format(index))) for index in indices)
    room = length - len(head) - question - ANSWER_TOKENS
    count = int(np.searchsorted(np.cumsum([len(line) for line in lines]), room, side="right"))
    chosen = ((np.arange(QUESTIONS) + 0.5) * count / QUESTIONS).astype(int)
    return np.concatenate([head, *lines[:count]]), [Question(QUESTION.format(indices[at]), f"{numbers[at]}>") for at in chosen]
