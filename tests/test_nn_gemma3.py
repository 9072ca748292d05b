"""Gemma 3 against PyTorch: sliding and global layers, each with its rotary base."""

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

NEWER = {  # the same settings as newer configurations have them
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    },
}


def torch_logits(tensors, tokens, factor=1.0):
    """Gemma 3 in PyTorch, written from its description; shares no code with icecore."""
    import torch
    from torch.nn import functional

    def project(x, name):
        return functional.linear(x, tensors[f"{name}.weight"])

    def normed(x, name):
        return functional.rms_norm(x, x.shape[-1:], 1 + tensors[f"{name}.weight"], 1e-6)

    x = tensors["embed_tokens.weight"][torch.from_numpy(tokens)] * WIDTH**0.5
    distance = torch.arange(len(tokens))[:, None] - torch.arange(len(tokens))
    for index in range(LAYERS):
        layer, sliding = f"layers.{index}", index != 2
        inner = normed(x, f"{layer}.input_layernorm")
        query, key, value = (project(inner, f"{layer}.self_attn.{part}_proj").unflatten(1, (-1, 10)) for part in "qkv")
        query, key = normed(query, f"{layer}.self_attn.q_norm"), normed(key, f"{layer}.self_attn.k_norm")
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        query, key = (torch_rotary(part, 10.0) if sliding else torch_rotary(part, 1000.0, factor) for part in (query, key))
        seen = (distance >= 0) & (distance < 5) if sliding else distance >= 0
        key, value = key.repeat_interleave(2, dim=0), value.repeat_interleave(2, dim=0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=13**-0.5)
        mixed = project(mixed.transpose(0, 1).flatten(1), f"{layer}.self_attn.o_proj")
        x = x + normed(mixed, f"{layer}.post_attention_layernorm")
        inner = normed(x, f"{layer}.pre_feedforward_layernorm")
        gate = functional.gelu(project(inner, f"{layer}.mlp.gate_proj"), approximate="tanh")
        inner = project(gate * project(inner, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
        x = x + normed(inner, f"{layer}.post_feedforward_layernorm")
    return (normed(x, "norm") @ tensors["embed_tokens.weight"].T).numpy()


@pytest.mark.parametrize("changes", [{}, NEWER], ids=["older configuration", "newer configuration"])
@pytest.mark.parametrize("factor", [None, 8.0])
def test_logits_equal_pytorch(tmp_path, changes, factor):
    linear = {"rope_type": "linear", "factor": factor}
    if factor and changes:
        rotary = changes["rope_parameters"]
        changes = changes | {"rope_parameters": rotary | {"full_attention": rotary["full_attention"] | linear}}
    elif factor:
        changes = {"rope_scaling": linear}
    weights, tokens = load_decoder(tmp_path, "gemma3_text", **changes), random_tokens(50)
    assert weights.config.windows == (5, 5, None)
    expected = torch_logits(torch_tensors(decoder_tensors("gemma3_text"), "model."), tokens, factor or 1.0)
    np.testing.assert_allclose(logits_of(weights, nn.forward(weights, tokens)), expected, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping=30\.0 is not supported; expected None"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "has no 'factor'"),
        ({"layer_types": ["full_attention"]}, "layer_types must be"),
        ({"layer_types": 3 * ["chunked_attention"]}, "layer_types must be"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "has no 'sliding_attention'"),
    ],
)
def test_other_models_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_decoder(tmp_path, "gemma3_text", **change)


def test_missing_window_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(SETTINGS["gemma3_text"], "sliding_window")
    with pytest.raises(ValueError, match="has no 'sliding_window'"):
        load_decoder(tmp_path, "gemma3_text")
