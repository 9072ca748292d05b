"""What holds for decoders of every family: caches, batches of any lengths, attention as an argument, generation."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import CONTEXT, DECODERS, HEADS, LAYERS, SETTINGS, decoder_tensors, load_decoder, random_tokens, write_model

import icecore
from icecore import nn
from icecore.nn import row_threads

TOLERANCE = 1e-4  # the same sums in float32, in another order; a wrong formula misses by 0.1 and more


@pytest.fixture(scope="module", params=DECODERS)
def weights(request, tmp_path_factory):
    return load_decoder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("pieces", [[40], [13, 20, 7], [39, 1], [1] * 40], ids=str)
def test_pieces_over_a_cache_equal_one_pass_without(weights, pieces):
    tokens, held = random_tokens(40), nn.KeyValueCache()
    ends = np.cumsum([0, *pieces])
    hidden = [nn.forward(weights, tokens[first:end], cache=held) for first, end in pairwise(ends)]
    assert held.length == 40
    np.testing.assert_allclose(np.concatenate(hidden), nn.forward(weights, tokens), atol=TOLERANCE)


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), more=st.data())
def test_batches_of_any_lengths_equal_each_alone(weights, lengths, more):
    """Prefill of several prompts, then pieces of any lengths after them, over one cache each."""
    added = [more.draw(st.integers(1, 5)) for _ in lengths]
    texts = [random_tokens(length + new, seed) for seed, (length, new) in enumerate(zip(lengths, added, strict=True))]
    caches = [nn.KeyValueCache() for _ in lengths]
    first = nn.forward_batch(weights, [text[:length] for text, length in zip(texts, lengths, strict=True)], caches=caches)
    then = nn.forward_batch(weights, [text[length:] for text, length in zip(texts, lengths, strict=True)], caches=caches)
    for text, held, *hidden in zip(texts, caches, first, then, strict=True):
        assert held.length == len(text)
        np.testing.assert_allclose(np.concatenate(hidden), nn.forward(weights, text), atol=TOLERANCE)


def test_attention_is_called_once_for_each_layer_and_sequence(weights):
    calls = []

    def recorded(query, key, value, *, layer, **options):
        calls.append((layer, query.shape[1], options))
        return nn.exact_attention(query, key, value, layer=layer, **options)

    nn.forward_batch(weights, [random_tokens(7), random_tokens(12)], attention=recorded)
    windows = getattr(weights.config, "windows", LAYERS * (None,))
    options = [{} if window is None else {"window": window} for window in windows]
    assert calls == [(layer, count, options[layer]) for layer in range(LAYERS) for count in (7, 12)]


def test_what_attention_returns_is_what_counts(weights):
    tokens = random_tokens(20)
    nothing = nn.forward(weights, tokens, attention=lambda query, key, value, **options: np.zeros_like(query))
    assert abs(nothing - nn.forward(weights, tokens)).max() > 0.1


@pytest.mark.parametrize("count", [1, 2])
def test_row_chunks_and_threads_do_not_change_the_result(weights, monkeypatch, count):
    texts = [random_tokens(11), random_tokens(23)]
    expected = nn.forward_batch(weights, texts)
    monkeypatch.setattr(row_threads, "ROWS", 7)
    with icecore.threads(count):
        for hidden, same in zip(nn.forward_batch(weights, texts), expected, strict=True):
            np.testing.assert_allclose(hidden, same, atol=TOLERANCE)


def test_generation_follows_the_most_likely_tokens_of_whole_passes(weights):
    text = random_tokens(5).tolist()
    new = nn.generate(weights, text, max_new_tokens=6)
    for token in new:
        losses, predictions = nn.score(weights, nn.forward(weights, [*text, token]), [*text, token], start=len(text))
        assert predictions == [token] and np.isfinite(losses).all()
        text.append(token)


def test_interrupted_batch_leaves_its_caches_as_they_were(weights):
    caches = [nn.KeyValueCache(), nn.KeyValueCache()]
    nn.forward_batch(weights, [random_tokens(4), random_tokens(6)], caches=caches)

    def interrupted(query, key, value, *, layer, **options):
        if layer == LAYERS - 1:
            raise KeyboardInterrupt
        return nn.exact_attention(query, key, value, layer=layer, **options)

    with pytest.raises(KeyboardInterrupt):
        nn.forward_batch(weights, [[1], [2, 3]], attention=interrupted, caches=caches)
    assert [held.length for held in caches] == [4, 6]


def test_wrong_batches(weights):
    held = nn.KeyValueCache()
    for sequences, caches, message in [
        ([], None, "at least one sequence"),
        ([[1], []], None, "at least one token"),
        ([[1], [61]], None, r"0\.\.60"),
        ([[1], [2]], [held], "caches must be 2 different ones"),
        ([[1], [2]], [held, held], "caches must be 2 different ones"),
        ([[1], [1] * (CONTEXT + 1)], None, "65 tokens do not fit the context of 64"),
    ]:
        with pytest.raises(ValueError, match=message):
            nn.forward_batch(weights, sequences, caches=caches)
    assert held.length == 0


@pytest.mark.parametrize("family", DECODERS)
def test_files_with_other_tensors_are_refused(tmp_path, family):
    tensors = decoder_tensors(family)
    write_model(tmp_path, SETTINGS[family], tensors | {"model.layers.0.mystery.weight": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=r"no plain .*: it has a tensor model\.layers\.0\.mystery\.weight"):
        nn.load_model(tmp_path)
    missing = next(name for name in tensors if ".1." in name)
    write_model(tmp_path, SETTINGS[family], {name: tensor for name, tensor in tensors.items() if name != missing})
    with pytest.raises(ValueError, match=f"lacks the tensor {missing}"):
        nn.load_model(tmp_path)


@pytest.mark.parametrize("family", DECODERS)
def test_separate_heads_are_read(tmp_path, family):
    head = np.random.default_rng(5).standard_normal(decoder_tensors("gpt2")["wte.weight"].shape, np.float32)
    settings = SETTINGS[family] | {"tie_word_embeddings": False}
    write_model(tmp_path, settings, decoder_tensors(family) | {"lm_head.weight": head})
    weights = nn.load_model(tmp_path)
    np.testing.assert_array_equal(weights.head, head)
    assert weights.head is not weights.embedding and getattr(weights.config, "query_heads", HEADS) == HEADS


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("cached", [False, True])
def test_attention_of_another_shape_is_named_where_it_is_returned(tmp_path, family, cached):
    weights, cache = load_decoder(tmp_path, family), nn.KeyValueCache() if cached else None

    def turned(query, key, value, *, layer, **options):
        return nn.exact_attention(query, key, value, layer=layer, **options).swapaxes(0, 1)

    with pytest.raises(ValueError, match=r"attention must return shape \(4, 7, \d+\) in layer 0, got \(7, 4, \d+\)"):
        nn.forward(weights, random_tokens(7), attention=turned, cache=cache)
