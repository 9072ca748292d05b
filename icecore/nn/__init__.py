"""The reference transformer in NumPy: pretrained models that take attention as an argument."""

from .cache import KeyValueCache
from .evaluate import agreement, perplexity, score
from .generate import continue_from, generate, sample
from .gguf_file import open_gguf
from .llama import LlamaConfig, LlamaLayer, LlamaWeights, exact_attention, forward, logits_in_chunks
from .tokenizer import Tokenizer, load_tokenizer
from .weights import find_smollm2, load_gguf, load_safetensors

__all__ = [
    "KeyValueCache",
    "LlamaConfig",
    "LlamaLayer",
    "LlamaWeights",
    "Tokenizer",
    "agreement",
    "continue_from",
    "exact_attention",
    "find_smollm2",
    "forward",
    "generate",
    "load_gguf",
    "load_safetensors",
    "load_tokenizer",
    "logits_in_chunks",
    "open_gguf",
    "perplexity",
    "sample",
    "score",
]
