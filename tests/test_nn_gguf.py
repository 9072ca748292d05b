"""GGUF files are read as llama.cpp reads them, or refused: settings, byte orders, parts, and files that are cut off."""

import numpy as np
import pytest
from test_nn_weights import CONFIG, hf_tensors, write_gguf

from icecore import nn

gguf = pytest.importorskip("gguf")
KINDS = {int: "add_uint32", float: "add_float32", bool: "add_bool", str: "add_string", list: "add_array"}


def with_settings(path, **settings):
    """The small model with more settings of its architecture."""

    def add(writer):
        for key, value in settings.items():
            getattr(writer, KINDS[type(value)])(key if key.startswith("split") else f"llama.{key}", value)

    return write_gguf(path / "tiny.gguf", hf_tensors(), add=add)


@pytest.mark.parametrize(
    "key, value",
    [
        ("rope.scaling.factor", 4.0),
        ("rope.scale_linear", 4.0),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.original_context_length", 32),
        ("rope.dimension_count", 4),
        ("attention.value_length", 4),
        ("attention.scale", 0.5),
        ("attention.causal", False),
        ("attention.sliding_window", 8),
        ("attention.clamp_kqv", 8.0),
        ("logit_scale", 2.0),
        ("vocab_size", 20),
        ("expert_count", 8),
        ("anything", 0),
    ],
)
def test_settings_that_the_forward_pass_would_ignore_are_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"tiny\.gguf .*{key}"):
        nn.load_model(with_settings(tmp_path, **{key: value}))


@pytest.mark.parametrize("kind", ["linear", "none", None])
@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_settings_that_change_nothing_are_accepted(tmp_path, kind, key, factor):
    settings = {key: factor, "rope.dimension_count": CONFIG.head_width, "attention.value_length": CONFIG.head_width}
    settings |= {"attention.causal": True, "vocab_size": CONFIG.vocabulary, "expert_count": 0}
    if kind is not None:
        settings["rope.scaling.type"] = kind
    weights = nn.load_model(with_settings(tmp_path, **settings))
    plain = nn.load_model(write_gguf(tmp_path / "plain.gguf", hf_tensors()))
    np.testing.assert_array_equal(nn.forward(weights, [1, 2, 3]), nn.forward(plain, [1, 2, 3]))


@pytest.mark.parametrize("key", ["attention.head_count_kv", "feed_forward_length"])
def test_a_list_for_each_layer_is_refused_with_a_short_message(tmp_path, monkeypatch, key):
    given = {"attention.head_count_kv": "add_head_count_kv", "feed_forward_length": "add_feed_forward_length"}
    monkeypatch.setattr(gguf.GGUFWriter, given[key], lambda writer, _: writer.add_array(f"llama.{key}", [1] * 1000))
    with pytest.raises(ValueError, match=rf"{key} must be a positive integer, got \[1, 1") as caught:
        nn.load_model(with_settings(tmp_path))
    assert len(str(caught.value)) < 300


def test_the_other_byte_order_is_refused(tmp_path):
    path = write_gguf(tmp_path / "big.gguf", hf_tensors(), endianess=gguf.GGUFEndian.BIG)
    for opened in (path, gguf.GGUFReader(path)):
        for load in (nn.open_gguf, nn.load_gguf, nn.load_tokenizer):
            with pytest.raises(ValueError, match=r"big\.gguf is of the other byte order"):
                load(opened)


def test_one_part_of_several_is_refused(tmp_path):
    with pytest.raises(ValueError, match="it is one of 2 parts"):
        nn.load_model(with_settings(tmp_path, **{"split.count": 2}))
    assert nn.load_model(with_settings(tmp_path, **{"split.count": 1})).config.layers == 2


@pytest.mark.parametrize("share", [0.002, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_off_is_said_to_be(tmp_path, share):
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    for load in (nn.load_model, nn.open_gguf, nn.load_tokenizer):
        with pytest.raises(ValueError, match=r"tiny\.gguf .*it is cut off"):
            load(path)


def test_an_array_that_is_longer_than_the_file_is_refused_before_it_is_read(tmp_path):
    """Of numbers: behind the end each would have no bytes, and there would be no end to them."""
    path = with_settings(tmp_path, anything=[1, 2, 3])
    data = path.read_bytes()
    place = data.index(b"llama.anything") + len("llama.anything") + 4 + 4
    path.write_bytes(data[:place] + (2**60).to_bytes(8, "little") + data[place + 8 :])
    with pytest.raises(ValueError, match="it is cut off, or damaged"):
        nn.load_model(path)
