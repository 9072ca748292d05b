"""Llama, Qwen 2 and Qwen 3 from the files that they come in."""

from functools import partial

import numpy as np

from .llama import LlamaConfig, LlamaLayer, LlamaWeights
from .tensors import Stored, Tensors

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

GGUF_SETTINGS = {  # what `llama_from_gguf` reads
    "embedding_length",
    "attention.head_count",
    "feed_forward_length",
    "block_count",
    "attention.head_count_kv",
    "attention.key_length",
    "context_length",
    "rope.freq_base",
    "attention.layer_norm_rms_epsilon",
}
UNSCALED = (0.0, 1.0)  # factors of rotary scaling that scale nothing
FAMILIES = ("llama", "qwen2", "qwen3")  # model_type of Hugging Face and architecture of GGUF alike
BIASED, NORMED = ("qwen2",), ("qwen3",)  # with biases of query, key and value; with norms of queries and keys


def llama_from_safetensors(settings, stored):
    """Weights from Hugging Face's settings and tensors."""
    rotary = settings.part("rope_parameters", {})
    for scaling in (rotary, settings.part("rope_scaling", {})):
        if (scaling.get("rope_type") or scaling.get("type", "default")) != "default":
            raise ValueError("scaled rotary frequencies are not supported")
    rotary.expect(partial_rotary_factor=(1.0,))
    settings.expect(hidden_act=("silu",), partial_rotary_factor=(1.0,))
    # tensors that are missing would be zeros: a file that lacks what its configuration tells of is not whole
    settings.expect(mlp_bias=(False,), attention_bias=(False, settings["model_type"] in BIASED))
    layers, width = settings.count("num_hidden_layers"), settings.count("hidden_size")
    if settings.count("max_window_layers", 1) < layers:  # where no layer comes after these, none has a window
        settings.expect(use_sliding_window=(False,))
    if {*(settings.get("layer_types") or ())} - {"full_attention"}:
        raise ValueError("layers with sliding windows are not supported")
    query_heads = settings.count("num_attention_heads")
    config = LlamaConfig(
        vocabulary=settings.count("vocab_size"),
        width=width,
        hidden_width=settings.count("intermediate_size"),
        layers=layers,
        query_heads=query_heads,
        key_heads=settings.count("num_key_value_heads", query_heads),
        head_width=settings.count("head_dim", width // query_heads),
        context_length=settings.count("max_position_embeddings"),
        rotary_base=rotary.number("rope_theta", settings.number("rope_theta", 10000.0)),
        norm_epsilon=settings.number("rms_norm_eps"),
    )
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith("rotary_emb.inv_freq")}  # in older files
    tied = settings.flag("tie_word_embeddings", False)
    return _assemble(config, settings["model_type"], HF_NAMES, Tensors(stored), tied)


def llama_from_gguf(family, settings, vocabulary, stored):
    """Weights from the settings, the size of the vocabulary and the tensors of a GGUF file."""
    width, query_heads = settings.count("embedding_length"), settings.count("attention.head_count")
    config = LlamaConfig(
        vocabulary=vocabulary,
        width=width,
        hidden_width=settings.count("feed_forward_length"),
        layers=settings.count("block_count"),
        query_heads=query_heads,
        key_heads=settings.count("attention.head_count_kv", query_heads),
        head_width=settings.count("attention.key_length", width // query_heads),
        context_length=settings.count("context_length"),
        rotary_base=settings.number("rope.freq_base", 10000.0),
        norm_epsilon=settings.number("attention.layer_norm_rms_epsilon"),
    )
    expected = {
        "attention.causal": (True,),
        "attention.value_length": (config.head_width,),
        "rope.dimension_count": (config.head_width,),
        "rope.scale_linear": UNSCALED,
        "rope.scaling.factor": UNSCALED,
        "rope.scaling.type": ("none", "linear"),
        "vocab_size": (vocabulary,),
        "expert_count": (0,),
        "expert_used_count": (0,),
    }
    settings.expect(**expected)
    unknown = settings.keys() - GGUF_SETTINGS - expected.keys()
    if unknown:
        raise ValueError(f"the model is no plain {family.capitalize()}: it has the setting {min(unknown)}")
    if family == "llama":  # the Qwens turn half-split pairs in llama.cpp too
        for name in [name for name in stored if name.endswith(("attn_q.weight", "attn_k.weight"))]:
            read = partial(_half_split_rows, stored[name].read, config.head_width)
            stored[name] = Stored(stored[name].shape, read)
    return _assemble(config, family, GGUF_NAMES, Tensors(stored), tied="output.weight" not in stored)


def _half_split_rows(read, head_width):
    """Undo llama.cpp's order of query and key rows.

    llama.cpp turns neighbouring columns (2p, 2p + 1) of a head where Hugging Face turns (p, p + half), and
    stores the rows of the two projections interleaved to suit.
    """
    weight = read()  # (outputs, width)
    pairs = weight.reshape(-1, head_width // 2, 2, weight.shape[1])  # (heads, half, 2, width)
    return pairs.swapaxes(1, 2).reshape(weight.shape)  # (heads, 2, half, width) -> (outputs, width)


def _assemble(config, family, names, tensors, tied):
    """Weights from tensors under the given names; `tied`: the head is the embedding."""
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
        head=tensors.take_head(names["head"], embedding, tied),
        layers=tuple(layer_weights(layer) for layer in range(config.layers)),
        final_norm=tensors.take(names["final_norm"], width),
    )
    tensors.finish(family.capitalize())
    return weights
