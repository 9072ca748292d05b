"""BERT and its like (MiniLM): configuration, weights, their loading and the forward pass."""

from dataclasses import dataclass

import numpy as np

from .attend import bidirectional_attention, each_sequence, spans_of
from .decoder import checked_tokens
from .layers import gelu, layer_norm, linear, merge_heads, split_heads
from .row_threads import row_threads
from .tensors import Tensors, stacked


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT model."""

    vocabulary: int
    token_types: int
    width: int
    hidden_width: int
    layers: int
    heads: int
    context_length: int
    norm_epsilon: float


@dataclass(frozen=True)
class BertLayer:
    """One layer: pairs of weight and bias, float32, weights stored (outputs, inputs). Norms follow the sums."""

    query_key_value: tuple  # (3 * width, width), (3 * width,)
    attention_output: tuple  # (width, width), (width,)
    attention_norm: tuple  # (width,) each
    up: tuple  # (hidden_width, width), (hidden_width,)
    down: tuple  # (width, hidden_width), (width,)
    mlp_norm: tuple  # (width,) each


@dataclass(frozen=True)
class BertWeights:
    """Weights of a whole encoder with its configuration."""

    config: BertConfig
    embedding: np.ndarray  # (vocabulary, width)
    positions: np.ndarray  # (context_length, width)
    token_types: np.ndarray  # (token_types, width)
    embedding_norm: tuple  # (width,) each
    layers: tuple  # of BertLayer


def encode_tokens(weights, sequences, *, token_types=None, attention=bidirectional_attention):
    """Run texts of any lengths through every layer.

    Their rows lie one after another: nothing is padded, and each text has the result that it has alone. Of a padded
    array, pass ``[row[:length] for row, length in zip(tokens, lengths)]``.

    Parameters
    ----------
    weights : BertWeights
    sequences : sequence of array_like, (n_i,) of integers
        The tokens of each text, special ones included; at least one text, n_i >= 1.
    token_types : sequence of array_like, (n_i,) of integers, optional
        Which part of its text each token belongs to; default 0.
    attention : callable, optional
        ``attention(query, key, value, *, layer) -> out``, (heads, n_i, head_width) float32 each, called once for each
        layer and text. Every query sees every key.

    Returns
    -------
    list of ndarray, (n_i, width) float32
        The last layer's result for each text.

    Raises
    ------
    ValueError
        If there is no text, one is empty, not a flat array of integers or longer than the model's context, a token or a
        type lies outside its table, or types and tokens differ in number.
    """
    config = weights.config
    if len(sequences) == 0:
        raise ValueError("sequences must hold at least one sequence of tokens")
    sequences = [checked_tokens(tokens, config.vocabulary) for tokens in sequences]
    longest = max(map(len, sequences))
    if longest > config.context_length:
        raise ValueError(f"{longest} tokens do not fit the context of {config.context_length}")
    spans = spans_of(sequences)
    positions = np.concatenate([np.arange(len(tokens)) for tokens in sequences])  # (n,)
    types = _checked_types(token_types, sequences, config)  # (n,)

    x = weights.embedding[np.concatenate(sequences)] + weights.positions[positions] + weights.token_types[types]  # (n, width)
    x = layer_norm(x, *weights.embedding_norm, config.norm_epsilon)  # (n, width)
    with row_threads(len(x)) as over_rows:
        for index, layer in enumerate(weights.layers):
            query, key, value = _project(config, layer, x, over_rows)  # (heads, n, head_width) each
            mixed = each_sequence(attention, index, query, key, value, spans)  # (heads, n, head_width)
            _add_attention_and_mlp(config, layer, x, mixed, over_rows)  # (n, width), in place
    return [x[rows] for rows in spans]


def _checked_types(token_types, sequences, config):
    """The types of all tokens, one text after another, or ValueError."""
    if token_types is None:
        return np.zeros(sum(map(len, sequences)), np.intp)  # (n,)
    types = list(map(np.asarray, token_types))
    if [each.shape for each in types] != [tokens.shape for tokens in sequences]:
        shapes = [each.shape for each in types]
        raise ValueError(f"token_types must be as many as the tokens, {[*map(len, sequences)]}, got {shapes}")
    types = np.concatenate(types)  # (n,)
    if not np.issubdtype(types.dtype, np.integer) or types.min() < 0 or types.max() >= config.token_types:
        found = np.unique(types)[:8]
        raise ValueError(f"token_types must be integers in 0..{config.token_types - 1}, got {types.dtype} {found}")
    return types


def _project(config, layer, x, over_rows):
    """Queries, keys and values of one layer, (heads, n, head_width) each."""
    projected = np.empty((3 * config.heads, len(x), config.width // config.heads), np.float32)  # (3 * heads, n, head_width)

    def work(rows):
        projected[:, rows] = split_heads(linear(x[rows], *layer.query_key_value), len(projected))  # (3 * heads, rows, d)

    over_rows(work)
    return np.split(projected, 3)  # (heads, n, head_width) each


def _add_attention_and_mlp(config, layer, x, mixed, over_rows):
    """Add the projected result of attention, then the MLP's, to `x` in place, each sum normed."""

    def work(rows):
        block = x[rows] + linear(merge_heads(mixed[:, rows]), *layer.attention_output)  # (rows, width)
        block = layer_norm(block, *layer.attention_norm, config.norm_epsilon)  # (rows, width)
        hidden = gelu(linear(block, *layer.up))  # (rows, hidden_width)
        x[rows] = layer_norm(block + linear(hidden, *layer.down), *layer.mlp_norm, config.norm_epsilon)  # (rows, width)

    over_rows(work)


def bert_from_safetensors(settings, stored):
    """Weights from Hugging Face's settings and tensors; pooler and heads are left out."""
    settings.expect(hidden_act=("gelu",), position_embedding_type=("absolute",), is_decoder=(False,))
    config = BertConfig(
        vocabulary=settings.count("vocab_size"),
        token_types=settings.count("type_vocab_size"),
        width=settings.multiple("hidden_size", "num_attention_heads"),
        hidden_width=settings.count("intermediate_size"),
        layers=settings.count("num_hidden_layers"),
        heads=settings.count("num_attention_heads"),
        context_length=settings.count("max_position_embeddings"),
        norm_epsilon=settings.number("layer_norm_eps"),
    )
    older = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # as the first files have it
    for old, new in older.items():
        stored = {name.replace(old, new): tensor for name, tensor in stored.items()}
    tensors, width = Tensors(stored, prefixes=("bert.",)), config.width

    def layer_weights(index):
        name = f"encoder.layer.{index}"
        parts = (tensors.linear(f"{name}.attention.self.{part}", width, width) for part in ("query", "key", "value"))
        return BertLayer(
            query_key_value=stacked(*parts),
            attention_output=tensors.linear(f"{name}.attention.output.dense", width, width),
            attention_norm=tensors.norm(f"{name}.attention.output.LayerNorm", width),
            up=tensors.linear(f"{name}.intermediate.dense", config.hidden_width, width),
            down=tensors.linear(f"{name}.output.dense", width, config.hidden_width),
            mlp_norm=tensors.norm(f"{name}.output.LayerNorm", width),
        )

    weights = BertWeights(
        config=config,
        embedding=tensors.take("embeddings.word_embeddings.weight", config.vocabulary, width),
        positions=tensors.take("embeddings.position_embeddings.weight", config.context_length, width),
        token_types=tensors.take("embeddings.token_type_embeddings.weight", config.token_types, width),
        embedding_norm=tensors.norm("embeddings.LayerNorm", width),
        layers=tuple(map(layer_weights, range(config.layers))),
    )
    tensors.finish("BERT", ignored=("embeddings.position_ids", "pooler.", "cls.", "classifier."))
    return weights
