"""GPT-2: configuration, weights, their loading and the layers."""

from dataclasses import dataclass

import numpy as np

from .layers import gelu_tanh, layer_norm
from .pre_norm import PreNormLayer, add_attention_and_mlp, project
from .tensors import Tensors


@dataclass(frozen=True)
class Gpt2Config:
    """The shape of a GPT-2 model."""

    vocabulary: int
    width: int
    hidden_width: int
    layers: int
    heads: int
    context_length: int
    norm_epsilon: float


@dataclass(frozen=True)
class Gpt2Weights:
    """Weights of a whole model with its configuration; `head` is `embedding` itself where they are tied."""

    config: Gpt2Config
    embedding: np.ndarray  # (vocabulary, width)
    positions: np.ndarray  # (context_length, width)
    layers: tuple  # of PreNormLayer
    final_norm: tuple  # (width,) each
    head: np.ndarray  # (vocabulary, width)

    def hidden_states(self, tokens, positions, attend, over_rows):
        """The model itself, for `forward_batch`; as `LlamaWeights.hidden_states`."""
        config = self.config
        x = self.embedding[tokens] + self.positions[positions]  # (n, width)
        for index, layer in enumerate(self.layers):
            query, key, value = project(config, layer, x, over_rows)  # (heads, n, head_width) each
            mixed = attend(index, query, key, value)  # (heads, n, head_width)
            add_attention_and_mlp(config, layer, x, mixed, gelu_tanh, over_rows)  # (n, width), in place
        return layer_norm(x, *self.final_norm, config.norm_epsilon)  # (n, width)


def gpt2_from_safetensors(settings, stored):
    """Weights from Hugging Face's settings and tensors, which hold (inputs, outputs)."""
    settings.expect(
        activation_function=("gelu_new", "gelu_pytorch_tanh"),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    width = settings.multiple("n_embd", "n_head")
    config = Gpt2Config(
        vocabulary=settings.count("vocab_size"),
        width=width,
        hidden_width=settings.count("n_inner", 4 * width),
        layers=settings.count("n_layer"),
        heads=settings.count("n_head"),
        context_length=settings.count("n_positions"),
        norm_epsilon=settings.number("layer_norm_epsilon"),
    )
    tensors = Tensors(stored, prefixes=("transformer.",))

    def linear(name, outputs, inputs):
        weight = tensors.take(f"{name}.weight", inputs, outputs)
        return np.ascontiguousarray(weight.T), tensors.take(f"{name}.bias", outputs)

    def layer_weights(index):
        name = f"h.{index}"
        return PreNormLayer(
            attention_norm=tensors.norm(f"{name}.ln_1", width),
            query_key_value=linear(f"{name}.attn.c_attn", 3 * width, width),
            attention_output=linear(f"{name}.attn.c_proj", width, width),
            mlp_norm=tensors.norm(f"{name}.ln_2", width),
            up=linear(f"{name}.mlp.c_fc", config.hidden_width, width),
            down=linear(f"{name}.mlp.c_proj", width, config.hidden_width),
        )

    embedding = tensors.take("wte.weight", config.vocabulary, width)
    weights = Gpt2Weights(
        config=config,
        embedding=embedding,
        head=tensors.take_head("lm_head.weight", embedding, settings.flag("tie_word_embeddings", True)),
        positions=tensors.take("wpe.weight", config.context_length, width),
        layers=tuple(map(layer_weights, range(config.layers))),
        final_norm=tensors.norm("ln_f", width),
    )
    masks = tuple(f"h.{index}.attn.{name}" for index in range(config.layers) for name in ("bias", "masked_bias"))
    tensors.finish("GPT-2", ignored=masks)  # older files carry the causal mask
    return weights
