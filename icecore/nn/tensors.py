"""The tensors of a model's file, taken one by one by name, with their shapes checked."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Stored(NamedTuple):
    """A tensor in a file: its shape is known before it is read."""

    shape: tuple
    read: Callable  # read() -> ndarray of that shape


class Tensors:
    """Named tensors that a family's loader takes; what it leaves over is an error.

    Parameters
    ----------
    stored : dict of str to Stored
    prefixes : tuple of str, optional
        Some files put one of these before every name; the loader's names go without.
    """

    def __init__(self, stored, prefixes=()):
        self._stored = {}
        for name, tensor in stored.items():
            prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
            if self._stored.setdefault(name.removeprefix(prefix), tensor) is not tensor:
                raise ValueError(f"the tensor {name.removeprefix(prefix)} is there twice, with and without a prefix")
        self._left = set(self._stored)

    def __contains__(self, name):
        return name in self._stored

    def checked_layers(self, count):
        """`count`, or ValueError if so many layers cannot be in the file: asked before there is a list of them."""
        if count > len(self._stored):
            raise ValueError(f"the model lacks tensors: it has {len(self._stored)}, its configuration says {count} layers")
        return count

    def take(self, name, *shape):
        """A tensor as a contiguous float32 array, its shape checked before it is read.

        Parameters
        ----------
        name : str
        *shape : int
            What the configuration says.

        Raises
        ------
        ValueError
            If there is no such tensor, or its shape is another.
        """
        if name not in self._stored:
            raise ValueError(f"the model lacks the tensor {name}")
        tensor = self._stored[name]
        if tensor.shape != shape:
            raise ValueError(f"tensor {name} has shape {tensor.shape}, its configuration says {shape}")
        self._left.discard(name)
        return np.ascontiguousarray(tensor.read(), np.float32)

    def take_head(self, name, embedding, tied):
        """The matrix of a decoder's logits, (vocabulary, width).

        Parameters
        ----------
        name : str
        embedding : ndarray, (vocabulary, width) float32
        tied : bool
            Whether the head is the embedding itself; the file may then hold it once more.

        Raises
        ------
        ValueError
            If the head is missing and is not tied, or is tied and another than the embedding.
        """
        if not tied and name not in self:
            raise ValueError(f"the model lacks the tensor {name}, and its configuration does not tie it to the embedding")
        head = self.take(name, *embedding.shape) if name in self else embedding
        if tied and not np.array_equal(head, embedding):
            raise ValueError(f"the tensor {name} is not the embedding, to which the configuration ties it")
        return embedding if tied else head

    def linear(self, name, outputs, inputs):
        """Weight (outputs, inputs) and bias (outputs,) of a projection."""
        return self.take(f"{name}.weight", outputs, inputs), self.take(f"{name}.bias", outputs)

    def norm(self, name, width):
        """Weight and bias, (width,) each, of a layer norm."""
        return self.take(f"{name}.weight", width), self.take(f"{name}.bias", width)

    def finish(self, family, ignored=()):
        """Refuse what the forward pass would ignore.

        Parameters
        ----------
        family : str
            For the error.
        ignored : tuple of str, optional
            Beginnings of names that are known not to matter.

        Raises
        ------
        ValueError
            If a tensor is left that nobody took.
        """
        for name in sorted(self._left):
            if not name.startswith(ignored):
                raise ValueError(f"the model is no plain {family}: it has a tensor {name}")


def stacked(*projections):
    """Several projections of the same input as one: weights and biases, each above the next."""
    weights, biases = zip(*projections, strict=True)
    return np.concatenate(weights), np.concatenate(biases)
