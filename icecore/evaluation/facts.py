"""Facts hidden in a long real text, evenly over its depth: sentences that end with a random number."""

import numpy as np

from . import chat
from .cost import Cost
from .perplexity import check, leading_tokens
from .questions import ANSWER_TOKENS, ROOM, Question, ask, compare, overall

__all__ = ["LEAST_LENGTH", "LENGTHS", "cases", "check", "compare", "context", "cost", "overall", "run"]

LENGTHS = (2000, 4000, 8000)
LEAST_LENGTH = 1000
#: Beginnings of sentences that end with a number, each of another subject.
FACTS = (
    "The password of the old library is",
    "Maria parked her bicycle at post",
    "The winning ticket of the lottery carried number",
    "The lighthouse keeper counted ships up to",
    "Her grandmother's telephone number was",
    "The treasure chest opens with code",
    "Doctor Meyer's patient was given file",
    "The night train to Vienna has number",
    "The museum bought the painting for dollars",
    "The farmer's harvest filled baskets numbering",
    "The astronaut's locker bears label",
    "The population of the island was",
    "Captain Silva sailed in vessel",
    "The bakery's secret recipe is page",
    "The chess champion's rating reached",
    "The hotel guest paid invoice",
    "The mountain's height in feet is",
    "The wizard's spell needs stones numbering",
    "The queen's carriage has plate",
    "The football stadium seats exactly",
)
OPENING = "Read this text. It hides some numbers.\n\n"
CLOSING = "\n\nThat was the text. "


def cases(lengths, names):
    """One for each text and length."""
    return [{"text": name, "length": length, "seed": 0} for name in names or ["manual"] for length in lengths]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"], steps=len(FACTS) * ANSWER_TOKENS)]


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
        Of the numbers and of the facts' order.

    Returns
    -------
    context : str
    questions : list of Question
        In the order of the facts.
    """
    rng = np.random.default_rng(seed)
    facts = {str(fact): str(rng.integers(10_000, 100_000)) for fact in rng.permutation(FACTS)}
    sentences = [f"{fact} {number}. " for fact, number in facts.items()]
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
        Question(f"Complete this sentence of it: {fact}" + chat.answer(tokenizer, fact), number)
        for fact, number in facts.items()
    ]
    return "".join(pieces), questions
