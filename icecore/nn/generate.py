"""Text generation: prefill once, then one token at a time over a key/value cache."""

from collections.abc import Iterable

import numpy as np

from .attend import exact_attention
from .cache import KeyValueCache
from .decoder import forward, logits_in_chunks


def generate(
    weights,
    tokens,
    *,
    max_new_tokens,
    attention=exact_attention,
    cache=None,
    temperature=0.0,
    top_k=None,
    top_p=None,
    seed=None,
    stop=(),
    callback=None,
):
    """Continue a prompt.

    Parameters
    ----------
    weights : LlamaWeights or another decoder's
    tokens : array_like, (n,) of integers
        The prompt, at least one token.
    max_new_tokens : int
        How many tokens to add at most; fewer where the model's context ends or a stop token comes.
    attention : callable, optional
        As in `forward`.
    cache : KeyValueCache or NearFarCache, optional
        Holds the tokens before the prompt, if any, and grows by it and the new ones, save the last where `max_new_tokens` or
        the model's context ended the text. Default: a new `KeyValueCache`.
    temperature, top_k, top_p, seed
        As in `continue_from`.
    stop : collection of int, optional
        Tokens that end the text; the one that did is not part of the result.
    callback : callable, optional
        Called with each new token as it comes.

    Returns
    -------
    list of int
        The new tokens.

    Raises
    ------
    ValueError
        For a prompt that `forward` refuses, a negative or fractional `max_new_tokens`, a `stop` that is no collection of
        integers, or sampling parameters out of range.
    """
    if not isinstance(max_new_tokens, (int, np.integer)) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be an integer of at least 0, got {max_new_tokens!r}")
    tokens_that_end = {*stop} if isinstance(stop, Iterable) else {None}
    if not all(isinstance(token, (int, np.integer)) for token in tokens_that_end):
        raise ValueError(f"stop must be a collection of tokens, got {stop!r}")
    _check_sampling(temperature, top_k, top_p)
    cache = KeyValueCache() if cache is None else cache
    hidden = forward(weights, tokens, attention=attention, cache=cache)  # (n, width)
    stream = continue_from(
        weights,
        hidden[-1],
        cache,
        attention=attention,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    new_tokens = []
    while len(new_tokens) < max_new_tokens:
        token = next(stream, None)
        if token is None or token in tokens_that_end:
            break
        new_tokens.append(token)
        if callback is not None:
            callback(token)
    return new_tokens


def continue_from(weights, hidden, cache, *, attention=exact_attention, temperature=0.0, top_k=None, top_p=None, seed=None):
    """Generate tokens after a prompt that has been run through `forward`, until the context is full.

    Parameters
    ----------
    weights : LlamaWeights or another decoder's
    hidden : ndarray, (width,) float32
        The hidden state of the last token so far.
    cache : KeyValueCache or NearFarCache
        The tokens so far; grows by each token that is taken from the generator, save the last.
    attention : callable, optional
        As in `forward`.
    temperature : float, optional
        0 takes the most likely token each time; above it, tokens are drawn from
        ``softmax(logits / temperature)``.
    top_k : int, optional
        Draw from the k most likely tokens only.
    top_p : float, optional
        Draw from the fewest most likely tokens that hold this share of the probability.
    seed : int, optional
        Makes the draws repeatable.

    Yields
    ------
    int
        The next token.
    """
    generator = np.random.default_rng(seed)
    while True:
        _, logits = next(logits_in_chunks(weights, hidden[None]))  # (1, width) -> (1, vocabulary)
        token = sample(logits[0], generator, temperature=temperature, top_k=top_k, top_p=top_p)
        yield token
        if cache.length == weights.config.context_length:
            return
        hidden = forward(weights, [token], attention=attention, cache=cache)[0]  # (width,)


def sample(logits, generator, *, temperature=0.0, top_k=None, top_p=None):
    """Choose one token.

    Parameters
    ----------
    logits : ndarray, (vocabulary,) float32
    generator : numpy.random.Generator
    temperature, top_k, top_p
        As in `continue_from`.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If temperature is negative or not finite, `top_k` below 1 or no integer, or `top_p` outside (0, 1].
    """
    _check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[:top_k]  # (candidates,), most likely first
    scores = logits[order].astype(np.float64) / temperature  # (candidates,)
    weights = np.exp(scores - scores[0])  # (candidates,)
    weights /= weights.sum()
    if top_p is not None:
        before = np.cumsum(weights) - weights  # (candidates,): mass of the more likely ones
        weights[before >= top_p] = 0.0
        weights /= weights.sum()
    return int(generator.choice(order, p=weights))


def _check_sampling(temperature, top_k, top_p):
    """ValueError if a parameter of `sample` is out of range."""
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
    if top_k is not None and (not isinstance(top_k, (int, np.integer)) or top_k < 1):
        raise ValueError(f"top_k must be an integer of at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie above 0 and up to 1, got {top_p}")
