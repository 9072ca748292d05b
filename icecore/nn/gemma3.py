"""Gemma 3's text models: configuration, weights, their loading and the layers.

Most layers see a sliding window of tokens, every few one sees all. Each kind has its own rotary base.
"""

from dataclasses import dataclass

import numpy as np

from .layers import geglu, linear, merge_heads, rms_norm, rotary_tables
from .llama import LlamaConfig, project
from .tensors import Tensors


@dataclass(frozen=True)
class Gemma3Config(LlamaConfig):
    """The shape of a Gemma 3 text model.

    `rotary_base` is that of the layers that see all; their positions are divided by `rotary_factor`. `windows` has an
    entry for each layer: the number of tokens that a query sees, or None.
    """

    local_rotary_base: float
    rotary_factor: float
    windows: tuple


@dataclass(frozen=True)
class Gemma3Layer:
    """Weights of one layer, float32, stored (outputs, inputs).

    The norms' weights are what they multiply by: the files' numbers and 1. The query scale is in `query_norm`, so that
    scores are divided by ``sqrt(head_width)`` as in other models.
    """

    attention_norm: np.ndarray  # (width,)
    query_key_value: np.ndarray  # ((query_heads + 2 * key_heads) * head_width, width)
    query_norm: np.ndarray  # (head_width,)
    key_norm: np.ndarray  # (head_width,)
    attention_output: np.ndarray  # (width, query_heads * head_width)
    after_attention_norm: np.ndarray  # (width,)
    mlp_norm: np.ndarray  # (width,)
    gate_up: np.ndarray  # (2 * hidden_width, width)
    down: np.ndarray  # (width, hidden_width)
    after_mlp_norm: np.ndarray  # (width,)
    query_key_value_bias: None = None  # for `project`


@dataclass(frozen=True)
class Gemma3Weights:
    """Weights of a whole model with its configuration; `head` is `embedding` itself where they are tied."""

    config: Gemma3Config
    embedding: np.ndarray  # (vocabulary, width)
    layers: tuple  # of Gemma3Layer
    final_norm: np.ndarray  # (width,)
    head: np.ndarray  # (vocabulary, width)

    def hidden_states(self, tokens, positions, attend, over_rows):
        """The model itself, for `forward_batch`; as `LlamaWeights.hidden_states`."""
        config = self.config
        seeing_all = rotary_tables(positions / config.rotary_factor, config.head_width, config.rotary_base)
        sliding = rotary_tables(positions, config.head_width, config.local_rotary_base)  # 2 x (n, head_width / 2) each
        x = self.embedding[tokens] * np.float32(config.width**0.5)  # (n, width)
        for index, (layer, window) in enumerate(zip(self.layers, config.windows, strict=True)):
            tables, options = (seeing_all, {}) if window is None else (sliding, {"window": window})
            query, key, value = project(config, layer, x, tables, over_rows)  # (heads, n, head_width) each
            mixed = attend(index, query, key, value, **options)  # (query_heads, n, head_width)
            _add_attention_and_mlp(config, layer, x, mixed, over_rows)  # (n, width), in place
        return rms_norm(x, self.final_norm, config.norm_epsilon)  # (n, width)


def _add_attention_and_mlp(config, layer, x, mixed, over_rows):
    """Add the projected result of attention, then the MLP's, each normed, to the residual stream `x` in place."""
    epsilon = config.norm_epsilon

    def work(rows):
        block = x[rows]  # (rows, width), a view
        projected = linear(merge_heads(mixed[:, rows]), layer.attention_output)  # (rows, width)
        block += rms_norm(projected, layer.after_attention_norm, epsilon)  # (rows, width)
        hidden = geglu(linear(rms_norm(block, layer.mlp_norm, epsilon), layer.gate_up))  # (rows, hidden_width)
        block += rms_norm(linear(hidden, layer.down), layer.after_mlp_norm, epsilon)  # (rows, width)

    over_rows(work)


def gemma3_from_safetensors(settings, stored):
    """Weights from Hugging Face's settings and tensors."""
    settings.expect(
        hidden_activation=("gelu_pytorch_tanh",),
        attention_bias=(False,),
        use_bidirectional_attention=(False,),
        attn_logit_softcapping=(),
        final_logit_softcapping=(),
    )
    tensors = Tensors(stored)
    layers = tensors.checked_layers(settings.count("num_hidden_layers"))
    bases, factor = _rotary(settings)
    config = Gemma3Config(
        vocabulary=settings.count("vocab_size"),
        width=settings.count("hidden_size"),
        hidden_width=settings.count("intermediate_size"),
        layers=layers,
        query_heads=settings.count("num_attention_heads"),
        key_heads=settings.count("num_key_value_heads"),
        head_width=settings.count("head_dim"),
        context_length=settings.count("max_position_embeddings"),
        rotary_base=bases[0],
        norm_epsilon=settings.number("rms_norm_eps"),
        local_rotary_base=bases[1],
        rotary_factor=factor,
        windows=_windows(settings, layers),
    )
    width, hidden_width, head_width = config.width, config.hidden_width, config.head_width
    query_width, key_width = config.query_heads * head_width, config.key_heads * head_width
    query_scale = np.float32((head_width / settings.number("query_pre_attn_scalar")) ** 0.5)

    def norm(name, width=width):
        return 1 + tensors.take(f"{name}.weight", width)  # (width,)

    def layer_weights(index):
        name = f"model.layers.{index}"

        def projection(part, outputs, inputs):
            return tensors.take(f"{name}.{part}_proj.weight", outputs, inputs)

        widths = {"self_attn.q": query_width, "self_attn.k": key_width, "self_attn.v": key_width}
        return Gemma3Layer(
            attention_norm=norm(f"{name}.input_layernorm"),
            query_key_value=np.concatenate([projection(part, outputs, width) for part, outputs in widths.items()]),
            query_norm=query_scale * norm(f"{name}.self_attn.q_norm", head_width),
            key_norm=norm(f"{name}.self_attn.k_norm", head_width),
            attention_output=projection("self_attn.o", width, query_width),
            after_attention_norm=norm(f"{name}.post_attention_layernorm"),
            mlp_norm=norm(f"{name}.pre_feedforward_layernorm"),
            gate_up=np.concatenate([projection(f"mlp.{part}", hidden_width, width) for part in ("gate", "up")]),
            down=projection("mlp.down", width, hidden_width),
            after_mlp_norm=norm(f"{name}.post_feedforward_layernorm"),
        )

    embedding = tensors.take("model.embed_tokens.weight", config.vocabulary, width)
    weights = Gemma3Weights(
        config=config,
        embedding=embedding,
        head=tensors.take_head("lm_head.weight", embedding, settings.flag("tie_word_embeddings", True)),
        layers=tuple(map(layer_weights, range(config.layers))),
        final_norm=norm("model.norm"),
    )
    tensors.finish("Gemma 3")
    return weights


def _rotary(settings):
    """(base of layers that see all, base of sliding ones), and what the former divide positions by."""
    rotary = settings.part("rope_parameters", {})
    if rotary:
        every, local = rotary.part("full_attention"), rotary.part("sliding_attention")
        bases = every.number("rope_theta"), local.number("rope_theta")
    else:  # older configurations
        every, local = settings.part("rope_scaling", {}), {}
        bases = settings.number("rope_theta"), settings.number("rope_local_base_freq")
    kind, local_kind = (each.get("rope_type") or each.get("type", "default") for each in (every, local))
    if kind not in ("default", "linear") or local_kind != "default":
        raise ValueError(f"rotary frequencies of types {kind} and, in sliding layers, {local_kind} are not supported")
    return bases, every.number("factor") if kind == "linear" else 1.0


def _windows(settings, layers):
    """The window of each of the layers, None where it sees all."""
    kinds = settings.get("layer_types")
    if kinds is None:  # older configurations: every sixth, or as they say
        pattern = settings.count("sliding_window_pattern", 6)
        kinds = ["sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(layers)]
    if len(kinds) != layers or not {*kinds} <= {"sliding_attention", "full_attention"}:
        raise ValueError(f"layer_types must be sliding_attention or full_attention for each of {layers} layers, got {kinds}")
    return tuple(settings.count("sliding_window") if kind == "sliding_attention" else None for kind in kinds)
