"""Facts hidden in a long real text, evenly over its depth: sentences that end with a random number, to be completed."""

import numpy as np

from .cost import Cost
from .perplexity import check, leading_tokens
from .questions import ANSWER_TOKENS, ROOM, Question, ask, compare, overall

__all__ = ["LENGTHS", "MIN_LENGTH", "cases", "check", "compare", "context", "cost", "overall", "run"]

LENGTHS = (2000, 4000, 8000)
MIN_LENGTH = 1000
#: What is told of what: no word comes twice.
FACTS = (
    "password of the library", "height of the tower", "price of the painting", "weight of the elephant", "age of the temple",
    "distance of the comet", "account of the merchant", "temperature of the furnace", "telephone number of the doctor",
    "population of the island", "speed of the rocket", "depth of the lake", "salary of the captain",
    "postal code of the village", "score of the champion", "area of the forest", "length of the tunnel",
    "volume of the barrel", "room of the guest", "value of the violin",
)


def cases(lengths, names):
    """One for each text and length."""
    return [{"text": name, "length": length, "seed": 0} for name in names or ["manual"] for length in lengths]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"], steps=len(FACTS) * ANSWER_TOKENS)]


def run(model, case, method, exact):
    """Read the text, then complete the sentence of each fact; arguments and result as of the other tasks, see `ask`."""
    text, questions = context(model, **case)
    return ask(model, [(model.tokenizer.encode(text), questions)], method, exact)


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
    sentences = [f"The {fact} is {number}. " for fact, number in facts.items()]
    taken = sum(len(model.tokenizer.encode(sentence)) for sentence in sentences)
    haystack = model.tokenizer.decode(leading_tokens(model, text, length - taken - ROOM))
    pieces, start = [], 0
    for number, sentence in enumerate(sentences):
        wanted = (2 * number + 1) * len(haystack) // (2 * len(sentences))
        end = max(start, haystack.rfind(". ", start, wanted) + 2 if ". " in haystack[start:wanted] else wanted)
        pieces += [haystack[start:end], sentence]
        start = end
    questions = [Question(f"\n\nThe {fact} is", f" {number}") for fact, number in facts.items()]
    return "".join([*pieces, haystack[start:]]), questions
