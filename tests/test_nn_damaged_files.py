"""Whatever is in a file of a model, a plan or a cache, its loader returns or raises what it documents, naming the file."""

import json

import numpy as np
import pytest
from model_files import DECODERS, SETTINGS, decoder_tensors, write_model
from test_nn_near_far_cache import saved_with_sliding
from test_nn_tokenizer import byte_tokenizer, write_tokenizer
from test_nn_weights import CONFIG, HF_CONFIG, hf_tensors, write_gguf

from icecore import nn
from icecore._plan import HeadPlan, LayerPlan, Plan

ROUNDS = 250
#: What a value of a JSON file is replaced by.
VALUES = [None, True, 0, -1, 1, 7, 2**31, 2**64, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "3", "silu"]
VALUES += ["../x", [], [1], [[]] * 3, {}, {"rope_type": "default"}, {"a": [None]}]


def edited(data, rng):
    """`data` with some bytes changed, taken out or put in, more often near the beginning, where headers are."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = int(rng.integers(len(data)) * rng.choice([1.0, 0.2, 0.02])) if data else 0
        match rng.integers(7):
            case 0 if data:
                data[place] ^= 1 << rng.integers(8)
            case 1:
                data[place : place + 1] = rng.bytes(1)
            case 2:
                data[place : place + 8] = int(rng.choice([0, 1, 2**31, 2**40, 2**62])).to_bytes(8, "little")
            case 3:
                del data[place : place + int(rng.integers(1, 40))]
            case 4:
                data[place:place] = data[place : place + int(rng.integers(1, 40))]
            case 5:
                data[place : place + 4] = b"\xff" * 4
            case 6 if rng.random() < 0.3:
                del data[place:]
    return bytes(data)


def edited_json(contents, rng):
    """JSON with one or two of its values replaced, taken out or put in the place of all."""
    contents = json.loads(json.dumps(contents))
    for _ in range(rng.integers(1, 3)):
        at = contents
        while isinstance(at, (dict, list)) and at:
            name = ([*at] if isinstance(at, dict) else range(len(at)))[rng.integers(len(at))]
            if not isinstance(at[name], (dict, list)) or rng.random() < 0.2:
                break
            at = at[name]
        else:
            continue
        if rng.random() < 0.15:
            del at[name]
        else:
            at[name] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(contents).encode()


def survives(load, folder, file, mutants, also=()):
    """Loads each mutant in the place of a file; returns how many were refused."""
    whole, refused = file.read_bytes(), 0
    for number, mutant in enumerate(mutants):
        file.write_bytes(mutant)
        try:
            load()
        except (ValueError, *also) as error:
            assert str(folder) in str(error), f"mutant {number} of {file.name}: {error!r}"
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutant {number} of {file.name} raises {error!r}") from error
    file.write_bytes(whole)
    load()
    return refused


def rounds(edit, contents, seed=0):
    rng = np.random.default_rng(seed)
    return (edit(contents, rng) for _ in range(ROUNDS))


def test_safetensors(tmp_path):
    file = write_model(tmp_path, HF_CONFIG, hf_tensors()) / "model.safetensors"
    assert survives(lambda: nn.load_model(tmp_path), tmp_path, file, rounds(edited, file.read_bytes())) > ROUNDS / 3


def small_encoder(family):
    """Settings and tensors as far as its loader must get to look at settings alone."""
    settings = {
        "model_type": family, "vocab_size": 5, "type_vocab_size": 2, "hidden_size": 4, "intermediate_size": 8, "mlp_ratio": 2,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8, "layer_norm_eps": 1e-5,
        "hidden_act": "gelu", "image_size": 4, "patch_size": 2,
    }  # fmt: skip
    return settings, {"x": np.ones(1, np.float32)}


@pytest.mark.parametrize("family", DECODERS)
def test_configurations(tmp_path, family):
    settings = SETTINGS[family] | {"layer_types": None, "use_sliding_window": False}
    if family == "gemma3_text":
        settings["rope_scaling"] = {"rope_type": "linear", "factor": 2}
    else:
        settings["rope_parameters"] = {"rope_theta": 1e4}
    file = write_model(tmp_path, settings, decoder_tensors(family)) / "config.json"
    for seed, (edit, contents) in enumerate([(edited_json, settings), (edited, file.read_bytes())]):
        assert survives(lambda: nn.load_model(tmp_path), tmp_path, file, rounds(edit, contents, seed)) > ROUNDS / 10


@pytest.mark.parametrize("family", ["bert", "vit", "dinov2"])
def test_configurations_of_encoders(tmp_path, family):
    settings, tensors = small_encoder(family)
    file = write_model(tmp_path, settings, tensors) / "config.json"

    def load():
        with pytest.raises(ValueError, match=str(tmp_path)):
            nn.load_model(tmp_path)

    assert survives(load, tmp_path, file, rounds(edited_json, settings)) == 0


def test_indices_of_shards(tmp_path):
    tensors = hf_tensors()
    weight_map = {}
    for number, name in enumerate(tensors):
        weight_map[name] = f"part-{number % 2}.safetensors"
    for file in {*weight_map.values()}:
        write_model(tmp_path, HF_CONFIG, {name: tensors[name] for name in tensors if weight_map[name] == file}, name=file)
    index = {"metadata": {"total_size": 3}, "weight_map": weight_map}
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps(index))
    for seed, (edit, contents) in enumerate([(edited_json, index), (edited, file.read_bytes())]):
        mutants = rounds(edit, contents, seed)
        assert survives(lambda: nn.load_model(tmp_path), tmp_path, file, mutants, (FileNotFoundError,)) > ROUNDS / 3


def test_gguf(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors())
    header = path.read_bytes().index(b"blk.1.") + 500
    for part in (header, None):
        data = path.read_bytes()
        rest = data[part:] if part else b""
        mutants = (mutant + rest for mutant in rounds(edited, data[:part]))
        assert survives(lambda: nn.load_model(path), path, path, mutants) > ROUNDS / 10
    assert nn.load_model(path).config.vocabulary == CONFIG.vocabulary


def test_tokenizers(tmp_path):
    path = write_tokenizer(tmp_path / "tokenizer.gguf", **byte_tokenizer(merges=["e n", "en d"]) | added_merges())
    assert survives(lambda: nn.load_tokenizer(path), path, path, rounds(edited, path.read_bytes())) > ROUNDS / 10


def added_merges():
    metadata = byte_tokenizer()
    return {"tokens": [*metadata["tokens"], "en", "end"], "token_type": [*metadata["token_type"], 1, 1]}


def dinov2_onnx(path):
    """The smallest file that is taken for DINOv2: width 64, one layer, patches of 2, a grid of 2 x 2."""
    onnx = pytest.importorskip("onnx")
    rng, width = np.random.default_rng(0), 64

    def named(name, *shape):
        return onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32), f"backbone.{name}")

    layer, patches = "encoder.layer.0", "embeddings.patch_embeddings.projection"
    constants = [named(f"{patches}.weight", width, 3, 2, 2), named(f"{patches}.bias", width)]
    constants += [named("embeddings.cls_token", 1, 1, width)]
    for name in (f"{layer}.norm1", f"{layer}.norm2", "layernorm"):
        constants += [named(f"{name}.weight", width), named(f"{name}.bias", width)]
    constants += [named(f"{layer}.layer_scale{number}.lambda1", width) for number in (1, 2)]
    nodes, projections = [], {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
    projections |= {"attention.output.dense": (width, width), "mlp.fc1": (width, 2 * width), "mlp.fc2": (2 * width, width)}
    for name, (inputs, outputs) in projections.items():
        constants += [named(f"{layer}.{name}.bias", outputs)]
        constants += [onnx.numpy_helper.from_array(rng.standard_normal((inputs, outputs), np.float32), f"onnx::{name}")]
        node = f"/backbone/{layer}.{name}/MatMul".replace(".", "/").replace("layer/0", "layer.0")
        nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::{name}"], [name], name=node))
    for points in (1, 4):
        table = rng.standard_normal((1, points, width), np.float32)
        constants.append(onnx.numpy_helper.from_array(table, f"positions{points}"))
    graph = onnx.helper.make_graph(nodes, "dinov2", [], [], constants)
    onnx.save(onnx.helper.make_model(graph), path)
    return path


def test_onnx(tmp_path):
    path = dinov2_onnx(tmp_path / "dinov2.onnx")
    assert survives(lambda: nn.load_model(path), path, path, rounds(edited, path.read_bytes())) > ROUNDS / 10


@pytest.mark.parametrize("name", ["cache.json", "sliding.npz", "layer0.safetensors"])
@pytest.mark.parametrize("opener", [nn.NearFarCache.load, nn.NearFarCache.view])
def test_near_far_caches(tmp_path, name, opener):
    path = saved_with_sliding(tmp_path)
    (file,) = path.rglob(name)
    edits = [edited, edited_json] if name == "cache.json" else [edited]
    for edit in edits:
        contents = file.read_bytes()
        mutants = rounds(edit, json.loads(contents) if edit is edited_json else contents)
        assert survives(lambda: opener(path), path, file, mutants) > ROUNDS / 10


def test_plans(tmp_path):
    heads = (HeadPlan("near_far", 64, 16, (0.1, 0.2), (0.1, 0.2)), HeadPlan("window", 64, 16, (0.1, 0.2), (0.1, 0.2)))
    layers = {number: LayerPlan(True, 0.1, heads, 0.1, 1.0, 2.0, 8) for number in range(2)}
    file = tmp_path / "plan.json"
    Plan(0.1, 100, layers).save(file)

    def load():
        plan = Plan.load(file)
        assert str(plan) and plan.error >= 0

    for edit, contents in [(edited_json, json.loads(file.read_text())), (edited, file.read_bytes())]:
        assert survives(load, file, file, rounds(edit, contents)) > ROUNDS / 3
