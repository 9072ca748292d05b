"""Byte-level BPE tokenizers, built from the vocabulary and merges that a GGUF file carries."""

from dataclasses import dataclass

import numpy as np

from .extras import import_extra
from .gguf_file import metadata, name_of, open_gguf
from .settings import refusing

CONTROL, USER_DEFINED = 3, 4  # GGUF's token types of special tokens, and of others that text is never split within
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
        If the file is not GGUF or is damaged, or its tokenizer is of another kind.
    """
    tokenizers = import_extra("tokenizers")
    reader = open_gguf(path)
    with refusing(name_of(reader), "holds no tokenizer that can be used"):
        return _tokenizer(tokenizers, reader)


def _tokenizer(tokenizers, reader):
    """The tokenizer of an opened file."""
    model = metadata(reader, "tokenizer.ggml.model")
    splitter = metadata(reader, "tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or splitter not in SPLITS_DIGITS:
        raise ValueError(f"tokenizer {model} with pre-tokenizer {splitter} is not supported")
    names = metadata(reader, "tokenizer.ggml.tokens")
    types = metadata(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in metadata(reader, "tokenizer.ggml.merges")]
    end = metadata(reader, "tokenizer.ggml.eos_token_id")
    vocabulary = {name: token for token, name in enumerate(names)}
    if not len(vocabulary) == len(names) == len(types):
        raise ValueError(f"its {len(names)} tokens must differ and have types, got {len(vocabulary)} and {len(types)} types")
    if not 0 <= end < len(names):
        raise ValueError(f"tokenizer.ggml.eos_token_id must lie in 0..{len(names) - 1}, got {end}")

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
    whole = [name for token, name in enumerate(names) if types[token] == USER_DEFINED]
    backend.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in whole])
    return Tokenizer(backend, special, end)
