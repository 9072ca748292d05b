"""Qwen 2 (biases) and Qwen 3 (norms of queries and keys) against PyTorch."""

import numpy as np
import pytest
from model_files import (
    LAYERS,
    SETTINGS,
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


def write_gguf(path, family, **strings):
    """The small model as a GGUF file; rows of queries and keys as they are, unlike Llama's."""
    gguf = pytest.importorskip("gguf")
    settings, tensors = SETTINGS[family], decoder_tensors(family)
    writer = gguf.GGUFWriter(path, family)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_block_count(LAYERS)
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    if "head_dim" in settings:
        writer.add_key_length(settings["head_dim"])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_rope_freq_base(settings["rope_theta"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_token_list([f"token {token}" for token in range(settings["vocab_size"])])
    for key, value in strings.items():
        writer.add_string(f"{family}.{key}", value)
    names = gguf.get_tensor_name_map({"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[family], LAYERS)
    for name, tensor in tensors.items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_gguf_holds_the_same_model(tmp_path, family):
    weights = nn.load_model(write_gguf(tmp_path / "tiny.gguf", family))
    tokens = random_tokens(20)
    expected = nn.forward(load_decoder(tmp_path, family), tokens)
    np.testing.assert_allclose(nn.forward(weights, tokens), expected, atol=1e-4)  # its epsilon is stored in float32


def test_scaled_rotary_frequencies_in_gguf_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rope\.scaling\.type='yarn' is not supported"):
        nn.load_model(write_gguf(tmp_path / "tiny.gguf", "qwen2", **{"rope.scaling.type": "yarn"}))


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
