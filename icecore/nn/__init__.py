"""Reference transformers in NumPy: pretrained models that take attention as an argument."""

from .attend import bidirectional_attention, exact_attention
from .bert import BertConfig, BertLayer, BertWeights, encode_tokens
from .cache import KeyValueCache
from .capture import capture_layers
from .decoder import forward, forward_batch, logits_in_chunks
from .dinov2_onnx import load_dinov2_onnx
from .gemma3 import Gemma3Config, Gemma3Layer, Gemma3Weights
from .generate import continue_from, generate, sample
from .gguf_file import open_gguf
from .gpt2 import Gpt2Config, Gpt2Weights
from .llama import LlamaConfig, LlamaLayer, LlamaWeights
from .near_far_cache import NearFarCache
from .pre_norm import PreNormLayer
from .scores import agreement, divergence, perplexity, score
from .tokenizer import Tokenizer, load_tokenizer
from .vit import VitConfig, VitWeights, encode_image
from .weights import find_dinov2, find_smollm2, load_gguf, load_model, load_safetensors

__all__ = [
    "BertConfig",
    "BertLayer",
    "BertWeights",
    "Gemma3Config",
    "Gemma3Layer",
    "Gemma3Weights",
    "Gpt2Config",
    "Gpt2Weights",
    "KeyValueCache",
    "LlamaConfig",
    "LlamaLayer",
    "LlamaWeights",
    "NearFarCache",
    "PreNormLayer",
    "Tokenizer",
    "VitConfig",
    "VitWeights",
    "agreement",
    "bidirectional_attention",
    "capture_layers",
    "continue_from",
    "divergence",
    "encode_image",
    "encode_tokens",
    "exact_attention",
    "find_dinov2",
    "find_smollm2",
    "forward",
    "forward_batch",
    "generate",
    "load_dinov2_onnx",
    "load_gguf",
    "load_model",
    "load_safetensors",
    "load_tokenizer",
    "logits_in_chunks",
    "open_gguf",
    "perplexity",
    "sample",
    "score",
]
