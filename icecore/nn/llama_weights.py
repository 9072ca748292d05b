"""Llama, Qwen 2 and Qwen 3 from the files that they come in."""

from functools import partial

import numpy as np

from .gguf_file import metadata
from .llama import LlamaConfig, LlamaLayer, LlamaWeights
from .tensors import Tensors

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
    "query_bias": "model.layers.{}.self_attn.q_proj.bias",
    "key_bias": "model.layers.{}.self_attn.k_proj.bias",
    "value_bias": "model.layers.{}.self_attn.v_proj.bias",
    "query_norm": "model.layers.{}.self_attn.q_norm.weight",
    "key_norm": "model.layers.{}.self_attn.k_norm.weight",
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
    "query_bias": "blk.{}.attn_q.bias",
    "key_bias": "blk.{}.attn_k.bias",
    "value_bias": "blk.{}.attn_v.bias",
    "query_norm": "blk.{}.attn_q_norm.weight",
    "key_norm": "blk.{}.attn_k_norm.weight",
}

FAMILIES = ("llama", "qwen2", "qwen3")  # model_type of Hugging Face and architecture of GGUF alike
BIASED, NORMED = ("qwen2",), ("qwen3",)  # with biases of query, key and value; with norms of queries and keys


def llama_from_safetensors(settings, stored):
    """Weights from Hugging Face's settings and tensors."""
    rotary = settings.get("rope_parameters") or {}
    if settings.get("rope_scaling") or rotary.get("rope_type", "default") != "default":
        raise ValueError("scaled rotary frequencies are not supported")
    settings.expect(hidden_act=("silu",), use_sliding_window=(False,))
    query_heads = settings["num_attention_heads"]
    config = LlamaConfig(
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
    stored = {name: read for name, read in stored.items() if not name.endswith("rotary_emb.inv_freq")}  # in older files
    return _assemble(config, settings["model_type"], HF_NAMES, Tensors(stored))


def llama_from_gguf(reader, stored):
    """Weights from the metadata and tensors of a GGUF file."""
    family = metadata(reader, "general.architecture")
    if metadata(reader, f"{family}.rope.scaling.type", "none") != "none":
        raise ValueError("scaled rotary frequencies are not supported")
    width = metadata(reader, f"{family}.embedding_length")
    query_heads = metadata(reader, f"{family}.attention.head_count")
    config = LlamaConfig(
        vocabulary=len(metadata(reader, "tokenizer.ggml.tokens")),
        width=width,
        hidden_width=metadata(reader, f"{family}.feed_forward_length"),
        layers=metadata(reader, f"{family}.block_count"),
        query_heads=query_heads,
        key_heads=metadata(reader, f"{family}.attention.head_count_kv", query_heads),
        head_width=metadata(reader, f"{family}.attention.key_length", width // query_heads),
        context_length=metadata(reader, f"{family}.context_length"),
        rotary_base=metadata(reader, f"{family}.rope.freq_base", 10000.0),
        norm_epsilon=metadata(reader, f"{family}.attention.layer_norm_rms_epsilon"),
    )
    if family == "llama":  # the Qwens turn half-split pairs in llama.cpp too
        for name in [name for name in stored if name.endswith(("attn_q.weight", "attn_k.weight"))]:
            stored[name] = partial(_half_split_rows, stored[name], config.head_width)
    return _assemble(config, family, GGUF_NAMES, Tensors(stored))


def _half_split_rows(read, head_width):
    """Undo llama.cpp's order of query and key rows.

    llama.cpp turns neighbouring columns (2p, 2p + 1) of a head where Hugging Face turns (p, p + half), and
    stores the rows of the two projections interleaved to suit.
    """
    weight = read()  # (outputs, width)
    pairs = weight.reshape(-1, head_width // 2, 2, weight.shape[1])  # (heads, half, 2, width)
    return pairs.swapaxes(1, 2).reshape(weight.shape)  # (heads, 2, half, width) -> (outputs, width)


def _assemble(config, family, names, tensors):
    """Weights from tensors under the given names."""
    width, hidden_width, head_width = config.width, config.hidden_width, config.head_width
    query_width, key_width = config.query_heads * head_width, config.key_heads * head_width

    def layer_weights(layer):
        def take(part, *shape):
            return tensors.take(names[part].format(layer), *shape)

        query, key, value = take("query", query_width, width), take("key", key_width, width), take("value", key_width, width)
        optional = {}
        if family in BIASED:
            biases = take("query_bias", query_width), take("key_bias", key_width), take("value_bias", key_width)
            optional["query_key_value_bias"] = np.concatenate(biases)
        if family in NORMED:
            optional["query_norm"], optional["key_norm"] = take("query_norm", head_width), take("key_norm", head_width)
        return LlamaLayer(
            attention_norm=take("attention_norm", width),
            query_key_value=np.concatenate([query, key, value]),
            attention_output=take("attention_output", width, query_width),
            mlp_norm=take("mlp_norm", width),
            gate_up=np.concatenate([take("gate", hidden_width, width), take("up", hidden_width, width)]),
            down=take("down", width, hidden_width),
            **optional,
        )

    embedding = tensors.take(names["embedding"], config.vocabulary, width)
    weights = LlamaWeights(
        config=config,
        embedding=embedding,
        layers=tuple(layer_weights(layer) for layer in range(config.layers)),
        final_norm=tensors.take(names["final_norm"], width),
        head=tensors.take(names["head"], config.vocabulary, width) if names["head"] in tensors else embedding,
    )
    tensors.finish(family.capitalize())
    return weights
