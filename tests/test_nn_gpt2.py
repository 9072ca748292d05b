"""GPT-2 against PyTorch."""

import numpy as np
import pytest
from model_files import (
    HEADS,
    LAYERS,
    SETTINGS,
    WIDTH,
    decoder_tensors,
    load_decoder,
    logits_of,
    random_tokens,
    torch_tensors,
    write_model,
)

from icecore import nn


def torch_logits(tensors, tokens):
    """GPT-2 in PyTorch, written from its description; shares no code with icecore."""
    import torch
    from torch.nn import functional

    def project(x, name):  # weights are stored (inputs, outputs)
        return torch.addmm(tensors[f"{name}.bias"], x, tensors[f"{name}.weight"])

    def normed(x, name):
        return functional.layer_norm(x, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)

    x = tensors["wte.weight"][torch.from_numpy(tokens)] + tensors["wpe.weight"][: len(tokens)]
    for layer in (f"h.{index}" for index in range(LAYERS)):
        query, key, value = project(normed(x, f"{layer}.ln_1"), f"{layer}.attn.c_attn").chunk(3, dim=1)
        query, key, value = (part.unflatten(1, (HEADS, -1)).transpose(0, 1)[None] for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)[0]
        x = x + project(mixed.transpose(0, 1).flatten(1), f"{layer}.attn.c_proj")
        inner = functional.gelu(project(normed(x, f"{layer}.ln_2"), f"{layer}.mlp.c_fc"), approximate="tanh")
        x = x + project(inner, f"{layer}.mlp.c_proj")
    return (normed(x, "ln_f") @ tensors["wte.weight"].T).numpy()


def test_logits_equal_pytorch(tmp_path):
    weights, tokens = load_decoder(tmp_path, "gpt2"), random_tokens(50)
    assert weights.head is weights.embedding
    expected = torch_logits(torch_tensors(decoder_tensors("gpt2")), tokens)
    np.testing.assert_allclose(logits_of(weights, nn.forward(weights, tokens)), expected, atol=1e-4)


def test_names_with_a_prefix_and_stored_masks(tmp_path):
    """As older checkpoints have them."""
    tensors = {f"transformer.{name}": tensor for name, tensor in decoder_tensors("gpt2").items()}
    tensors |= {f"transformer.h.{index}.attn.bias": np.tri(64, dtype=bool)[None, None] for index in range(LAYERS)}
    older = nn.load_model(write_model(tmp_path, SETTINGS["gpt2"], tensors))
    tokens = random_tokens(9)
    np.testing.assert_array_equal(nn.forward(older, tokens), nn.forward(load_decoder(tmp_path, "gpt2"), tokens))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"activation_function": "relu"}, "activation_function='relu' is not supported"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"n_inner": 50}, r"c_fc\.weight has shape \(24, 96\), its configuration says \(24, 50\)"),
        ({"n_layer": 2}, r"no plain GPT-2: it has a tensor h\.2"),
    ],
)
def test_other_models_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_decoder(tmp_path, "gpt2", **change)
