"""Small models with random weights and a tokenizer of single characters, for tests of the evaluation."""

import string
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from test_nn_llama import TINY, tiny_weights

from icecore import nn
from icecore.evaluation.models import Model

CHARACTERS = ["<end>", *string.printable]


@dataclass(frozen=True)
class CharacterTokenizer:
    """As much of `nn.Tokenizer` as the evaluation uses; characters it does not know become question marks."""

    special: dict = field(default_factory=dict)
    end: int = 0

    def encode(self, text):
        known = {character: token for token, character in enumerate(CHARACTERS)}
        return np.array([known.get(character, known["?"]) for character in text], np.int64)

    def decode(self, tokens):
        return "".join(CHARACTERS[token] for token in tokens)


@cache
def decoder():
    config = nn.LlamaConfig(**vars(TINY) | {"context_length": 4000, "vocabulary": len(CHARACTERS)})
    return Model("tiny", tiny_weights(config), CharacterTokenizer())


@cache
def image_encoder():
    """A vision transformer of two layers, patches of 8 pixels."""
    generator = np.random.default_rng(0)
    width, heads, patch, hidden = 24, 3, 8, 48

    def linear(outputs, inputs):
        weight = generator.standard_normal((outputs, inputs), np.float32) / np.float32(inputs**0.5)
        return weight, 0.1 * generator.standard_normal(outputs, np.float32)

    norm = np.ones(width, np.float32), np.zeros(width, np.float32)
    shapes = (3 * width, width), (width, width), (hidden, width), (width, hidden)

    def layer():
        query_key_value, output, up, down = (linear(*shape) for shape in shapes)
        return nn.PreNormLayer(norm, query_key_value, output, norm, up, down)

    return Model("tiny images", nn.VitWeights(
        config=nn.VitConfig(width=width, hidden_width=hidden, layers=2, heads=heads, patch=patch, norm_epsilon=1e-6),
        patch_embedding=linear(width, 3 * patch * patch),
        class_token=generator.standard_normal(width, np.float32),
        positions=generator.standard_normal((5, 5, width), np.float32),
        layers=(layer(), layer()),
        final_norm=norm,
    ))
