"""Masks without a row for each query: what padding and causality hide is kept as (batch, keys)."""

import torch
from torch.utils import _pytree as pytree
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask


class CompactMask(torch.Tensor):
    """A bool mask (batch, 1, queries, keys) of which only (batch, keys) is in memory.

    icecore's attention function reads the attributes. Everything else that anybody does with it is done with the full mask:
    models that cut or change their masks get what they expect.

    Attributes
    ----------
    keep : Tensor of bool, shape (batch, keys)
        False where there is padding.
    causal : bool
        Whether queries also see no later key, aligned bottom-right.
    spans : list of (int, int), or None
        Of each row of the batch, its keys from the first to before the second; None where some row has a hole.
    """

    @staticmethod
    def __new__(cls, keep, queries, causal):
        return keep.as_subclass(cls)

    def __init__(self, keep, queries, causal):
        self.keep, self.queries, self.causal = keep, queries, causal
        self.spans = _spans(keep)

    @property
    def firsts(self):
        """The first visible key of each row, where nothing but its beginning is hidden; else None."""
        keys = self.keep.shape[1]
        if self.spans is None or any(last != keys for _, last in self.spans):
            return None
        return [first for first, _ in self.spans]

    # what is asked without need for the mask itself
    shape = property(lambda self: torch.Size((len(self.keep), 1, self.queries, self.keep.shape[1])))
    ndim = property(lambda self: 4)
    dtype = property(lambda self: torch.bool)
    device = property(lambda self: self.keep.device)

    def full(self):
        """The mask as a plain tensor."""
        keys = self.keep.shape[1]
        full = self.keep[:, None, None, :].expand(-1, 1, self.queries, -1)
        return full & causal_rows(self.queries, keys, keys - self.queries) if self.causal else full

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map_only(CompactMask, CompactMask.full, (args, kwargs or {}))
        return func(*args, **kwargs)


def _spans(keep):
    """As in `CompactMask`; a row without keys has the span (keys, keys)."""
    keys = keep.shape[1]
    seen = keep.any(dim=1)
    first = torch.where(seen, keep.int().argmax(dim=1), keys)
    last = torch.where(seen, keys - keep.flip(1).int().argmax(dim=1), keys)
    if not torch.equal(keep.sum(dim=1), last - first):
        return None
    return list(zip(first.tolist(), last.tolist(), strict=True))


def compact_mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function,
                 attention_mask=None, local_size=None, allow_is_causal_skip=True, allow_is_bidirectional_skip=False, **others):
    """The mask that transformers asks of an attention implementation; its `sdpa_mask` has the same parameters.

    Returns
    -------
    None
        As of `sdpa_mask`: nothing is hidden, or what the module's is_causal says, aligned top-left.
    CompactMask
        Padding is hidden, and later keys, aligned bottom-right.
    Tensor of bool, shape (batch_size, 1, q_length, kv_length)
        Everything else.
    """
    causal = mask_function is causal_mask_function
    skips = allow_is_causal_skip if causal else mask_function is bidirectional_mask_function and allow_is_bidirectional_skip
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or isinstance(q_offset, torch.Tensor)
    plain = skips and not traced and local_size is None and kv_offset == 0
    plain = plain and (attention_mask is None or (attention_mask.ndim == 2 and attention_mask.device.type == "cpu"))
    if not plain or (causal and q_offset + q_length != kv_length):
        return sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function=mask_function, attention_mask=attention_mask,
            local_size=local_size, allow_is_causal_skip=allow_is_causal_skip,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip, **others,
        )
    keep = torch.ones(batch_size, kv_length, dtype=torch.bool)
    if attention_mask is not None:
        given = attention_mask[:, :kv_length]
        keep[:, : given.shape[1]] = given
        keep[:, given.shape[1] :] = False
    if keep.all() and (not causal or q_length in (1, kv_length)):
        return None
    return CompactMask(keep, q_length, causal)


def full_mask(mask):
    """A mask with a row for each query."""
    return mask.full() if isinstance(mask, CompactMask) else mask


def causal_rows(queries, keys, offset):
    """(queries, keys): whether key j is not later than query i, which stands at key i + offset."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(offset)


def additive(mask, dtype):
    """A mask as what eager attention adds to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
