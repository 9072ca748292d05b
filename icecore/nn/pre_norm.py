"""The layer that GPT-2 and vision transformers share: layer norms before attention and MLP, biases everywhere."""

from dataclasses import dataclass

import numpy as np

from .layers import layer_norm, linear, merge_heads, split_heads


@dataclass(frozen=True)
class PreNormLayer:
    """Weights of one layer: pairs of weight and bias, float32, weights stored (outputs, inputs)."""

    attention_norm: tuple  # (width,) each
    query_key_value: tuple  # (3 * width, width), (3 * width,)
    attention_output: tuple  # (width, width), (width,)
    mlp_norm: tuple  # (width,) each
    up: tuple  # (hidden_width, width), (hidden_width,)
    down: tuple  # (width, hidden_width), (width,)


def project(config, layer, x, over_rows):
    """Queries, keys and values of one layer, (heads, n, head_width) each."""
    projected = np.empty((3 * config.heads, len(x), config.width // config.heads), np.float32)  # (3 * heads, n, head_width)

    def work(rows):
        normed = layer_norm(x[rows], *layer.attention_norm, config.norm_epsilon)  # (rows, width)
        projected[:, rows] = split_heads(linear(normed, *layer.query_key_value), len(projected))  # (3 * heads, rows, d)

    over_rows(work)
    return np.split(projected, 3)  # (heads, n, head_width) each


def add_attention_and_mlp(config, layer, x, mixed, activation, over_rows):
    """Add the projected result of attention, then the MLP's, to the residual stream `x` in place."""

    def work(rows):
        block = x[rows]  # (rows, width), a view
        block += linear(merge_heads(mixed[:, rows]), *layer.attention_output)  # (rows, width)
        normed = layer_norm(block, *layer.mlp_norm, config.norm_epsilon)  # (rows, width)
        hidden = activation(linear(normed, *layer.up))  # (rows, hidden_width)
        block += linear(hidden, *layer.down)  # (rows, width)

    over_rows(work)
