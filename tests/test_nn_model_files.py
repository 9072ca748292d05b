"""Which files of a folder are the model, and what is said of a folder or a file that is none."""

import json
import tracemalloc

import numpy as np
import pytest
from model_files import DECODERS, SETTINGS, decoder_tensors, load_decoder, write_model
from safetensors.numpy import save_file
from test_nn_weights import HF_CONFIG, HF_NAMES, check, hf_tensors, write_safetensors

from icecore import nn

INDEX = "model.safetensors.index.json"


def write_shards(folder, tensors, count, config=HF_CONFIG):
    """Shards of one save, and the index that names them."""
    names = [*tensors]
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        own = {name: tensors[name] for name in names[number::count]}
        write_model(folder, config, own, name=file)
        weight_map |= dict.fromkeys(own, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def other(tensors):
    return {name: tensor + 1 for name, tensor in tensors.items()}


# ---- Which files ----


def test_an_index_says_which_of_two_saves_is_meant(tmp_path):
    tensors = hf_tensors()
    write_shards(tmp_path, other(tensors), 7)
    write_shards(tmp_path, other(tensors), 2)
    check(nn.load_model(write_shards(tmp_path, tensors, 3)), tensors)


def test_files_beside_those_of_an_index_are_left_alone(tmp_path):
    tensors = hf_tensors()
    write_shards(tmp_path, tensors, 2)
    for name in ("model.safetensors", "consolidated.safetensors"):
        write_safetensors(tmp_path, other(tensors) | {"more": np.ones(3, np.float32)}, name=name)
    check(nn.load_model(tmp_path), tensors)


def test_files_beside_model_safetensors_are_left_alone(tmp_path):
    tensors = hf_tensors()
    for name in ("model_old.safetensors", "adapter_model.safetensors", "a-1-of-2.safetensors"):
        write_safetensors(tmp_path, other(tensors), name=name)
    check(nn.load_model(write_safetensors(tmp_path, tensors)), tensors)


def test_a_shard_that_an_index_names_and_that_is_missing_is_named(tmp_path):
    write_shards(tmp_path, hf_tensors(), 3)
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00003-of-00003\.safetensors is missing"):
        nn.load_model(tmp_path)


def test_a_missing_shard_is_noticed_without_an_index(tmp_path):
    write_shards(tmp_path, hf_tensors(), 3)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard 2 of 3 is missing"):
        nn.load_model(tmp_path)


def test_shards_of_two_saves_are_refused_without_an_index(tmp_path):
    write_shards(tmp_path, hf_tensors(), 3)
    write_shards(tmp_path, hf_tensors(), 2)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ValueError, match="shards of several saves"):
        nn.load_model(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    tensors = hf_tensors()
    write_safetensors(tmp_path, tensors, name="a.safetensors")
    write_safetensors(tmp_path, {HF_NAMES["final_norm"]: np.ones(12, np.float32)}, name="b.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight is in b\.safetensors and in another file too"):
        nn.load_model(tmp_path)
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {HF_NAMES["final_norm"]: "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="in another file too"):
        nn.load_model(tmp_path)


@pytest.mark.parametrize(
    "index, message",
    [
        ({"weight_map": {"absent": "model.safetensors"}}, "lacks absent, which model.safetensors.index.json says it holds"),
        ({"weight_map": {"a": "../model.safetensors"}}, "expected a file in the same folder"),
        ({"weight_map": {}}, r"lacks the tensor model\.embed_tokens\.weight"),
        ({"weight_map": {"a": 3}}, "no model that can be used"),
        ({"weight_map": ["a"]}, "no model that can be used"),
        ({}, "has no 'weight_map'"),
        ([], "holds no JSON object"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, index, message):
    write_safetensors(tmp_path, hf_tensors())
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        nn.load_model(tmp_path)


# ---- Heads ----


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("said", [True, False, None])
def test_a_head_is_the_embedding_only_where_the_configuration_or_the_family_ties_it(tmp_path, family, said):
    tied = family in ("gpt2", "gemma3_text") if said is None else said
    if tied:
        weights = load_decoder(tmp_path, family, tie_word_embeddings=said)
        assert weights.head is weights.embedding
    else:
        with pytest.raises(ValueError, match=r"lacks the tensor lm_head\.weight"):
            load_decoder(tmp_path, family, tie_word_embeddings=said)


def test_a_tied_head_may_be_in_the_file_once_more_but_no_other_one(tmp_path):
    tensors = decoder_tensors("llama")
    embedding = tensors["model.embed_tokens.weight"]
    weights = nn.load_model(write_model(tmp_path, SETTINGS["llama"], tensors | {"lm_head.weight": embedding.copy()}))
    assert weights.head is weights.embedding
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the embedding"):
        nn.load_model(write_model(tmp_path, SETTINGS["llama"], tensors | {"lm_head.weight": embedding + 1}))


# ---- Configurations ----


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000}},
        {"use_sliding_window": True, "max_window_layers": 2},
        {"layer_types": ["full_attention", "full_attention"]},
        {"partial_rotary_factor": 1.0},
        {"attention_bias": False, "mlp_bias": False},
    ],
)
def test_settings_that_change_nothing_are_accepted(tmp_path, change):
    tensors = hf_tensors()
    check(nn.load_model(write_safetensors(tmp_path, tensors, HF_CONFIG | change)), tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be a positive integer, got '3'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, got True"),
        ({"hidden_size": -12}, "hidden_size must be a positive integer, got -12"),
        ({"vocab_size": 19.0}, r"vocab_size must be a positive integer, got 19\.0"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer, got 0"),
        ({"num_key_value_heads": 2}, "query_heads must be a multiple of key_heads=2, got 3"),
        ({"head_dim": 7}, "head_width must be even"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number above 0, got nan"),
        ({"rope_theta": [1e4]}, r"rope_theta must be a finite number above 0, got \[10000\.0\]"),
        ({"rope_theta": 10**400}, "rope_theta must be a finite number above 0, got 1000"),
        ({"rope_parameters": [1]}, r"rope_parameters must be an object, got \[1\]"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window=True is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias=True is not supported; expected False$"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
        ({"model_type": None}, "model_type is None"),
    ],
)
def test_settings_that_cannot_be_are_named_with_their_value(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        nn.load_model(write_safetensors(tmp_path, hf_tensors(), HF_CONFIG | change))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("family", [*DECODERS, "bert", "vit", "dinov2"])
def test_a_thousand_million_layers_are_refused_before_there_is_a_list_of_them(tmp_path, family):
    layers = {"num_hidden_layers": 10**9, "n_layer": 10**9}
    tensors = decoder_tensors(family) if family in SETTINGS else {"encoder.layer.0.norm1.weight": np.ones(24, np.float32)}
    settings = SETTINGS.get(family, HF_CONFIG | {"model_type": family})
    with pytest.raises(ValueError, match=r"lacks|has no"):
        nn.load_model(write_model(tmp_path, settings | layers, tensors))


@pytest.mark.parametrize("text", [b"{", b"[]", b"[" * 10**5, b"\xff", b""])
def test_configurations_that_are_no_json_object_are_named(tmp_path, text):
    write_safetensors(tmp_path, hf_tensors())
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="no model that can be used") as caught:
        nn.load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_byte_order_mark_before_a_configuration_does_no_harm(tmp_path):
    tensors = hf_tensors()
    write_safetensors(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG), encoding="utf-8-sig")
    check(nn.load_model(tmp_path), tensors)


# ---- Files that are something else ----


def test_a_model_that_must_be_downloaded_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no some/model; .*must be downloaded first"):
        nn.load_model("some/model")


def test_a_pointer_of_git_lfs_says_so(tmp_path):
    write_safetensors(tmp_path, hf_tensors())
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match=r"pointer of Git LFS.*git lfs pull"):
        nn.load_model(tmp_path)


def test_a_file_of_another_format_must_be_converted(tmp_path):
    write_safetensors(tmp_path, hf_tensors())
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a safetensors file; .*must be converted"):
        nn.load_model(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_said_to_be(tmp_path, share):
    write_safetensors(tmp_path, hf_tensors())
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: max(9, int(share * len(data)))])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut off"):
        nn.load_model(tmp_path)


def test_a_file_with_more_than_its_tensors_is_refused(tmp_path):
    file = write_safetensors(tmp_path, hf_tensors()) / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="holds more than its tensors"):
        nn.load_model(tmp_path)


def test_shapes_are_compared_before_anything_is_read(tmp_path, monkeypatch):
    write_safetensors(tmp_path, hf_tensors(), HF_CONFIG | {"vocab_size": 10**12})
    monkeypatch.setattr(np, "fromfile", None)
    with pytest.raises(ValueError, match=r"has shape \(19, 12\), its configuration says \(1000000000000, 12\)"):
        nn.load_model(tmp_path)


def test_a_tensor_under_two_prefixes_is_refused(tmp_path):
    tensors = decoder_tensors("gpt2")
    twice = {f"transformer.{name}": tensor.copy() for name, tensor in tensors.items()} | {"wpe.weight": tensors["wpe.weight"]}
    with pytest.raises(ValueError, match=r"wpe\.weight is there twice"):
        nn.load_model(write_model(tmp_path, SETTINGS["gpt2"], twice))
    save_file(tensors, tmp_path / "model.safetensors")
    assert nn.load_model(tmp_path).config.layers == 3


# ---- Memory ----


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_loading_holds_little_more_than_the_weights(tmp_path, dtype):
    width, hidden, layers = 128, 320, 8
    settings = HF_CONFIG | {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "vocab_size": 500}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}
    shapes = {"attention_norm": (width,), "mlp_norm": (width,), "gate": (hidden, width), "up": (hidden, width)}
    shapes |= dict.fromkeys(("query", "key", "value", "attention_output"), (width, width)) | {"down": (width, hidden)}
    tensors = {HF_NAMES["embedding"]: np.ones((500, width), dtype), HF_NAMES["final_norm"]: np.ones(width, dtype)}
    for layer in range(layers):
        tensors |= {HF_NAMES[part].format(layer): np.ones(shape, dtype) for part, shape in shapes.items()}
    write_model(tmp_path, settings, tensors)
    held = 4 * sum(tensor.size for tensor in tensors.values())
    tracemalloc.start()
    try:
        weights = nn.load_model(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert weights.config.layers == layers
    assert held <= peak < 1.5 * held
