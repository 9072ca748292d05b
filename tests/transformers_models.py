"""Small random models of transformers' families, for tests without a download."""

import inspect

import torch
import transformers

VOCABULARY = 100
#: The keyword by which a model and `generate` take a cache.
CACHE = "cache" if "cache" in inspect.signature(transformers.LlamaForCausalLM.forward).parameters else "past_key_values"
_DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None,
}
_ENCODER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_T5 = {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
       "decoder_start_token_id": 0, "eos_token_id": None}
_INDEXED = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "index_topk": 8, "index_n_heads": 2, "index_head_dim": 16, "first_k_dense_replace": 1,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}
_WHISPER = {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "num_mel_bins": 8, "max_source_positions": 50,
    "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}

#: name -> (class of the model, class of its configuration, settings)
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_DECODER, "sliding_window": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_DECODER, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_DECODER, "sliding_window": 8, "query_pre_attn_scalar": 16,
               "layer_types": ["sliding_attention", "full_attention"]}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_DECODER, "num_local_experts": 4}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {**_DECODER, "sliding_window": 8, "num_local_experts": 4,
                "num_experts_per_tok": 2}),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", {**_DECODER, "attention_chunk_size": 8, "intermediate_size_mlp": 96,
               "num_local_experts": 2, "num_experts_per_tok": 1}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4,
             "n_positions": 512, "bos_token_id": 1, "eos_token_id": None}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config",
                    {name: value for name, value in _INDEXED.items() if not name.startswith("index")}),
    "deepseek_v32": ("DeepseekV32ForCausalLM", "DeepseekV32Config", _INDEXED),
    "bert": ("BertModel", "BertConfig", {**_ENCODER, "vocab_size": VOCABULARY}),
    "xlm_roberta": ("XLMRobertaModel", "XLMRobertaConfig", {**_ENCODER, "vocab_size": VOCABULARY, "pad_token_id": 0}),
    "nomic_bert": ("NomicBertModel", "NomicBertConfig", {**_ENCODER, "vocab_size": VOCABULARY}),
    "modernbert": ("ModernBertModel", "ModernBertConfig", {**_ENCODER, "vocab_size": VOCABULARY, "local_attention": 8,
                   "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}),
    "vit": ("ViTModel", "ViTConfig", {**_ENCODER, "image_size": 32, "patch_size": 4}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
}


def small_model(family, attention="sdpa"):
    """A model in evaluation, with weights that make attention sharp enough to matter."""
    model_class, config_class, settings = FAMILIES[family]
    config = getattr(transformers, config_class)(**settings, attn_implementation=attention)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim > 1 else 0.05
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(batch, length, seed=0):
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def text_inputs(family, batch=2, length=40):
    """Keyword arguments of a forward pass, without a mask."""
    if family == "vit":
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    if family == "whisper":
        sound = torch.randn(batch, 8, 100, generator=torch.Generator().manual_seed(0))
        return {"input_features": sound, "decoder_input_ids": tokens(batch, 9)}
    inputs = {"input_ids": tokens(batch, length)}
    return {**inputs, "decoder_input_ids": tokens(batch, 9, seed=1)} if family == "t5" else inputs
