"""Keys or values of a cache's layer as a tensor whose numbers are read back only where somebody asks for them."""

import torch
from torch.utils import _pytree as pytree


class StoredStates(torch.Tensor):
    """Keys or values (batch, heads, tokens, width) of a layer that keeps them in its rows' caches.

    icecore's attention function attends from the layer. Everything else that anybody does with the tensor is done with the one
    that the layer reads back.

    Attributes
    ----------
    icecore_layer : NearFarLayer
    """

    @staticmethod
    def __new__(cls, layer, part, shape, dtype):
        return torch.empty(0, dtype=dtype).as_subclass(cls)

    def __init__(self, layer, part, shape, dtype):
        self.icecore_layer, self._part = layer, part
        self._shape, self._dtype = torch.Size(shape), dtype

    # what is asked without need for the numbers
    shape = property(lambda self: self._shape)
    ndim = property(lambda self: 4)
    dtype = property(lambda self: self._dtype)
    device = property(lambda self: torch.device("cpu"))
    requires_grad = property(lambda self: False)

    def to(self, dtype):
        """The same in another dtype, not read back yet."""
        return StoredStates(self.icecore_layer, self._part, self._shape, dtype)

    def full(self):
        """A plain tensor, as long as the layer was."""
        return getattr(self.icecore_layer, self._part)[:, :, : self._shape[2]].to(self._dtype)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map_only(StoredStates, StoredStates.full, (args, kwargs or {}))
        return func(*args, **kwargs)
