"""Vision transformers, ViT and DINOv2: configuration, weights, their loading and the forward pass."""

from dataclasses import dataclass

import numpy as np

from .attend import bidirectional_attention, each_sequence
from .layers import gelu, layer_norm, linear
from .pre_norm import PreNormLayer, add_attention_and_mlp, project
from .row_threads import row_threads
from .tensors import Tensors, stacked


@dataclass(frozen=True)
class VitConfig:
    """The shape of a vision transformer; `patch` is the side of a patch in pixels."""

    width: int
    hidden_width: int
    layers: int
    heads: int
    patch: int
    norm_epsilon: float


@dataclass(frozen=True)
class VitWeights:
    """Weights of a whole model with its configuration.

    DINOv2's layer scale is multiplied into the projections that it follows.
    """

    config: VitConfig
    patch_embedding: tuple  # (width, 3 * patch * patch), (width,)
    class_token: np.ndarray  # (width,), its position added
    positions: np.ndarray  # (rows, columns, width): of the image size that the model was trained on
    layers: tuple  # of PreNormLayer
    final_norm: tuple  # (width,) each


def encode_image(weights, pixels, *, attention=bidirectional_attention):
    """Run an image through every layer.

    Parameters
    ----------
    weights : VitWeights
    pixels : array_like, (height, width, 3)
        Red, green, blue, normalized as in the model's training. Height and width are multiples of the patch;
        positions are interpolated (bicubic) to other sizes than the trained one.
    attention : callable, optional
        ``attention(query, key, value, *, layer) -> out``, (heads, 1 + patches, head_width) float32 each. Every
        query sees every key.

    Returns
    -------
    ndarray, (1 + patches, width) float32
        The class token, then the patches row by row, after the last norm.

    Raises
    ------
    ValueError
        If `pixels` has another shape, or `attention` returns one.
    """
    config = weights.config
    pixels = np.asarray(pixels, np.float32)
    sides = pixels.shape[:2]
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in sides or any(side % config.patch for side in sides):
        raise ValueError(f"pixels must be (height, width, 3), multiples of the patch of {config.patch}, got {pixels.shape}")
    rows, columns = (side // config.patch for side in sides)
    patches = pixels.reshape(rows, config.patch, columns, config.patch, 3).transpose(0, 2, 4, 1, 3)
    patches = patches.reshape(rows * columns, -1)  # (patches, 3 * patch * patch)
    x = np.empty((1 + len(patches), config.width), np.float32)  # (n, width)
    x[0] = weights.class_token
    x[1:] = resized(weights.positions, rows, columns).reshape(len(patches), -1)  # (patches, width)
    with row_threads(len(patches)) as over_rows:
        over_rows(lambda rows: np.add(x[1:][rows], linear(patches[rows], *weights.patch_embedding), out=x[1:][rows]))
    with row_threads(len(x)) as over_rows:
        for index, layer in enumerate(weights.layers):
            query, key, value = project(config, layer, x, over_rows)  # (heads, n, head_width) each
            mixed = each_sequence(attention, index, query, key, value, [slice(None)])  # (heads, n, head_width)
            add_attention_and_mlp(config, layer, x, mixed, gelu, over_rows)  # (n, width), in place
    return layer_norm(x, *weights.final_norm, config.norm_epsilon)  # (n, width)


def resized(table, rows, columns):
    """A grid of vectors at another number of points: bicubic, half-pixel centres, border points repeated.

    Parameters
    ----------
    table : ndarray, (old_rows, old_columns, width) float32
    rows, columns : int

    Returns
    -------
    ndarray, (rows, columns, width) float32
    """
    table = np.tensordot(_bicubic(rows, table.shape[0]), table, 1)  # (rows, old_columns, width)
    return np.einsum("co,row->rcw", _bicubic(columns, table.shape[1]), table, optimize=True)


def _bicubic(count, old):
    """Matrix (count, old) that interpolates `old` points of a line at `count` places.

    Keys' cubic convolution kernel with a = -0.75, as in PyTorch.
    """
    places = (np.arange(count) + 0.5) * old / count - 0.5  # (count,)
    first = np.floor(places).astype(int) - 1  # (count,): of the four points around each place
    matrix, a = np.zeros((count, old), np.float32), -0.75
    for tap in range(4):
        distance = np.abs(places - first - tap)  # (count,)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1  # up to 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a  # from 1 to 2
        np.add.at(matrix, (np.arange(count), np.clip(first + tap, 0, old - 1)), np.where(distance <= 1, near, far))
    return matrix


PATCHES = "embeddings.patch_embeddings.projection"
NAMES = {  # by model_type: attention norm, MLP norm, up, down, layer scales of attention and MLP
    "dinov2": ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "layer_scale1.lambda1", "layer_scale2.lambda1"),
    "vit": ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense", None, None),
}


def vit_from_safetensors(settings, stored):
    """Weights from Hugging Face's settings and tensors of a "vit" or "dinov2" model."""
    settings.expect(hidden_act=("gelu",), qkv_bias=(True,), use_swiglu_ffn=(False,), num_channels=(3,))
    width, family = settings.multiple("hidden_size", "num_attention_heads"), settings["model_type"]
    config = VitConfig(
        width=width,
        hidden_width=settings.count("intermediate_size") if family == "vit" else int(width * settings.number("mlp_ratio")),
        layers=settings.count("num_hidden_layers"),
        heads=settings.count("num_attention_heads"),
        patch=settings.count("patch_size"),
        norm_epsilon=settings.number("layer_norm_eps"),
    )
    tensors = Tensors(stored, prefixes=("vit.", "dinov2.", "backbone."))
    grid = (settings.count("image_size") // config.patch,) * 2
    weights = assemble_vit(config, grid, NAMES[family], tensors)
    tensors.finish("vision transformer", ignored=("embeddings.mask_token", "pooler.", "classifier."))
    return weights


def assemble_vit(config, grid, names, tensors):
    """VitWeights from tensors under Hugging Face's names, those of a layer's parts as in `NAMES`."""
    width = config.width

    def linear(name, outputs, inputs, scale=None):
        weight, bias = tensors.linear(name, outputs, inputs)
        if scale is None:
            return weight, bias
        scale = tensors.take(scale, outputs)  # (outputs,)
        return weight * scale[:, None], bias * scale

    def layer_weights(index):
        def full(name):
            return name and f"encoder.layer.{index}.{name}"

        attention_norm, mlp_norm, up, down, attention_scale, mlp_scale = map(full, names)
        query_key_value = (linear(full(f"attention.attention.{part}"), width, width) for part in ("query", "key", "value"))
        return PreNormLayer(
            attention_norm=tensors.norm(attention_norm, width),
            query_key_value=stacked(*query_key_value),
            attention_output=linear(full("attention.output.dense"), width, width, attention_scale),
            mlp_norm=tensors.norm(mlp_norm, width),
            up=linear(up, config.hidden_width, width),
            down=linear(down, width, config.hidden_width, mlp_scale),
        )

    patch_embedding = tensors.take(f"{PATCHES}.weight", width, 3, config.patch, config.patch)
    points = 1 + grid[0] * grid[1]
    positions = tensors.take("embeddings.position_embeddings", 1, points, width)[0]  # (points, width)
    return VitWeights(
        config=config,
        patch_embedding=(patch_embedding.reshape(width, -1), tensors.take(f"{PATCHES}.bias", width)),
        class_token=tensors.take("embeddings.cls_token", 1, 1, width)[0, 0] + positions[0],
        positions=positions[1:].reshape(*grid, width),
        layers=tuple(map(layer_weights, range(config.layers))),
        final_norm=tensors.norm("layernorm", width),
    )
