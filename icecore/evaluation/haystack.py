"""Running text with sentences hidden in it: what several published tasks are made of."""

import re
from itertools import pairwise

import numpy as np

from . import texts

#: Characters of a text that are enough for a token.
CHARACTERS = 8


def names(rng, count):
    """`count` different names of two words each, as ``word-word``; the words are those of Python's manual."""
    words, found = sorted(set(re.findall(r"\b[a-z]{5,8}\b", texts.manual()))), {}
    while len(found) < count:
        found |= dict.fromkeys("-".join(pair) for pair in rng.choice(words, (count, 2)))
    return list(found)[:count]


def running(model, text, count, rng):
    """Running text: from the beginning of a sentence at random, with single spaces for all white space.

    Parameters
    ----------
    model : Model
    text : str
        One of `texts.TEXTS`.
    count : int
        Tokens.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, (count,) int64

    Raises
    ------
    ValueError
        If there is no such text, the text has fewer tokens, or nothing is left for it.
    ImportError
        If its package is not installed.
    """
    read = re.sub(r"\s+", " ", texts.text(text))
    if count < 1:
        raise ValueError(f"length must be larger by at least {1 - count} for what is hidden in text {text}")
    start = read.find(". ", rng.integers(max(1, len(read) - CHARACTERS * count))) + 1
    tokens = model.tokenizer.encode(read[start : start + CHARACTERS * count])[:count]
    if len(tokens) < count:
        raise ValueError(f"length must be smaller by at least {count - len(tokens)} for text {text}")
    return tokens


def hide(model, tokens, sentences, depths):
    """A text with sentences hidden in it, each where a sentence of the text ends.

    Parameters
    ----------
    model : Model
    tokens : ndarray, (n,) int64
    sentences : list of str
        In the order in which they come.
    depths : array_like, (len(sentences),) of float
        Of each before how many of the `n` tokens it stands, as a share; rising, 0 is the beginning and 1 the end. It
        stands at the last end of a sentence up to there.

    Returns
    -------
    ndarray, (n + tokens of all sentences,) int64
    """
    pieces = [model.tokenizer.decode([token]) for token in tokens]
    ends = [at for at, (one, other) in enumerate(pairwise(pieces), 1) if one.endswith((".", "!", "?")) and other[:1] == " "]
    ends = np.array([0, *ends, len(tokens)])
    parts, start = [], 0
    for sentence, depth in zip(sentences, depths, strict=True):
        end = ends[np.searchsorted(ends, depth * len(tokens), side="right") - 1]
        parts += [tokens[start:end], model.tokenizer.encode(f" {sentence}")]
        start = end
    return np.concatenate([*parts, tokens[start:]])
