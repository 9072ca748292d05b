"""One layer of a `NearFarCache`: an `icecore.KVCache` of the batch, and the tokens that are not in it yet."""

import copy

import numpy as np
import torch
from transformers.cache_utils import CacheLayerMixin

import icecore
from icecore.torch import as_array
from icecore.transformers.stored_states import StoredStates

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class NearFarLayer(CacheLayerMixin):
    """A layer of full attention; what transformers' `DynamicLayer` does, and more.

    The tensors that `update` returns carry the layer as their attribute `icecore_layer`: by that the attention function finds
    it. Rows of a batch are sequences of one cache, whose lengths may differ, so that padding never enters. Once it has taken
    the tokens, these are in no other place, and are read back where somebody asks for `keys` or `values`.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, options, min_length):
        self._options, self.min_length = options, min_length
        self.reset()

    # ---- What transformers asks of a layer ----

    def reset(self):
        """Forget all tokens."""
        self.is_initialized = False
        self._length = 0
        self._moved = 0  # tokens before this one are in the cache only
        self._buffers = None  # [keys, values], each (B, H, capacity, width), from token `_moved` on
        self._cache = self._firsts = None  # a KVCache, and the token at which each row of the batch begins in it

    def lazy_initialization(self, key_states, value_states):
        """Take dtypes and shapes of the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._buffers = [_empty(states, 0) for states in (key_states, value_states)]
        self.is_initialized = True

    @property
    def keys(self):
        """(B, H, tokens, d), or None; what the cache holds as it has rounded it, and padding before it 0."""
        return self._dense(0)

    @property
    def values(self):
        """As `keys`."""
        return self._dense(1)

    def update(self, key_states, value_states, *args, **kwargs):
        """Add tokens; all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self._length - self._moved
        if self._moved and not held:  # nothing to extend, and the cache will take them as they are
            self._buffers = [key_states, value_states]
        else:
            states = key_states, value_states
            self._buffers = [_extended(buffer, held, new) for buffer, new in zip(self._buffers, states, strict=True)]
        self._length += key_states.shape[2]
        if self._moved:
            return tuple(StoredStates(self, part, (*buffer.shape[:2], self._length, buffer.shape[3]), self.dtype)
                         for part, buffer in zip(("keys", "values"), self._buffers, strict=True))
        keys, values = self.keys, self.values
        keys.icecore_layer = values.icecore_layer = self
        return keys, values

    def get_mask_sizes(self, query_length):
        """(length, offset) of the keys that queries of so many new tokens will see."""
        return self._length + query_length, 0

    def get_seq_length(self):
        """Tokens held."""
        return self._length

    def get_max_length(self):
        """-1: there is none."""
        return -1

    def offload(self):
        """Nothing: all is on the CPU."""

    def prefetch(self):
        """Nothing: all is on the CPU."""

    def crop(self, tokens_to_remove):
        """Forget the last ``-tokens_to_remove`` tokens.

        Raises
        ------
        ValueError
            A positive number, as of transformers' own layers.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be 0 or negative, got {tokens_to_remove}")
        if not self.is_initialized:
            return
        length = max(0, self._length + tokens_to_remove)
        if self._cache is not None:
            self._cache.truncate(np.clip(length - np.array(self._firsts), 0, self._cache.lengths))
            self._firsts = [min(first, length) for first in self._firsts]  # a row may begin right after what it holds
        self._length, self._moved = length, min(self._moved, length)
        if not length:
            self._cache = self._firsts = None

    def reorder_cache(self, beam_idx):
        """Row i becomes what row ``beam_idx[i]`` was."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats):
        """Each row so many times."""
        if self.is_initialized:
            self._select(torch.arange(len(self._buffers[0])).repeat_interleave(repeats))

    def batch_select_indices(self, indices):
        """Keep these rows."""
        if self.is_initialized:
            self._select(torch.arange(len(self._buffers[0]))[indices])

    # ---- What the attention function asks ----

    def attends(self, queries):
        """Whether the last so many tokens' queries attend from here: not the first ones, since a prompt attends as one call and
        is `remember`-ed."""
        return self._length >= self.min_length and queries < self._length

    def attend(self, query, firsts, scores, num_threads):
        """The result (B, L, H, d_v) of the last L tokens' queries, (B, H, L, d); scores: keywords of `KVCache.attend`."""
        self._catch_up(firsts)
        batch, heads, queries, _ = query.shape
        out = query.new_empty(batch, queries, heads, self._buffers[1].shape[3])
        own = np.minimum(queries, self._cache.lengths) if max(firsts) > self._length - queries else None
        self._cache.attend(as_array(query), lengths=own, padding_side="left", out=as_array(out.transpose(1, 2)),
                           num_threads=num_threads, **scores)
        self._move()
        return out

    def remember(self, query, firsts):
        """Take in a prompt whose queries have attended already, where it is long enough."""
        if self._cache is None and query.shape[2] == self._length >= self.min_length:
            self._catch_up(firsts, query)
            self._move()

    # ---- Tokens ----

    def _dense(self, i):
        if self._moved:
            self._read_back()
        return self._buffers[i][:, :, : self._length] if self.is_initialized else None

    def _read_back(self):
        """Have all tokens in the buffers again."""
        buffers = [_empty(buffer, self._length) for buffer in self._buffers]
        for buffer, newest, read in zip(buffers, self._buffers, (self._cache.keys, self._cache.values), strict=True):
            buffer[:, :, self._moved :] = newest[:, :, : self._length - self._moved]
            for states, held, first in zip(buffer, torch.from_numpy(read()), self._firsts, strict=True):
                padding = min(first, self._moved)
                states[:, :padding] = 0
                states[:, padding : self._moved] = held[:, : self._moved - padding]
        self._buffers, self._moved = buffers, 0

    def _catch_up(self, firsts, query=None):
        """Give the cache the tokens it lacks."""
        if self._firsts != firsts:
            if self._firsts is None or not self._only_empty_rows_differ(firsts):
                self._begin_rows(firsts)
            self._firsts = list(firsts)
        held, lacking = self._length - self._moved, None
        new = held
        if not self._moved or max(firsts) > self._moved:  # rows lack different numbers of tokens
            lacking = np.maximum(self._length - np.array(firsts) - self._cache.lengths, 0)
            new = int(lacking.max())
        if new:
            tokens = slice(held - new, held)
            keys, values = (as_array(buffer[:, :, tokens].to(self.dtype)) for buffer in self._buffers)
            queries = None if query is None else as_array(query[:, :, tokens].to(self.dtype))
            self._cache.append(keys, values, queries, lengths=lacking, padding_side="left")

    def _only_empty_rows_differ(self, firsts):
        """Whether rows that begin elsewhere now hold nothing yet, and begin after all that is in the cache only."""
        return all(new == old or (not held and new >= self._moved)
                   for new, old, held in zip(firsts, self._firsts, self._cache.lengths.tolist(), strict=True))

    def _begin_rows(self, firsts):
        """A new cache of rows that begin at these tokens."""
        if self._moved:
            if any(new < min(old, self._moved) for new, old in zip(firsts, self._firsts, strict=True)):
                raise ValueError(f"rows begin at tokens {firsts} now, and began at {self._firsts}; expected no token that was "
                                 "padding before")
            self._read_back()
        keys, values = self._buffers
        options = {"dtype": _NAMES[self.dtype], **self._options}
        self._cache = icecore.KVCache(keys.shape[1], keys.shape[3], value_dim=values.shape[3], batch=len(firsts), **options)

    def _move(self):
        """Once the cache has all tokens, let go of them here; a single one's place is taken by the next."""
        self._moved = self._length
        if self._buffers[0].shape[2] > 1:
            self._buffers = [_empty(buffer, 0) for buffer in self._buffers]

    def _select(self, rows):
        if not self.is_initialized:
            return
        if self._cache is not None:
            self._cache.reorder(rows.tolist())
            self._firsts = [self._firsts[i] for i in rows.tolist()]
        self._buffers = [buffer.index_select(0, rows.to(buffer.device)) for buffer in self._buffers]

    def __deepcopy__(self, memo):
        new = copy.copy(self)
        if self.is_initialized:
            new._buffers = [buffer.clone() for buffer in self._buffers]
        if self._cache is not None:
            new._cache, new._firsts = self._cache.fork(), list(self._firsts)
        return new

    @property
    def nbytes(self):
        """Memory held, in bytes; parts that forks share count in each."""
        dense = sum(buffer.nbytes for buffer in self._buffers or [])
        return dense + (0 if self._cache is None else self._cache.nbytes)

    # ---- Files ----

    def content(self):
        """(what a file says of the layer, its tensors, its cache or None)."""
        about = {"length": self._length, "moved": self._moved, "firsts": self._firsts, "initialized": self.is_initialized}
        tensors = {}
        if self.is_initialized:
            held = self._length - self._moved
            keys, values = (buffer[:, :, :held].contiguous() for buffer in self._buffers)
            tensors = {"keys": keys, "values": values}
        return about, tensors, self._cache

    def restore(self, about, tensors, cache):
        """The reverse of `content`, on a new layer.

        Raises
        ------
        ValueError
            Parts that do not belong together.
        """
        if not about["initialized"]:
            return
        buffers, firsts = [tensors["keys"], tensors["values"]], about["firsts"]
        self.lazy_initialization(*buffers)
        self._buffers, self._length, self._moved = buffers, about["length"], about["moved"]
        if buffers[0].shape[:3] != buffers[1].shape[:3] or buffers[0].shape[2] != self._length - self._moved:
            raise ValueError(f"keys and values have shapes {tuple(buffers[0].shape)} and {tuple(buffers[1].shape)}; expected "
                             f"{self._length - self._moved} tokens")
        if firsts is None and self._moved:
            raise ValueError(f"{self._moved} tokens are in a cache that is not there")
        if firsts is not None:
            if not cache.batch == len(firsts) == len(buffers[0]):
                raise ValueError(f"the cache has {cache.batch} rows, and {len(firsts)} tokens at which rows begin; expected "
                                 f"{len(buffers[0])} of each")
            self._cache, self._firsts = cache, firsts
            if any(first + held > max(self._length, first) or first + held < min(self._moved, self._length)
                   for held, first in zip(cache.lengths.tolist(), firsts, strict=True)):
                raise ValueError("the cache has other tokens than the layer")


def _extended(buffer, held, states):
    """A buffer whose first `held` tokens are those of `buffer`, followed by `states`; it grows by half."""
    if buffer.requires_grad or states.requires_grad:  # what a gradient needs is not written over
        return torch.cat([buffer[:, :, :held], states], dim=2)
    length = held + states.shape[2]
    if length > buffer.shape[2]:
        old, buffer = buffer, _empty(buffer, max(length, held + held // 2))
        buffer[:, :, :held] = old[:, :, :held]
    buffer[:, :, held:length] = states
    return buffer


def _empty(states, capacity):
    """For so many tokens like `states`, and for any mode of gradients: what inference mode makes can only be changed in it."""
    with torch.inference_mode(False):
        return torch.empty(*states.shape[:2], capacity, states.shape[3], dtype=states.dtype, device=states.device)
