"""Byte-level BPE tokenizers, built from the vocabulary and merges that a GGUF file carries."""

from dataclasses import dataclass

import numpy as np

from .extras import import_extra
from .gguf_file import metadata, open_gguf

CONTROL = 3  # GGUF's token type of special tokens
SPLITS_DIGITS = {"smollm": True, "gpt-2": False}  # by GGUF's name of the pre-tokenizer


@dataclass(frozen=True)
class Tokenizer:
    """Turns text into tokens and back.

    Attributes
    ----------
    backend : tokenizers.Tokenizer
    special : dict of str to int
        The special tokens. `encode` recognizes their names in the text.
    end : int
        The token that ends a text, or an answer in a chat.
    """

    backend: object
    special: dict
    end: int

    def encode(self, text):
        """Tokens of a text, (n,) int64; nothing is added before or after.

        Bytes that the vocabulary lacks are left out, as in the model's training: SmolLM2 lacks some control
        characters and most of the unassigned planes of Unicode.
        """
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, tokens):
        """Text of a sequence of tokens, special tokens by their names."""
        return self.backend.decode([int(token) for token in tokens], skip_special_tokens=False)


def load_tokenizer(path):
    """Build the tokenizer of a GGUF file.

    Parameters
    ----------
    path : path-like or gguf.GGUFReader
        The file, or the result of `open_gguf`.

    Returns
    -------
    Tokenizer

    Raises
    ------
    ImportError
        If the package tokenizers or gguf is missing.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not GGUF, or its tokenizer is of another kind.
    """
    tokenizers = import_extra("tokenizers")
    reader = open_gguf(path)
    model = metadata(reader, "tokenizer.ggml.model")
    splitter = metadata(reader, "tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or splitter not in SPLITS_DIGITS:
        raise ValueError(f"tokenizer {model} with pre-tokenizer {splitter} is not supported")
    names = metadata(reader, "tokenizer.ggml.tokens")
    types = metadata(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in metadata(reader, "tokenizer.ggml.merges")]

    vocabulary = {name: token for token, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if SPLITS_DIGITS[splitter]:
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    else:
        backend.pre_tokenizer = byte_level
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = {name: token for token, name in enumerate(names) if types[token] == CONTROL}
    backend.add_special_tokens(list(special))
    return Tokenizer(backend, special, end=metadata(reader, "tokenizer.ggml.eos_token_id"))
