"""The NumPy Llama against an independent one in PyTorch, and against itself over a cache."""

from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import icecore
from icecore import nn
from icecore.nn import row_threads

TINY = nn.LlamaConfig(
    vocabulary=61,
    width=24,
    hidden_width=40,
    layers=3,
    query_heads=6,
    key_heads=3,
    head_width=8,
    context_length=64,
    rotary_base=100.0,
    norm_epsilon=1e-5,
)
TOLERANCE = 1e-4  # float32 against float64 through three layers; a wrong formula misses by 0.1 and more
SHAPES = [  # query heads, key heads, head width, tied
    (6, 3, 8, True),
    (5, 5, 4, False),
    (7, 1, 10, True),
    (9, 3, 8, False),
]


def tiny_config(query_heads=6, key_heads=3, head_width=8):
    fields = vars(TINY) | {"query_heads": query_heads, "key_heads": key_heads, "head_width": head_width}
    return nn.LlamaConfig(**fields)


def random_parts(config, seed=0, tied=True):
    """Random weights, each projection by itself: {"embedding": ..., "layers": [{"query": ...}, ...], ...}."""
    generator = np.random.default_rng(seed)

    def matrix(outputs, inputs):
        return generator.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs))

    def norm():
        return generator.uniform(0.5, 1.5, config.width).astype(np.float32)

    query_width, key_width = config.query_heads * config.head_width, config.key_heads * config.head_width
    layers = [
        {
            "attention_norm": norm(),
            "query": 2 * matrix(query_width, config.width),
            "key": 2 * matrix(key_width, config.width),
            "value": matrix(key_width, config.width),
            "attention_output": matrix(config.width, query_width),
            "mlp_norm": norm(),
            "gate": matrix(config.hidden_width, config.width),
            "up": matrix(config.hidden_width, config.width),
            "down": matrix(config.width, config.hidden_width),
        }
        for _ in range(config.layers)
    ]
    embedding = matrix(config.vocabulary, config.width)
    head = embedding if tied else matrix(config.vocabulary, config.width)
    return {"embedding": embedding, "layers": layers, "final_norm": norm(), "head": head}


def fused(config, parts):
    """The same weights as `forward` wants them."""
    layers = tuple(
        nn.LlamaLayer(
            attention_norm=layer["attention_norm"],
            query_key_value=np.concatenate([layer["query"], layer["key"], layer["value"]]),
            attention_output=layer["attention_output"],
            mlp_norm=layer["mlp_norm"],
            gate_up=np.concatenate([layer["gate"], layer["up"]]),
            down=layer["down"],
        )
        for layer in parts["layers"]
    )
    return nn.LlamaWeights(config, parts["embedding"], layers, parts["final_norm"], parts["head"])


def tiny_weights(config=TINY, **options):
    return fused(config, random_parts(config, **options))


def random_tokens(count, seed=1):
    return np.random.default_rng(seed).integers(TINY.vocabulary, size=count)


def numpy_attention(query, key, value, *, layer):
    """Causal attention, bottom-right aligned, written for reading."""
    group = len(query) // len(key)
    key, value = np.repeat(key, group, axis=0), np.repeat(value, group, axis=0)
    scores = query.astype(np.float64) @ key.swapaxes(1, 2) / np.sqrt(query.shape[2])
    length, seen = scores.shape[1:]
    scores[:, ~np.tri(length, seen, seen - length, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return (weights / weights.sum(axis=2, keepdims=True) @ value).astype(np.float32)


def torch_hidden(config, parts, tokens, *, interleaved=False, double=True):
    """Hidden states of a Llama in PyTorch, which shares no code with icecore.

    `interleaved` turns columns (2p, 2p + 1) of a head, llama.cpp's convention, instead of (p, p + half).
    """
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    dtype = torch.float64 if double else torch.float32

    def tensor(array):
        return torch.from_numpy(np.array(array)).to(dtype)

    def norm(x, weight):
        return functional.rms_norm(x, (config.width,), tensor(weight), config.norm_epsilon)

    def heads(x, weight):
        return functional.linear(x, tensor(weight)).unflatten(1, (-1, config.head_width)).transpose(0, 1)

    def turn(x):
        exponents = torch.arange(config.head_width // 2, dtype=torch.float64) * -2 / config.head_width
        angles = torch.outer(torch.arange(len(tokens), dtype=torch.float64), config.rotary_base**exponents)
        axes = (-1, 2) if interleaved else (2, -1)  # the pair's axis is last, or last but one
        pairs = x.unflatten(2, axes)
        pairs = pairs if interleaved else pairs.transpose(2, 3)
        turned = torch.view_as_complex(pairs.double().contiguous()) * torch.polar(torch.ones(()).double(), angles)
        turned = torch.view_as_real(turned)
        return (turned if interleaved else turned.transpose(2, 3)).flatten(2).to(dtype)

    x = tensor(parts["embedding"])[torch.from_numpy(np.array(tokens))]
    for layer in parts["layers"]:
        normed = norm(x, layer["attention_norm"])
        query, key = turn(heads(normed, layer["query"])), turn(heads(normed, layer["key"]))
        value = heads(normed, layer["value"])
        out = functional.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)[0]
        x = x + functional.linear(out.transpose(0, 1).flatten(1), tensor(layer["attention_output"]))
        normed = norm(x, layer["mlp_norm"])
        gate = functional.silu(functional.linear(normed, tensor(layer["gate"])))
        x = x + functional.linear(gate * functional.linear(normed, tensor(layer["up"])), tensor(layer["down"]))
    return norm(x, parts["final_norm"])


@pytest.mark.parametrize("query_heads, key_heads, head_width, tied", SHAPES)
def test_hidden_states_and_logits_equal_pytorch(query_heads, key_heads, head_width, tied):
    config = tiny_config(query_heads, key_heads, head_width)
    parts, tokens = random_parts(config, tied=tied), random_tokens(37)
    expected = torch_hidden(config, parts, tokens).numpy()
    weights = fused(config, parts)
    hidden = nn.forward(weights, tokens, attention=numpy_attention)
    assert hidden.dtype == np.float32
    np.testing.assert_allclose(hidden, expected, atol=TOLERANCE)

    logits = np.concatenate([logits.copy() for _, logits in nn.logits_in_chunks(weights, hidden, chunk=10)])
    np.testing.assert_allclose(logits, expected @ parts["head"].T.astype(np.float64), atol=TOLERANCE)


def test_conventions_of_rotary_embedding_are_told_apart():
    """The comparison above would notice the wrong convention."""
    parts, tokens = random_parts(TINY), random_tokens(37)
    half_split, interleaved = (torch_hidden(TINY, parts, tokens, interleaved=flag) for flag in (False, True))
    assert abs(half_split - interleaved).max() > 0.1


def test_default_attention_is_exact_causal_attention():
    weights, tokens = tiny_weights(), random_tokens(50)
    expected = nn.forward(weights, tokens, attention=numpy_attention)
    np.testing.assert_allclose(nn.forward(weights, tokens), expected, atol=TOLERANCE)


@pytest.mark.parametrize("count", [1, 3])
def test_row_chunks_do_not_change_the_result(monkeypatch, count):
    weights, tokens = tiny_weights(), random_tokens(50)
    expected = nn.forward(weights, tokens, attention=numpy_attention)
    monkeypatch.setattr(row_threads, "ROWS", 7)
    with icecore.threads(count):
        hidden = nn.forward(weights, tokens, attention=numpy_attention)
    np.testing.assert_allclose(hidden, expected, atol=TOLERANCE)


@pytest.mark.parametrize("pieces", [[40], [13, 20, 7], [39, 1], [1] * 40], ids=str)
def test_pieces_over_a_cache_equal_one_pass_without(pieces):
    weights, tokens = tiny_weights(), random_tokens(40)
    expected = nn.forward(weights, tokens, attention=numpy_attention)
    held = nn.KeyValueCache()
    ends = np.cumsum([0, *pieces])
    hidden = [nn.forward(weights, tokens[first:end], attention=numpy_attention, cache=held) for first, end in pairwise(ends)]
    assert held.length == 40
    np.testing.assert_allclose(np.concatenate(hidden), expected, atol=TOLERANCE)


def test_interrupted_pass_leaves_the_cache_as_it_was():
    weights, tokens = tiny_weights(), random_tokens(20)

    def interrupted(query, key, value, *, layer):
        if layer == 1:
            raise KeyboardInterrupt
        return numpy_attention(query, key, value, layer=layer)

    held = nn.KeyValueCache()
    nn.forward(weights, tokens[:12], attention=numpy_attention, cache=held)
    with pytest.raises(KeyboardInterrupt):
        nn.forward(weights, tokens[12:15], attention=interrupted, cache=held)
    assert held.length == 12
    hidden = nn.forward(weights, tokens[12:], attention=numpy_attention, cache=held)
    expected = nn.forward(weights, tokens, attention=numpy_attention)[12:]
    np.testing.assert_allclose(hidden, expected, atol=TOLERANCE)


def test_attention_is_called_once_a_layer_with_all_queries():
    calls = []

    def recorded(query, key, value, *, layer):
        calls.append((layer, query.shape, key.shape, value.shape))
        return numpy_attention(query, key, value, layer=layer)

    nn.forward(tiny_weights(), random_tokens(11), attention=recorded)
    assert calls == [(layer, (6, 11, 8), (3, 11, 8), (3, 11, 8)) for layer in range(3)]


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([], "at least one"),
        ([[1, 2]], "flat"),
        ([0.5], "integers"),
        ([3, 61], r"0\.\.60"),
        ([-1], r"0\.\.60"),
        ([1] * 65, "context of 64"),
    ],
)
def test_wrong_tokens(tokens, message):
    with pytest.raises(ValueError, match=message):
        nn.forward(tiny_weights(), tokens, attention=numpy_attention)


def test_cache_and_tokens_together_must_fit_the_context():
    weights, held = tiny_weights(), nn.KeyValueCache()
    nn.forward(weights, random_tokens(60), attention=numpy_attention, cache=held)
    with pytest.raises(ValueError, match="65 tokens do not fit the context of 64"):
        nn.forward(weights, random_tokens(5), attention=numpy_attention, cache=held)
    assert held.length == 60


@cache
def smollm2():
    """SmolLM2 by icecore's loaders and, read here without them, tensor by tensor for PyTorch."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    try:
        reader = nn.open_gguf(nn.find_smollm2())
    except ImportError as error:
        pytest.skip(str(error))
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def read(name):
        return gguf.dequantize(stored[name].data, stored[name].tensor_type)

    names = {
        "attention_norm": "attn_norm",
        "query": "attn_q",
        "key": "attn_k",
        "value": "attn_v",
        "attention_output": "attn_output",
        "mlp_norm": "ffn_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
    }
    embedding = read("token_embd.weight")
    parts = {
        "embedding": embedding,
        "layers": [{part: read(f"blk.{layer}.{name}.weight") for part, name in names.items()} for layer in range(30)],
        "final_norm": read("output_norm.weight"),
        "head": embedding,
    }
    return SimpleNamespace(weights=nn.load_gguf(reader), tokenizer=nn.load_tokenizer(reader), parts=parts)


def test_perplexity_of_smollm2_equals_pytorch():
    torch = pytest.importorskip("torch")
    from pydoc_data.topics import topics

    model = smollm2()
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokens = model.tokenizer.encode(text[:12000])[:1500]
    assert len(tokens) == 1500

    hidden = torch_hidden(model.weights.config, model.parts, tokens, interleaved=True, double=False)
    logits = hidden[:-1] @ torch.from_numpy(model.parts["head"]).T
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens[1:])).exp().item()

    losses, predictions = nn.score(model.weights, nn.forward(model.weights, tokens), tokens)
    assert nn.perplexity(losses) == pytest.approx(expected, rel=1e-3)
    assert nn.perplexity(losses) < 20  # both would be wrong together far above this
    assert nn.agreement(predictions, logits.argmax(dim=1).numpy()) > 0.99


def test_smollm2_continues_a_fact():
    model = smollm2()
    prompt = model.tokenizer.encode("The capital of France is")
    answer = model.tokenizer.decode(nn.generate(model.weights, prompt, max_new_tokens=3))
    assert "Paris" in answer
