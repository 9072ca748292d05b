"""Five tasks of RULER (arXiv 2404.06654) in its base template: needles of three kinds, a chain of variables, frequent words."""

from bisect import bisect_right
from itertools import pairwise

import numpy as np
from scipy.special import zeta

from .cost import Cost
from .haystack import hide, names, running
from .questions import Question, ask, compare, contains, overall

__all__ = ["LENGTHS", "MIN_LENGTH", "cases", "check", "compare", "context", "cost", "needles", "overall", "run"]

LENGTHS = (4000,)
MIN_LENGTH = 1500
#: Contexts of a case, where `--samples` says nothing else.
SAMPLES = 4
#: Kind -> tokens of an answer at most.
NEW_TOKENS = {"niah_single": 128, "niah_multikey": 128, "niah_multivalue": 128, "vt": 30, "fwe": 50}
#: Of niah: keys of a context, and values of a key.
KEYS_VALUES = {"niah_single": (1, 1), "niah_multikey": (4, 1), "niah_multivalue": (1, 4)}
NEEDLE = "One of the special magic numbers for {} is: {}."
#: What stands before the text and after it, for a key with one value and with several.
ONE = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number"
    " afterwards.\n",
    "\nWhat is the special magic number for {0} mentioned in the provided text? The special magic number for {0} mentioned in"
    " the provided text is",
)
SEVERAL = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about the"
    " numbers afterwards.\n",
    "\nWhat are all the special magic numbers for {0} mentioned in the provided text? The special magic numbers for {0}"
    " mentioned in the provided text are",
)
#: Depths at which needles may lie.
DEPTHS = np.linspace(0, 1, 40)
#: Variables of a chain, and lines of noise in the example that comes first.
CHAIN, EXAMPLE_LINES = 5, 5
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
TRACK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
    "\nQuestion: Find all variables that are assigned the value {0} in the text above. Answer: According to the chain(s) of"
    " variable assignment in the text above, {1} variables are assigned the value {0}, they are:",
)
#: The word of rank r comes r ** -ALPHA / zeta(ALPHA) of all times; that of rank 1 is the dots.
ALPHA, DOTS, WORD_LENGTH = 2.0, "...", 6
COUNT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded"
    " words. ",
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared"
    " words in the above coded text? Answer: According to the coded text above, the three most frequently appeared words are:",
)


def cases(lengths, names):
    """One for each kind, text and length; chains and words are no text's."""
    found = [{"kind": kind, "text": name} for name in names or ["manual"] for kind in KEYS_VALUES]
    found += [{"kind": kind} for kind in NEW_TOKENS if kind not in KEYS_VALUES]
    return [part | {"length": length, "samples": SAMPLES} for part in found for length in lengths]


def cost(case):
    """What a case costs a method."""
    keys, _ = KEYS_VALUES.get(case["kind"], (1, 1))
    return [Cost(prefill=case["length"], steps=keys * NEW_TOKENS[case["kind"]])] * case["samples"]


def check(model, case):
    """ImportError if the case's text is not installed, ValueError if there is none or the length does not do."""
    contexts(model, **case)


def run(model, case, method, exact):
    """Read contexts and answer their questions; arguments and result as of the other tasks, see `ask`."""
    return ask(model, contexts(model, **case), method, exact, rule=contains, new_tokens=NEW_TOKENS[case["kind"]], lasting=True)


def contexts(model, samples, **case):
    """A `context` of each seed below `samples`."""
    return [context(model, seed=seed, **case) for seed in range(samples)]


def context(model, kind, length, seed, text=None):
    """One context of a kind.

    Parameters
    ----------
    model : Model
    kind : str
        ``niah_single``, ``niah_multikey`` and ``niah_multivalue``: one needle, four with different keys of which each is asked
        for, four with the same key, in a text (RULER's niah_single_2, niah_multikey_1 and niah_multivalue). ``vt``: one chain
        of five variables in lines of noise, after an example. ``fwe``: words without meaning, from a Zipf distribution.
    length : int
        Tokens of the context with its longest question and answer; exactly so except in ``fwe``, where it is the most.
    seed : int
        Of everything that is random.
    text : str, optional
        Of niah: one of `texts.TEXTS`.

    Returns
    -------
    context : ndarray of int64
    questions : list of Question
    """
    rng = np.random.default_rng(seed)
    if kind == "vt":
        return _chain(model, length - NEW_TOKENS[kind], rng)
    if kind == "fwe":
        return _frequent_words(model, length - NEW_TOKENS[kind], rng)
    keys, values = KEYS_VALUES[kind]
    depths = np.sort(rng.choice(DEPTHS, keys * values, replace=False))
    return needles(model, text, length - NEW_TOKENS[kind], rng, keys=names(rng, keys), values=values, depths=depths)


def needles(model, text, length, rng, *, keys, values, depths):
    """A text with magic numbers of keys, at depths as of `hide`; `length` is that of context and longest question, exactly."""
    encode = model.tokenizer.encode
    numbers = rng.choice(np.arange(10**6, 10**7), len(keys) * values, replace=False)
    owners = rng.permutation(np.repeat(np.arange(len(keys)), values))
    sentences = [NEEDLE.format(keys[owner], number) for owner, number in zip(owners, numbers, strict=True)]
    before, after = ONE if values == 1 else SEVERAL
    questions = []
    for owner, key in enumerate(keys):
        own = ", ".join(str(number) for number in numbers[owners == owner])
        questions.append(Question(after.format(key), f" {own}"))
    head = encode(before)
    taken = len(head) + sum(len(encode(f" {sentence}")) for sentence in sentences)
    taken += max(len(encode(question.text)) for question in questions)
    hay = running(model, text, length - taken, rng)
    return np.concatenate([head, hide(model, hay, sentences, depths)]), questions


def _chain(model, length, rng):
    """Variables that take their value from one another, each on a line of its own among lines of noise."""
    encode = model.tokenizer.encode
    example, question = _assigned([NOISE] * EXAMPLE_LINES, rng, letters=3)
    head = encode(TRACK[0] + "".join(example) + question.text + question.answer + "\n\n" + TRACK[0])
    lines, question = _assigned([], rng, letters=5)
    noise = encode(NOISE)
    left = length - len(head) - len(encode(question.text)) - sum(len(encode(line)) for line in lines)
    if left < CHAIN * len(noise):
        raise ValueError(f"length must be larger by at least {CHAIN * len(noise) - left} for kind vt of task ruler")
    parts = [noise] * (left // len(noise))
    for place, line in zip(np.sort(rng.choice(len(parts) + 1, CHAIN, replace=False))[::-1], lines[::-1], strict=True):
        parts.insert(place, encode(line))
    first = noise[len(noise) - left % len(noise) :]  # what is left of a line, so that the length is exact
    return np.concatenate([head, first, *parts]), [question]


def _assigned(lines, rng, letters):
    """Lines with a chain of assignments between them, in order, and the question for its variables."""
    variables = set()
    while len(variables) < CHAIN:
        variables.add("".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), letters)))
    variables, value = rng.permutation(sorted(variables)), rng.integers(10_000, 100_000)
    chain = [f"VAR {variables[0]} = {value}\n"]
    chain += [f"VAR {name} = VAR {source}\n" for source, name in pairwise(variables)]
    places, lines = np.sort(rng.choice(len(lines) + CHAIN, CHAIN, replace=False)), list(lines)
    for place, line in zip(places, chain, strict=True):
        lines.insert(place, line)
    return lines, Question(TRACK[1].format(value, CHAIN), " " + " ".join(variables))


def _frequent_words(model, length, rng):
    """Words without meaning, of which few come often."""
    encode, words = model.tokenizer.encode, set()
    while len(words) < length // 50:
        words.add("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), WORD_LENGTH)))
    words = [DOTS, *rng.permutation(sorted(words))]
    shares = np.arange(1.0, len(words) + 1) ** -ALPHA / zeta(ALPHA)
    sizes = np.array([len(encode(f" {word}")) for word in words])
    room = length - len(encode(COUNT[0])) - len(encode(COUNT[1]))
    total = bisect_right(range(length), room, key=lambda total: int(sizes @ (total * shares).astype(int))) - 1
    drawn = rng.permutation(np.repeat(words, (total * shares).astype(int)))
    return encode(COUNT[0] + " ".join(drawn)), [Question(COUNT[1], " " + ", ".join(words[1:4]))]
