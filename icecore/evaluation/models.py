"""The models that are evaluated, by name or from a file."""

from dataclasses import dataclass
from pathlib import Path

from icecore import nn


@dataclass(frozen=True)
class Model:
    """A model with what its tasks need.

    Attributes
    ----------
    name : str
    weights : LlamaWeights or another family's weights
    tokenizer : nn.Tokenizer, or None of an image encoder
    """

    name: str
    weights: object
    tokenizer: object = None

    @property
    def reads_images(self):
        """Whether it is an image encoder; else it is a language model."""
        return isinstance(self.weights, nn.VitWeights)


def load(name):
    """Load a model.

    Parameters
    ----------
    name : str
        ``smollm2`` or ``dinov2``, from their packages, or the path of a .gguf file of a language model or of an image encoder
        as `nn.load_model` takes it.

    Returns
    -------
    Model

    Raises
    ------
    ImportError
        If the model's package or one that reads it is missing.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the model is of no family here, or is neither a decoder with a tokenizer nor an image encoder.
    """
    if name == "dinov2":
        return Model(name, nn.load_model(nn.find_dinov2()))
    path = nn.find_smollm2() if name == "smollm2" else Path(name)
    if not path.exists():
        raise FileNotFoundError(f"model must be smollm2, dinov2 or a path, got {name!r}, which is neither a file nor a folder")
    if path.suffix == ".gguf":
        reader = nn.open_gguf(path)
        return Model(name, nn.load_gguf(reader), nn.load_tokenizer(reader))
    model = Model(name, nn.load_model(path))
    if not model.reads_images:
        raise ValueError(f"{name} holds a language model without its tokenizer; expected a .gguf file, which carries one")
    return model
