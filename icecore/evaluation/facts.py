"""Facts hidden in a long real text, evenly over its depth: a sentence with a random number for each of some cities."""

import numpy as np

from . import chat
from .cost import Cost
from .perplexity import check, leading_tokens
from .questions import ANSWER_TOKENS, ROOM, Question, ask, compare, overall

__all__ = ["LEAST_LENGTH", "LENGTHS", "cases", "check", "compare", "context", "cost", "overall", "run"]

LENGTHS = (2000, 4000, 8000)
LEAST_LENGTH = 1000
CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Delhi", "Quito", "Rome", "Seoul", "Athens", "Dublin", "Vienna", "Havana", "Tunis",
          "Warsaw", "Nairobi", "Prague", "Madrid", "Berlin", "Tokyo", "Ottawa")
OPENING = "Read this text. It names the secret number of some cities.\n\n"
CLOSING = "\n\nThat was the text. Now answer a question about it. "


def cases(lengths, names):
    """One for each text and length."""
    return [{"text": name, "length": length, "seed": 0} for name in names or ["manual"] for length in lengths]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"], steps=len(CITIES) * ANSWER_TOKENS)]


def run(model, case, method, exact):
    """Read the text and answer a question about each fact; arguments and result as of the other tasks, see `ask`."""
    return ask(model, *context(model, **case), method)


def context(model, text, length, seed):
    """A text with facts in it.

    Parameters
    ----------
    model : Model
    text : str
        One of `texts.TEXTS`.
    length : int
        Tokens of the context with a question and its answer, about.
    seed : int
        Of the numbers and of the cities' order.

    Returns
    -------
    context : str
    questions : list of Question
        In the order of the facts.
    """
    rng = np.random.default_rng(seed)
    facts = {str(city): str(rng.integers(10_000, 100_000)) for city in rng.permutation(CITIES)}
    sentences = [f"The secret number of {city} is {number}. " for city, number in facts.items()]
    opening, tokenizer = chat.opening(model.tokenizer) + OPENING, model.tokenizer
    taken = sum(len(tokenizer.encode(part)) for part in (opening, CLOSING, *sentences))
    haystack = tokenizer.decode(leading_tokens(model, text, length - taken - ROOM))
    pieces, start = [opening], 0
    for number, sentence in enumerate(sentences):
        wanted = (2 * number + 1) * len(haystack) // (2 * len(sentences))
        end = max(start, haystack.rfind(". ", start, wanted) + 2 if ". " in haystack[start:wanted] else wanted)
        pieces += [haystack[start:end], sentence]
        start = end
    pieces += [haystack[start:], CLOSING]
    questions = [
        Question(f"What is the secret number of {city}?" + chat.answer(tokenizer, f"The secret number of {city} is"), number)
        for city, number in facts.items()
    ]
    return "".join(pieces), questions
