"""Small models with random weights as files, for tests of the model families."""

import json

import numpy as np
import pytest

from icecore import nn

VOCABULARY, WIDTH, HIDDEN, LAYERS, HEADS, CONTEXT = 61, 24, 40, 3, 4, 64


def write_model(folder, config, tensors, name="model.safetensors"):
    """A folder in Hugging Face's layout."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_tensors(shapes, seed=0):
    """Tensors of the given shapes: matrices that keep the size of what they multiply, vectors around 0, norms around 1."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = generator.standard_normal(shape, np.float32)
        if len(shape) > 1:
            values *= 1.5 / np.sqrt(np.prod(shape[1:], dtype=np.float32))
        else:
            norm = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
            values = 0.3 * values + (norm or "lambda" in name)
        tensors[name] = values.astype(np.float32)
    return tensors


def torch_tensors(tensors, prefix=""):
    """The same in PyTorch, float64, names without the prefix; skips where torch is missing."""
    torch = pytest.importorskip("torch")
    return {name.removeprefix(prefix): torch.from_numpy(np.array(tensor)).double() for name, tensor in tensors.items()}


def torch_rotary(x, base, factor=1.0):
    """Rotary embedding of (heads, n, width) in PyTorch: x cos + rotate_half(x) sin."""
    import torch

    count, width = x.shape[1:]
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(count, dtype=torch.float64) / factor, frequencies).repeat(1, 2)
    left, right = x.chunk(2, dim=2)
    return x * angles.cos() + torch.cat([-right, left], dim=2) * angles.sin()


def random_tokens(count, seed=1):
    return np.random.default_rng(seed).integers(VOCABULARY, size=count)


def linear(name, outputs, inputs):
    """Shapes of a projection with a bias."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name):
    """Shapes of a layer norm."""
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


# Settings and tensors of small decoders by model_type ------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 100.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
HEAD_DIM = 10  # of Qwen 3 and Gemma 3, where it is not hidden_size / num_attention_heads
SETTINGS = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": HEAD_DIM, "attention_bias": False},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": CONTEXT,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    },
    "gemma3_text": LLAMA
    | {
        "model_type": "gemma3_text",
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": 13,
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 10.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}
DECODERS = list(SETTINGS)


def decoder_tensors(family, seed=0):
    """Random tensors of a small decoder under Hugging Face's names."""
    shapes = gpt2_shapes() if family == "gpt2" else llama_shapes(family)
    return random_tensors(shapes, seed)


def llama_shapes(family):
    head_dim = SETTINGS[family].get("head_dim", WIDTH // HEADS)
    widths = {"q": HEADS * head_dim, "k": 2 * head_dim, "v": 2 * head_dim}
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in (f"model.layers.{index}" for index in range(LAYERS)):
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (width, WIDTH) for part, width in widths.items()}
        shapes |= {f"{layer}.self_attn.o_proj.weight": (WIDTH, widths["q"]), f"{layer}.mlp.down_proj.weight": (WIDTH, HIDDEN)}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (HIDDEN, WIDTH) for part in ("gate", "up")}
        norms = ["input_layernorm", "post_attention_layernorm"]
        if family == "gemma3_text":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{layer}.{name}.weight": (WIDTH,) for name in norms}
        if family == "qwen2":
            shapes |= {f"{layer}.self_attn.{part}_proj.bias": (width,) for part, width in widths.items()}
        if family in ("qwen3", "gemma3_text"):
            shapes |= {f"{layer}.self_attn.{part}_norm.weight": (head_dim,) for part in "qk"}
    return shapes


def gpt2_shapes():
    shapes = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (CONTEXT, WIDTH)} | norm("ln_f")
    projections = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH)}
    projections |= {"mlp.c_fc": (WIDTH, 4 * WIDTH), "mlp.c_proj": (4 * WIDTH, WIDTH)}
    for layer in (f"h.{index}" for index in range(LAYERS)):
        shapes |= norm(f"{layer}.ln_1") | norm(f"{layer}.ln_2")
        for name, (inputs, outputs) in projections.items():  # stored (inputs, outputs)
            shapes |= {f"{layer}.{name}.weight": (inputs, outputs), f"{layer}.{name}.bias": (outputs,)}
    return shapes


def load_decoder(folder, family, **changes):
    """The weights of a small decoder, by way of a file."""
    return nn.load_model(write_model(folder, SETTINGS[family] | changes, decoder_tensors(family)))


def logits_of(weights, hidden):
    return np.concatenate([logits.copy() for _, logits in nn.logits_in_chunks(weights, hidden)])
