"""The Llama family of decoders, Qwen 2 and 3 included: configuration, weights and the layers."""

from dataclasses import dataclass

import numpy as np

from .layers import apply_rotary, linear, merge_heads, rms_norm, rotary_tables, split_heads, swiglu


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

    def __post_init__(self):
        if self.query_heads % self.key_heads:
            raise ValueError(f"query_heads must be a multiple of key_heads={self.key_heads}, got {self.query_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width must be even, for rotary embedding turns pairs, got {self.head_width}")


@dataclass(frozen=True)
class LlamaLayer:
    """Weights of one layer, float32, stored (outputs, inputs)."""

    attention_norm: np.ndarray  # (width,)
    query_key_value: np.ndarray  # ((query_heads + 2 * key_heads) * head_width, width)
    attention_output: np.ndarray  # (width, query_heads * head_width)
    mlp_norm: np.ndarray  # (width,)
    gate_up: np.ndarray  # (2 * hidden_width, width)
    down: np.ndarray  # (width, hidden_width)
    query_key_value_bias: np.ndarray | None = None  # as many as rows of query_key_value; Qwen 2
    query_norm: np.ndarray | None = None  # (head_width,); Qwen 3
    key_norm: np.ndarray | None = None  # (head_width,); together with query_norm


@dataclass(frozen=True)
class LlamaWeights:
    """Weights of a whole model with its configuration; `head` is `embedding` itself where they are tied."""

    config: LlamaConfig
    embedding: np.ndarray  # (vocabulary, width)
    layers: tuple  # of LlamaLayer
    final_norm: np.ndarray  # (width,)
    head: np.ndarray  # (vocabulary, width)

    def hidden_states(self, tokens, positions, attend, over_rows):
        """The model itself, for `forward_batch`: embedding, layers, last norm.

        Parameters
        ----------
        tokens, positions : ndarray, (n,) of integers
            Of all sequences, one after another.
        attend : callable
            ``attend(layer, query, key, value) -> out``, (heads, n, head_width) each.
        over_rows : callable
            From `row_threads`.

        Returns
        -------
        ndarray, (n, width) float32
        """
        config = self.config
        tables = rotary_tables(positions, config.head_width, config.rotary_base)  # 2 x (n, head_width / 2)
        x = self.embedding[tokens]  # (n, width)
        for index, layer in enumerate(self.layers):
            query, key, value = project(config, layer, x, tables, over_rows)  # (heads, n, head_width) each
            mixed = attend(index, query, key, value)  # (query_heads, n, head_width)
            _add_attention_and_mlp(config, layer, x, mixed, over_rows)  # (n, width), in place
        return rms_norm(x, self.final_norm, config.norm_epsilon)  # (n, width)


def project(config, layer, x, tables, over_rows):
    """Queries, keys and values of one layer, queries and keys turned by their positions."""
    query = np.empty((config.query_heads, len(x), config.head_width), np.float32)  # (query_heads, n, head_width)
    key, value = np.empty((2, config.key_heads, *query.shape[1:]), np.float32)  # (key_heads, n, head_width) each

    def work(rows):
        cosine, sine = (table[rows] for table in tables)  # (rows, head_width / 2) each
        normed = rms_norm(x[rows], layer.attention_norm, config.norm_epsilon)  # (rows, width)
        heads = linear(normed, layer.query_key_value, layer.query_key_value_bias)  # (rows, all_heads * head_width)
        heads = split_heads(heads, len(query) + 2 * len(key))  # (all_heads, rows, head_width)
        queries, keys, value[:, rows] = np.split(heads, [len(query), len(query) + len(key)])
        if layer.query_norm is not None:
            queries = rms_norm(queries, layer.query_norm, config.norm_epsilon)  # (query_heads, rows, head_width)
            keys = rms_norm(keys, layer.key_norm, config.norm_epsilon)  # (key_heads, rows, head_width)
        apply_rotary(queries, cosine, sine, out=query[:, rows])
        apply_rotary(keys, cosine, sine, out=key[:, rows])

    over_rows(work)
    return query, key, value


def _add_attention_and_mlp(config, layer, x, mixed, over_rows):
    """Add the projected result of attention, then the MLP's, to the residual stream `x` in place."""

    def work(rows):
        block = x[rows]  # (rows, width), a view
        block += linear(merge_heads(mixed[:, rows]), layer.attention_output)  # (rows, width)
        normed = rms_norm(block, layer.mlp_norm, config.norm_epsilon)  # (rows, width)
        hidden = swiglu(linear(normed, layer.gate_up))  # (rows, 2 * hidden_width) -> (rows, hidden_width)
        block += linear(hidden, layer.down)  # (rows, width)

    over_rows(work)
