"""torch's scaled_dot_product_attention replaced inside a `with`."""

import contextlib

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import icecore

from .sdpa import scaled_dot_product_attention


class _Replacement(TorchFunctionMode):
    def __init__(self, min_keys, options):
        super().__init__()
        self.min_keys, self.options = min_keys, options

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(self, query, key, *args, **kwargs):
        options = self.options if key.shape[-2] >= self.min_keys else {"num_threads": self.options["num_threads"]}
        return scaled_dot_product_attention(query, key, *args, **kwargs, **options)


@contextlib.contextmanager
def replace_sdpa(*, tolerance=None, k=None, min_keys=4096, num_threads=None):
    """Inside the `with`, this thread's calls of torch's scaled_dot_product_attention are icecore's.

    Parameters
    ----------
    tolerance, k, num_threads
        As in `icecore.attention`. Neither tolerance nor k: exact.
    min_keys : int
        Calls of fewer keys are exact.

    Raises
    ------
    TypeError, ValueError
        Arguments that `icecore.attention` would refuse, before the block is entered.

    Notes
    -----
    Nothing is patched: other threads, and this one after the block, call PyTorch's function. What icecore cannot compute,
    PyTorch does (see `scaled_dot_product_attention`).

    Calls are seen where Python makes them by ``torch.nn.functional.scaled_dot_product_attention``. Those inside
    `torch.nn.MultiheadAttention`, and so inside `torch.nn.TransformerEncoderLayer`, are not.
    """
    options = {"tolerance": tolerance, "k": k, "num_threads": num_threads}
    if not torch.compiler.is_compiling():
        one = np.zeros((1, 1), np.float32)
        icecore.attention(one, one, one, **options)
    if isinstance(min_keys, bool) or not isinstance(min_keys, int) or min_keys < 0:
        raise ValueError(f"min_keys must be an integer of at least 0, got {min_keys!r}")
    with _Replacement(min_keys, options):
        yield
