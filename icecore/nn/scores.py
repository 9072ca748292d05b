"""Scores of next-token predictions: what perplexity and agreement between two methods are made of."""

import numpy as np
from scipy.special import log_softmax

from .decoder import logits_in_chunks
from .layers import cross_entropy


def score(weights, hidden, tokens, start=1):
    """Score the prediction of each of ``tokens[start:]`` from the tokens before it.

    Parameters
    ----------
    weights : LlamaWeights or another decoder's
    hidden : ndarray, (n, width) float32
        The result of `forward` for `tokens`.
    tokens : array_like, (n,) of integers
    start : int, optional
        The first token to score, 1 <= start < n.

    Returns
    -------
    losses : ndarray, (n - start,) float32
        Negative log likelihood of each token, in nats.
    predictions : ndarray, (n - start,) int64
        The most likely token at each of these places.

    Raises
    ------
    ValueError
        If `hidden` and `tokens` differ in length or `start` leaves nothing to predict from or to score.
    """
    tokens = np.asarray(tokens)
    if len(hidden) != len(tokens):
        raise ValueError(f"{len(hidden)} hidden states for {len(tokens)} tokens")
    if not 1 <= start < len(tokens):
        raise ValueError(f"start must lie in 1..{len(tokens) - 1}, got {start}")
    targets = tokens[start:]  # (n - start,)
    losses = np.empty(len(targets), np.float32)  # (n - start,)
    predictions = np.empty(len(targets), np.int64)  # (n - start,)
    for rows, logits in logits_in_chunks(weights, hidden[start - 1 : -1]):  # (rows, vocabulary)
        losses[rows] = cross_entropy(logits, targets[rows])  # (rows,)
        predictions[rows] = logits.argmax(axis=1)  # (rows,)
    return losses, predictions


def perplexity(losses):
    """Perplexity of a text from its losses in nats: the exponential of their mean."""
    return float(np.exp(np.mean(losses, dtype=np.float64)))


def divergence(weights, hidden, others, start=0):
    """How far distributions of next tokens are from others: the mean of the Kullback-Leibler divergence KL(others || hidden).

    Parameters
    ----------
    weights : LlamaWeights or another decoder's
    hidden, others : ndarray, (n, width) float32
        Results of `forward` for the same tokens, by a method that approximates and by exact attention, say.
    start : int, optional
        The first place to compare, 0 <= start < n.

    Returns
    -------
    float
        In nats, at least 0 up to rounding. The tokens that follow do not count, so it is far less noisy than a ratio of
        perplexities.

    Raises
    ------
    ValueError
        If `hidden` and `others` differ in shape or `start` leaves nothing to compare.

    Notes
    -----
    Twice the work of `score`. Thread safe.
    """
    if hidden.shape != others.shape:
        raise ValueError(f"hidden has shape {hidden.shape}; expected that of others, {others.shape}")
    if not 0 <= start < len(hidden):
        raise ValueError(f"start must lie in 0..{len(hidden) - 1}, got {start}")
    total = 0.0
    pairs = zip(logits_in_chunks(weights, hidden[start:]), logits_in_chunks(weights, others[start:]), strict=True)
    for (_, own), (_, reference) in pairs:  # (rows, vocabulary)
        own, reference = log_softmax(own, axis=1), log_softmax(reference, axis=1)
        total += np.sum(np.exp(reference) * (reference - own), dtype=np.float64)
    return float(total / (len(hidden) - start))


def agreement(predictions, others):
    """Share of places, 0..1, where two sequences of predictions are equal."""
    return float(np.mean(np.asarray(predictions) == np.asarray(others)))
