"""The tensors of a model's file, taken one by one by name, with their shapes checked."""

import numpy as np


class Tensors:
    """Named tensors that a family's loader takes; what it leaves over is an error.

    Parameters
    ----------
    stored : dict of str to callable
        Each returns the tensor of its name.
    prefixes : tuple of str, optional
        Some files put one of these before every name; the loader's names go without.
    """

    def __init__(self, stored, prefixes=()):
        self._stored = {}
        for name, read in stored.items():
            prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
            self._stored[name.removeprefix(prefix)] = read
        self._left = set(self._stored)

    def __contains__(self, name):
        return name in self._stored

    def take(self, name, *shape):
        """A tensor as a contiguous float32 array.

        Parameters
        ----------
        name : str
        *shape : int
            What the configuration says; -1 stands for any length.

        Raises
        ------
        ValueError
            If there is no such tensor, or its shape is another.
        """
        if name not in self._stored:
            raise ValueError(f"the model lacks the tensor {name}")
        array = self._stored[name]()
        if len(array.shape) != len(shape) or any(a != b != -1 for a, b in zip(array.shape, shape, strict=True)):
            raise ValueError(f"tensor {name} has shape {array.shape}, its configuration says {shape}")
        self._left.discard(name)
        return np.ascontiguousarray(array, np.float32)

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
