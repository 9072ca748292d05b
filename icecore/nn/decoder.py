"""Running a decoder of any family: prompts in, hidden states and logits out."""

import numpy as np

from .attend import each_sequence, exact_attention, spans_of
from .layers import linear
from .row_threads import row_threads


def forward(weights, tokens, *, attention=exact_attention, cache=None):
    """Run tokens through every layer.

    All tokens pass a layer at once, so `attention` sees every query of the layer in one call; the row-wise
    parts go in chunks of rows, so that no large intermediate array exists.

    Parameters
    ----------
    weights : LlamaWeights or another decoder's
    tokens : array_like, (n,) of integers
        Token ids; n >= 1.
    attention : callable, optional
        ``attention(query, key, value, *, layer) -> out`` with query and out (query_heads, n, head_width), key
        and value (key_heads, s, head_width), all float32. Query i sees the keys up to s - n + i. With a
        cache, `key` and `value` are views of it, good until the next call for the same layer. Layers with a sliding
        window (Gemma 3's) pass ``window=`` too: a query then sees only the keys less than `window` positions away.
    cache : KeyValueCache or NearFarCache, optional
        The tokens before these; on return it holds these as well.

    Returns
    -------
    ndarray, (n, width) float32
        The hidden states after the last norm; `logits_in_chunks` turns them into logits.

    Raises
    ------
    ValueError
        If `tokens` is empty or not a flat array of integers, if a token lies outside the vocabulary, or if
        the cache and the tokens together pass the model's context.
    """
    caches = None if cache is None else [cache]
    return forward_batch(weights, [tokens], attention=attention, caches=caches)[0]


def forward_batch(weights, sequences, *, attention=exact_attention, caches=None):
    """Run several sequences through every layer at once, of any lengths.

    Their rows lie one after another, so each matrix is read once for all of them and nothing is padded; only
    attention goes sequence by sequence. One token for each of many caches is a step of batched decoding.

    Parameters
    ----------
    weights : LlamaWeights or another decoder's
    sequences : sequence of array_like, (n_i,) of integers
        At least one, each as `tokens` of `forward`.
    attention : callable, optional
        As in `forward`; called once for each layer and sequence.
    caches : sequence of KeyValueCache or NearFarCache, optional
        One for each sequence, all different.

    Returns
    -------
    list of ndarray, (n_i, width) float32
        The hidden states of each sequence, as of `forward`.

    Raises
    ------
    ValueError
        As in `forward`; if there is no sequence, or the caches are not as many or not different.
    """
    if len(sequences) == 0:
        raise ValueError("sequences must hold at least one sequence of tokens")
    if caches is not None and (len(caches) != len(sequences) or len(set(map(id, caches))) < len(caches)):
        raise ValueError(f"caches must be {len(sequences)} different ones, one for each sequence, got {len(caches)}")
    for cache in caches or ():
        if not hasattr(cache, "attend"):
            raise TypeError(f"cache must be a KeyValueCache or a NearFarCache, got {type(cache).__name__}")
    config = weights.config
    sequences = [checked_tokens(tokens, config.vocabulary) for tokens in sequences]
    positions = []
    for i, tokens in enumerate(sequences):
        start = caches[i].length if caches is not None else 0
        if start + tokens.size > config.context_length:
            raise ValueError(f"{start + tokens.size} tokens do not fit the context of {config.context_length}")
        positions.append(np.arange(start, start + tokens.size))  # (n_i,)
    spans = spans_of(sequences)

    def attend(layer, query, key, value, **options):
        return each_sequence(attention, layer, query, key, value, spans, caches, **options)  # (query_heads, n, head_width)

    with row_threads(spans[-1].stop) as over_rows:
        hidden = weights.hidden_states(np.concatenate(sequences), np.concatenate(positions), attend, over_rows)  # (n, width)
    if caches is not None:
        for cache, tokens in zip(caches, sequences, strict=True):
            cache.advance(tokens.size)
    return [hidden[rows] for rows in spans]


def logits_in_chunks(weights, hidden, chunk=512):
    """Logits of hidden states, some rows at a time, so that n x vocabulary never exists at once.

    Parameters
    ----------
    weights : LlamaWeights or another decoder's
    hidden : ndarray, (n, width) float32
        From `forward`.
    chunk : int, optional
        Rows at a time.

    Yields
    ------
    rows : slice
        The rows of `hidden` that these logits belong to.
    logits : ndarray, (up to chunk, vocabulary) float32
        Overwritten by the next step.
    """
    buffer = np.empty((min(chunk, len(hidden)), len(weights.head)), np.float32)  # (chunk, vocabulary)
    for first in range(0, len(hidden), chunk):
        rows = slice(first, min(first + chunk, len(hidden)))
        yield rows, _logits(weights, hidden[rows], out=buffer[: rows.stop - first])  # (rows, vocabulary)


def _logits(weights, hidden, out):
    """Logits of hidden states, all at once."""
    with row_threads(len(hidden)) as over_rows:
        over_rows(lambda rows: linear(hidden[rows], weights.head, out=out[rows]))  # (rows, vocabulary)
    return out


def checked_tokens(tokens, vocabulary):
    """Tokens as an array of indices, or ValueError."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.size == 0:
        raise ValueError(f"tokens must be a flat sequence of at least one token, got shape {tokens.shape}")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(f"tokens must lie in 0..{vocabulary - 1}, got {tokens.min()}..{tokens.max()}")
    return tokens
