"""Masks without an array of queries x keys: what padding and causality hide is kept as (batch, keys), other masks as the run of
keys that each query sees."""

import torch
from torch._subclasses.fake_tensor import is_fake
from torch.utils import _pytree as pytree
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

#: Entries of a mask that are looked at at once for its runs.
_AT_ONCE = 2**22


class _UnbuiltMask(torch.Tensor):
    """A bool mask (batch, 1, queries, keys) that is not in memory.

    icecore's attention function reads the attributes. Everything else that anybody does with it is done with the full mask:
    models that cut or change their masks get what they expect.
    """

    # what is asked without need for the mask itself
    shape = property(lambda self: torch.Size((self.batch, 1, self.queries, self.keys)))
    ndim = property(lambda self: 4)
    dtype = property(lambda self: torch.bool)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map_only(_UnbuiltMask, lambda mask: mask.full(), (args, kwargs or {}))
        return func(*args, **kwargs)


class RangeMask(_UnbuiltMask):
    """A mask whose rows are runs of keys.

    Attributes
    ----------
    ranges : Tensor of int64, shape (batch, queries, 2)
        Of each query the first key that it sees and the one behind its last; 0 and 0 where it sees none.
    first, end : int
        The first key that any query sees, and the one behind the last: all that a window or a static cache needs to be read.
    causal : bool
        Whether no query sees a later key than its own, where the last stands at the last key that any sees.
    """

    @staticmethod
    def __new__(cls, ranges, keys):
        return ranges.as_subclass(cls)

    def __init__(self, ranges, keys):
        self.ranges, self.keys = ranges, keys
        self.batch, self.queries, _ = ranges.shape
        seen = ranges[ranges[..., 1] > 0]
        self.first, self.end = (int(seen[:, 0].min()), int(seen[:, 1].max())) if len(seen) else (0, keys)
        self.causal = bool((ranges[..., 1] <= torch.arange(self.end - self.queries + 1, self.end + 1)).all())

    device = property(lambda self: self.ranges.device)

    def full(self):
        """The mask as a plain tensor."""
        first, end = self.ranges[:, None, :, :, None].unbind(3)
        key = torch.arange(self.keys)
        return (first <= key) & (key < end)


class CompactMask(_UnbuiltMask):
    """A mask of which only (batch, keys) is in memory.

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
        self.batch, self.keys = keep.shape
        self.spans = _spans(keep)

    @property
    def firsts(self):
        """The first visible key of each row, where nothing but its beginning is hidden; else None."""
        if self.spans is None or any(last != self.keys for _, last in self.spans):
            return None
        return [first for first, _ in self.spans]

    device = property(lambda self: self.keep.device)

    def full(self):
        """The mask as a plain tensor."""
        full = self.keep[:, None, None, :].expand(-1, 1, self.queries, -1)
        return full & causal_rows(self.queries, self.keys, self.keys - self.queries) if self.causal else full


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
    RangeMask
        Rows are runs of keys: sliding windows, chunks, packed sequences, prefixes and blocks of images, static caches, padding
        at the ends.
    Tensor of bool, shape (batch_size, 1, q_length, kv_length)
        Everything else, and in graphs.
    """
    causal = mask_function is causal_mask_function
    skips = allow_is_causal_skip if causal else mask_function is bidirectional_mask_function and allow_is_bidirectional_skip
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if isinstance(q_offset, torch.Tensor) and not (traced or is_fake(q_offset)):
        q_offset = int(q_offset)  # of a static cache
    traced = traced or isinstance(q_offset, torch.Tensor)
    here = attention_mask is None or (attention_mask.ndim == 2 and attention_mask.device.type == "cpu")
    plain = skips and not traced and here and local_size is None and kv_offset == 0
    if not plain or (causal and q_offset + q_length != kv_length):
        def rows(first, count, **skipping):
            return sdpa_mask(batch_size, count, kv_length, q_offset + first, kv_offset, mask_function=mask_function,
                             attention_mask=attention_mask, local_size=local_size, **skipping, **others)

        here = here and not traced and torch.device(others.get("device", "cpu")).type == "cpu"
        ranges = _ranges(rows, batch_size, q_length, kv_length) if here else None
        if ranges is None:
            return rows(0, q_length, allow_is_causal_skip=allow_is_causal_skip,
                        allow_is_bidirectional_skip=allow_is_bidirectional_skip)
        ends = torch.arange(1, q_length + 1)
        skips = allow_is_causal_skip and q_length == kv_length and not ranges[..., 0].any() and (ranges[..., 1] == ends).all()
        skips = skips or (allow_is_bidirectional_skip and (ranges == torch.tensor([0, kv_length])).all())
        return None if skips else RangeMask(ranges, kv_length)
    keep = torch.ones(batch_size, kv_length, dtype=torch.bool)
    if attention_mask is not None:
        given = attention_mask[:, :kv_length]
        keep[:, : given.shape[1]] = given
        keep[:, given.shape[1] :] = False
    if keep.all() and (not causal or q_length in (1, kv_length)):
        return None
    return CompactMask(keep, q_length, causal)


def _ranges(rows, batch, queries, keys):
    """The runs of a mask as of `RangeMask`, some rows at a time; None where some row has a hole.

    rows : callable (first row, count) -> Tensor of bool, (batch, 1, count, keys)
    """
    ranges, count = torch.empty(batch, queries, 2, dtype=torch.int64), max(1, _AT_ONCE // max(batch * keys, 1))
    for at in range(0, queries, count):
        keep = rows(at, min(count, queries - at), allow_is_causal_skip=False, allow_is_bidirectional_skip=False)[:, 0]
        own, seen = keep.to(torch.uint8), keep.sum(dim=-1)
        first = torch.where(seen > 0, own.argmax(dim=-1), 0)
        end = torch.where(seen > 0, keys - own.flip(-1).argmax(dim=-1), 0)
        if not torch.equal(end - first, seen):
            return None
        ranges[:, at : at + count, 0], ranges[:, at : at + count, 1] = first, end
    return ranges


def full_mask(mask):
    """A mask with a row for each query."""
    return mask.full() if isinstance(mask, _UnbuiltMask) else mask


def causal_rows(queries, keys, offset):
    """(queries, keys): whether key j is not later than query i, which stands at key i + offset."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(offset)


def additive(mask, dtype):
    """A mask as what eager attention adds to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
