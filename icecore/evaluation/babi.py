"""Questions that take one, two or three facts of a story hidden in a text: bAbI's in BABILong's form (arXiv 2406.10149)."""

import numpy as np

from .cost import Cost
from .haystack import hide, running
from .questions import Question, ask, compare, overall

__all__ = ["LENGTHS", "MIN_LENGTH", "cases", "check", "compare", "context", "cost", "overall", "run"]

LENGTHS = (4000,)
MIN_LENGTH = 2000
#: Contexts of a case, where `--samples` says nothing else.
SAMPLES = 4
#: Tokens of an answer at most.
NEW_TOKENS = 16
#: Facts that an answer takes -> sentences of a story, and of an example's.
SENTENCES = {1: (8, 3), 2: (12, 5), 3: (20, 8)}
EXAMPLES = 2
PEOPLE, OTHERS = ("Mary", "John", "Daniel", "Sandra"), ("Charlie", "Judith", "Alan", "Rose")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
ITEMS = ("apple", "football", "milk")
GO = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
TAKE, DROP = ("got", "took", "grabbed", "picked up"), ("dropped", "discarded", "left", "put down")
#: What stands before the examples, and around the text.
INSTRUCTION = (
    "Sentences about people, where they go and what they carry are hidden in a text. Answer the question by them alone; later"
    " sentences count more than earlier ones, and what somebody carries goes along.\n"
)
BEGIN, END = "<context>\n", "\n</context>\n"


def cases(lengths, names):
    """One for each number of facts, text and length."""
    return [{"facts": facts, "text": name, "length": length, "samples": SAMPLES}
            for name in names or ["manual"] for length in lengths for facts in SENTENCES]


def cost(case):
    """What a case costs a method."""
    return [Cost(prefill=case["length"], steps=len(ITEMS) * NEW_TOKENS)] * case["samples"]


def check(model, case):
    """ImportError if the case's text is not installed, ValueError if there is none or the length does not do."""
    contexts(model, **case)


def run(model, case, method, exact):
    """Read contexts and answer their questions; arguments and result as of the other tasks, see `ask`."""
    return ask(model, contexts(model, **case), method, exact, rule=named, new_tokens=NEW_TOKENS)


def named(came, question):
    """Whether the first sentence names the right place and no other but those of the question: BABILong's rule; of one."""
    asked = question.text[len(END) :].lower()
    sentence = came.lower().partition(".")[0]
    return [{place for place in PLACES if place in sentence and place not in asked} == {question.answer.strip()}]


def contexts(model, samples, **case):
    """A `context` of each seed below `samples`."""
    return [context(model, seed=seed, **case) for seed in range(samples)]


def context(model, facts, text, length, seed):
    """A story in a text, after two short examples, and all that can be asked about it by so many facts.

    Parameters
    ----------
    model : Model
    facts : int
        1: where a person is. 2: where an item is, which somebody carries or has dropped. 3: where it was before that.
    text : str
        One of `texts.TEXTS`.
    length : int
        Tokens of the context with its longest question and answer.
    seed : int
        Of the story, the places of its sentences and the place in the text.

    Returns
    -------
    context : ndarray of int64
    questions : list of Question
    """
    rng, encode = np.random.default_rng(seed), model.tokenizer.encode
    many, few = SENTENCES[facts]
    head = INSTRUCTION
    for _ in range(EXAMPLES):
        sentences, questions = story(facts, few, OTHERS, rng)
        question = questions[rng.integers(len(questions))]
        head += f"<example>\n{' '.join(sentences)} {question.text}{question.answer}.\n</example>\n"
    sentences, questions = story(facts, many, PEOPLE, rng)
    questions = [question._replace(text=END + "Question: " + question.text) for question in questions]
    taken = len(encode(head + BEGIN)) + sum(len(encode(f" {sentence}")) for sentence in sentences)
    taken += max(len(encode(question.text)) for question in questions) + NEW_TOKENS
    hay = running(model, text, length - taken, rng)
    return np.concatenate([encode(head + BEGIN), hide(model, hay, sentences, np.sort(rng.random(len(sentences))))]), questions


def story(facts, count, people, rng):
    """`count` sentences and at least one question that takes so many facts of them."""
    questions = []
    while not questions:
        sentences, where, been = _events(count, people, rng, carry=facts > 1)
        if facts == 1:
            questions = [_question(f"Where is {person}?", f"The most recent location of {person} is", place)
                         for person, place in where.items()]
        elif facts == 2:
            questions = [_question(f"Where is the {item}?", f"The {item} is in the", places[-1])
                         for item, places in been.items() if len(places) > 1]
        else:
            questions = [_question(f"Where was the {item} before the {places[-1]}?",
                                   f"Before the {places[-1]} the {item} was in the", places[-2])
                         for item, places in been.items() if len(places) > 1 and places.count(places[-1]) == 1]
    return sentences, questions


def _question(text, beginning, place):
    return Question(f"{text}\nAnswer: {beginning}", f" {place}")


def _events(count, people, rng, carry):
    """Sentences, the place of each person, and the places where each item was since it was first taken."""
    sentences, where, carrier, been = [], {}, {}, {}
    while len(sentences) < count:
        person = people[rng.integers(len(people))]
        here = where.get(person)
        doing = rng.choice(["go", "take", "drop"]) if carry and here is not None else "go"
        held = [item for item in ITEMS if carrier.get(item) == person]
        free = [item for item in ITEMS if carrier.get(item) is None and been.get(item, [here])[-1] == here]
        if doing == "take" and free:
            item = rng.choice(free)
            carrier[item] = person
            been.setdefault(item, [here])
            sentences.append(f"{person} {rng.choice(TAKE)} the {item} there.")
        elif doing == "drop" and held:
            item = rng.choice(held)
            carrier[item] = None
            sentences.append(f"{person} {rng.choice(DROP)} the {item} there.")
        elif doing == "go":
            where[person] = place = rng.choice([place for place in PLACES if place != here])
            for item in held:
                been[item].append(place)
            sentences.append(f"{person} {rng.choice(GO)} the {place}.")
    return sentences, where, been
