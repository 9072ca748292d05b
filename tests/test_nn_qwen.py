"""Qwen 2 (biases) and Qwen 3 (norms of queries and keys) against PyTorch."""

import numpy as np
import pytest
from model_files import (
    LAYERS,
    WIDTH,
    decoder_tensors,
    load_decoder,
    logits_of,
    random_tokens,
    torch_rotary,
    torch_tensors,
)

from icecore import nn


def torch_logits(tensors, tokens, base):
    """A Qwen in PyTorch, written from its description; biases and norms where there are any. Shares no code with icecore."""
    import torch
    from torch.nn import functional

    def project(x, name):
        return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def normed(x, name):
        return functional.rms_norm(x, x.shape[-1:], tensors[f"{name}.weight"], 1e-6)

    x = tensors["embed_tokens.weight"][torch.from_numpy(tokens)]
    for layer in (f"layers.{index}" for index in range(LAYERS)):
        inner, attention = normed(x, f"{layer}.input_layernorm"), f"{layer}.self_attn"
        head_width = len(tensors[f"{attention}.k_proj.weight"]) // 2
        query, key, value = (project(inner, f"{attention}.{part}_proj").unflatten(1, (-1, head_width)) for part in "qkv")
        if f"{attention}.q_norm.weight" in tensors:
            query, key = normed(query, f"{attention}.q_norm"), normed(key, f"{attention}.k_norm")
        query, key = (torch_rotary(part.transpose(0, 1), base)[None] for part in (query, key))
        value = value.transpose(0, 1)[None]
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)[0]
        x = x + project(mixed.transpose(0, 1).flatten(1), f"{attention}.o_proj")
        inner = normed(x, f"{layer}.post_attention_layernorm")
        gate = functional.silu(project(inner, f"{layer}.mlp.gate_proj"))
        x = x + project(gate * project(inner, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
    return (normed(x, "norm") @ tensors["embed_tokens.weight"].T).numpy()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_logits_equal_pytorch(tmp_path, family):
    weights, tokens = load_decoder(tmp_path, family), random_tokens(50)
    expected = torch_logits(torch_tensors(decoder_tensors(family), "model."), tokens, base=100.0)
    np.testing.assert_allclose(logits_of(weights, nn.forward(weights, tokens)), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_sliding_windows_are_refused(tmp_path, family):
    with pytest.raises(ValueError, match="use_sliding_window=True is not supported"):
        load_decoder(tmp_path, family, use_sliding_window=True)


@pytest.mark.parametrize("family, other, message", [
    ("qwen2", "llama", r"no plain Llama: it has a tensor .*k_proj\.bias"),
    ("qwen3", "llama", r"q_proj\.weight has shape|no plain Llama: it has a tensor .*k_norm"),
    ("llama", "qwen2", r"lacks the tensor .*q_proj\.bias"),
    ("llama", "qwen3", r"lacks the tensor .*q_norm"),
])
def test_families_are_not_mixed_up(tmp_path, family, other, message):
    with pytest.raises(ValueError, match=message):
        load_decoder(tmp_path, family, model_type=other)


def test_width_of_heads_is_their_own(tmp_path):
    assert load_decoder(tmp_path, "qwen3").config.head_width == 10 != WIDTH // 4
