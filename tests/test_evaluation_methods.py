"""Methods by name and options, against what they stand for."""

import numpy as np
import pytest

import icecore
from icecore import nn, selectors
from icecore.evaluation import methods


@pytest.fixture(scope="module")
def arrays(capture):
    return capture.query, capture.key, capture.value


NAMES = [name for name in methods.DEFAULTS if name != "plan"]  # which has a test of its own
CALLS = {  # method -> what it says to icecore.attention, on 2048 keys
    "exact": {},
    "near_far": {"tolerance": 0.02, "window": 768},
    "near_far:k=40,window=256": {"k": 40, "window": 256},
    "top_k:k=40": {"selector": selectors.TopK(40)},
    "pdci:k=100": {"selector": selectors.PDCI(100)},
    "pdci:k=100,visit=300": {"selector": selectors.PDCI(100, 300)},
    "pages:k=100": {"selector": selectors.Pages(100)},
    "sparq:k=100,local=50": {"selector": selectors.SparQ(100, local=50)},
    "magicpig:bits=8,tables=40": {"selector": selectors.MagicPIG(8, 40)},
    "arkvale:k=300,page=16": {"selector": selectors.ArkVale(300, 16)},
    "retroinfer:retrieval=0.05,segment=512": {"selector": selectors.RetroInfer(0.05, segment=512)},
    "zeta:k=100": {"selector": selectors.Zeta(100)},
    "vattention:k=100,epsilon=0.1": {"selector": selectors.VAttention(100, epsilon=0.1)},
    "xattention:stride=16,threshold=0.8": {"selector": selectors.XAttention(16, 0.8)},
    "window:window=300": {"window": 300, "sinks": 16},
}


@pytest.mark.parametrize("text", CALLS)
def test_causal_attention_is_the_call_that_the_method_stands_for(arrays, text):
    expected = icecore.attention(*arrays, causal=True, **CALLS[text])
    np.testing.assert_array_equal(methods.parse(text).causal(*arrays, layer=3), expected)


@pytest.mark.parametrize("text", [text for text in CALLS if not text.startswith(("window", "xattention"))])
def test_bidirectional_attention_has_no_window(arrays, text):
    expected = icecore.attention(*arrays, **{name: value for name, value in CALLS[text].items() if name != "window"})
    np.testing.assert_array_equal(methods.parse(text).bidirectional(*arrays, layer=3), expected)


def test_window_is_for_decoders(arrays):
    with pytest.raises(ValueError, match="for decoders"):
        methods.method("window").bidirectional(*arrays, layer=0)


@pytest.mark.parametrize("name", NAMES)
def test_layers_with_their_own_window_are_exact(arrays, name):
    out = methods.method(name).causal(*arrays, layer=0, window=100)
    np.testing.assert_array_equal(out, icecore.attention(*arrays, causal=True, window=100))


def test_top_k_sums_the_largest_scores(capture):
    arrays = [array[:, :400] for array in capture]
    out = methods.method("top_k", k=20).causal(*arrays, layer=0)
    scores = np.einsum("hld,sd->hls", arrays[0].astype(np.float64), arrays[1][0]) / 8  # d = 64
    for query in (150, 399):
        for head in range(3):
            kept = np.argsort(-scores[head, query, : query + 1])[:20]
            weights = np.exp(scores[head, query, kept] - scores[head, query, kept].max())
            expected = weights @ arrays[2][0][kept] / weights.sum()
            np.testing.assert_allclose(out[head, query], expected, atol=1e-5)


def test_a_watched_method_tells_of_every_call(arrays):
    seen = []
    watched = methods.method("near_far").watched(lambda layer, info: seen.append((layer, info.near_keys.shape)))
    np.testing.assert_array_equal(watched.causal(*arrays, layer=7), methods.method("near_far").causal(*arrays, layer=7))
    assert seen == [(7, (3, 2048))]


def test_only_near_far_has_a_near_far_cache():
    caches = {name: type(methods.method(name).cache()) for name in NAMES}
    assert caches == dict.fromkeys(NAMES, nn.KeyValueCache) | {"near_far": nn.NearFarCache}


def test_a_cache_may_have_a_tolerance_of_its_own():
    prompt_and_answers = methods.parse("near_far:tolerance=0.1,decode=0.003,window=64")
    cache = prompt_and_answers.cache()
    rows = np.ones((1, 2, 8), np.float32)
    cache.attend(prompt_and_answers.causal, 0, rows, rows, rows)
    assert (cache._layers[0].tolerance, cache._layers[0].window) == (0.003, 64)
    assert str(prompt_and_answers) == "near_far tolerance=0.1 window=64 decode=0.003"
    assert methods.method("near_far", k=40, decode=0.1).options == {"k": 40, "window": 768, "decode": 0.1}


def test_k_replaces_near_fars_tolerance():
    assert methods.method("near_far", k=64).options == {"k": 64, "window": 768}
    assert str(methods.method("near_far", tolerance=0.01)) == "near_far tolerance=0.01 window=768"


@pytest.mark.parametrize(
    "text, message",
    [
        ("nearfar", "method must be one of exact, near_far, pdci, .*, zeta, window, plan"),
        ("near_far:tolerance=1", "tolerance must be above 0 and below 1, got 1.0"),
        ("near_far:decode=0", "decode must be above 0 and below 1, got 0.0"),
        ("window:decode=0.1", "method window takes window, got decode=0.1"),
        ("near_far:tolerance=0.1,k=3", "takes tolerance or k, got tolerance=0.1 and k=3"),
        ("top_k:k=0", "k must be at least 1, got 0"),
        ("top_k:k=many", "k must be a number, got 'many'"),
        ("top_k:tolerance=0.1", "method top_k takes k, got tolerance=0.1"),
        ("exact:k=3", "method exact takes no options, got k=3"),
        ("window:window=0", "window must be at least 1, got 0"),
        ("window:size=3", "method window takes window, got size=3"),
    ],
)
def test_wrong_methods_say_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        methods.parse(text)
