"""Small models with random weights as files, for tests of the model families."""

import json

import numpy as np
import pytest


def write_model(folder, config, tensors, name="model.safetensors"):
    """A folder in Hugging Face's layout."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_tensors(shapes, seed=0):
    """Tensors of the given shapes: matrices that keep the size of what they multiply, vectors around their usual value.

    Names that hold "norm" (in any case) or "ln_" and end in "weight", and layer scales, lie around 1; all other vectors
    around 0.
    """
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = generator.standard_normal(shape, np.float32)
        if len(shape) > 1:
            values *= 1.5 / np.sqrt(np.prod(shape[1:], dtype=np.float32))
        else:
            norm = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
            values = 0.3 * values + (norm or "lambda" in name)
        tensors[name] = values.astype(np.float32)
    return tensors


def torch_tensors(tensors, prefix=""):
    """The same in PyTorch, float64, names without the prefix; skips where torch is missing."""
    torch = pytest.importorskip("torch")
    return {name.removeprefix(prefix): torch.from_numpy(np.array(tensor)).double() for name, tensor in tensors.items()}
