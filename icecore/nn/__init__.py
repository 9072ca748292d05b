"""Reference transformers in NumPy: pretrained models that take attention as an argument."""

from .attend import bidirectional_attention, exact_attention
from .cache import KeyValueCache
from .decoder import forward, forward_batch, logits_in_chunks
from .dinov2_onnx import load_dinov2_onnx
from .evaluate import agreement, perplexity, score
from .generate import continue_from, generate, sample
from .gguf_file import open_gguf
from .llama import LlamaConfig, LlamaLayer, LlamaWeights
from .tokenizer import Tokenizer, load_tokenizer
from .vit import VitConfig, VitLayer, VitWeights, encode_image
from .weights import find_dinov2, find_smollm2, load_gguf, load_model, load_safetensors

__all__ = [
    "KeyValueCache",
    "LlamaConfig",
    "LlamaLayer",
    "LlamaWeights",
    "Tokenizer",
    "VitConfig",
    "VitLayer",
    "VitWeights",
    "agreement",
    "bidirectional_attention",
    "continue_from",
    "encode_image",
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
