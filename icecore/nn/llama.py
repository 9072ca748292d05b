"""The Llama family of decoders: configuration, weights and the forward pass."""

from dataclasses import dataclass

import numpy as np

import icecore

from .layers import apply_rotary, linear, rms_norm, rotary_tables, swiglu
from .row_threads import row_threads


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama model.

    `key_heads` divides `query_heads`; query head ``h`` reads key head ``h // (query_heads // key_heads)``.
    """

    vocabulary: int
    width: int
    hidden_width: int
    layers: int
    query_heads: int
    key_heads: int
    head_width: int
    context_length: int
    rotary_base: float
    norm_epsilon: float


@dataclass(frozen=True)
class LlamaLayer:
    """Weights of one layer, float32, stored (outputs, inputs)."""

    attention_norm: np.ndarray  # (width,)
    query_key_value: np.ndarray  # ((query_heads + 2 * key_heads) * head_width, width)
    attention_output: np.ndarray  # (width, query_heads * head_width)
    mlp_norm: np.ndarray  # (width,)
    gate_up: np.ndarray  # (2 * hidden_width, width)
    down: np.ndarray  # (width, hidden_width)


@dataclass(frozen=True)
class LlamaWeights:
    """Weights of a whole model with its configuration; `head` is `embedding` itself where they are tied."""

    config: LlamaConfig
    embedding: np.ndarray  # (vocabulary, width)
    layers: tuple  # of LlamaLayer
    final_norm: np.ndarray  # (width,)
    head: np.ndarray  # (vocabulary, width)


def exact_attention(query, key, value, *, layer):
    """Exact causal attention by icecore, the default of `forward`."""
    return icecore.attention(query, key, value, causal=True)


def forward(weights, tokens, *, attention=exact_attention, cache=None):
    """Run tokens through every layer.

    All tokens pass a layer at once, so `attention` sees every query of the layer in one call; the row-wise
    parts go in chunks of rows, so that no large intermediate array exists.

    Parameters
    ----------
    weights : LlamaWeights
    tokens : array_like, (n,) of integers
        Token ids; n >= 1.
    attention : callable, optional
        ``attention(query, key, value, *, layer) -> out`` with query and out (query_heads, n, head_width), key
        and value (key_heads, s, head_width), all float32. Query i sees the keys up to s - n + i. With a
        cache, `key` and `value` are views of it, good until the next call for the same layer.
    cache : KeyValueCache, optional
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
    config = weights.config
    tokens = _checked_tokens(tokens, config)
    start = cache.length if cache is not None else 0
    if start + tokens.size > config.context_length:
        raise ValueError(f"{start + tokens.size} tokens do not fit the context of {config.context_length}")
    positions = np.arange(start, start + tokens.size)  # (n,)
    tables = rotary_tables(positions, config.head_width, config.rotary_base)  # 2 x (n, head_width / 2)
    x = weights.embedding[tokens]  # (n, width)
    with row_threads(tokens.size) as over_rows:
        for index, layer in enumerate(weights.layers):
            query, key, value = _project(config, layer, x, tables, over_rows)  # (heads, n, head_width) each
            if cache is not None:
                key, value = cache.write(index, key, value)  # (key_heads, start + n, head_width) each
            mixed = attention(query, key, value, layer=index)  # (query_heads, n, head_width)
            _add_attention_and_mlp(config, layer, x, mixed, over_rows)  # (n, width), in place
    if cache is not None:
        cache.advance(tokens.size)
    return rms_norm(x, weights.final_norm, config.norm_epsilon)  # (n, width)


def logits_in_chunks(weights, hidden, chunk=512):
    """Logits of hidden states, some rows at a time, so that n x vocabulary never exists at once.

    Parameters
    ----------
    weights : LlamaWeights
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


def _checked_tokens(tokens, config):
    """Tokens as an array of indices, or ValueError."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.size == 0:
        raise ValueError(f"tokens must be a flat sequence of at least one token, got shape {tokens.shape}")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.min() < 0 or tokens.max() >= config.vocabulary:
        raise ValueError(f"tokens must lie in 0..{config.vocabulary - 1}, got {tokens.min()}..{tokens.max()}")
    return tokens


def _project(config, layer, x, tables, over_rows):
    """Queries, keys and values of one layer, queries and keys turned by their positions."""
    count, head_width = len(x), config.head_width
    turned_heads = config.query_heads + config.key_heads
    turned = np.empty((turned_heads, count, head_width), np.float32)  # (turned_heads, n, head_width)
    value = np.empty((config.key_heads, count, head_width), np.float32)  # (key_heads, n, head_width)

    def work(rows):
        cosine, sine = (table[rows] for table in tables)  # (rows, head_width / 2) each
        normed = rms_norm(x[rows], layer.attention_norm, config.norm_epsilon)  # (rows, width)
        heads = linear(normed, layer.query_key_value)  # (rows, all_heads * head_width)
        heads = heads.reshape(len(heads), -1, head_width).swapaxes(0, 1)  # (all_heads, rows, head_width)
        apply_rotary(heads[:turned_heads], cosine, sine, out=turned[:, rows])  # (turned_heads, rows, d)
        value[:, rows] = heads[turned_heads:]  # (key_heads, rows, head_width)

    over_rows(work)
    return turned[: config.query_heads], turned[config.query_heads :], value


def _add_attention_and_mlp(config, layer, x, mixed, over_rows):
    """Add the projected result of attention, then the MLP's, to the residual stream `x` in place."""

    def work(rows):
        block = x[rows]  # (rows, width), a view
        heads = mixed[:, rows].swapaxes(0, 1).reshape(len(block), -1)  # (rows, query_heads * head_width)
        block += linear(heads, layer.attention_output)  # (rows, width)
        normed = rms_norm(block, layer.mlp_norm, config.norm_epsilon)  # (rows, width)
        hidden = swiglu(linear(normed, layer.gate_up))  # (rows, 2 * hidden_width) -> (rows, hidden_width)
        block += linear(hidden, layer.down)  # (rows, width)

    over_rows(work)
