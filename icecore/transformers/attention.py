"""The attention function that transformers' modules call, and what computes the calls that icecore does not."""

import sys
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import icecore
from icecore.torch import as_array, attention, scaled_dot_product_attention
from icecore.transformers.calls import count, count_fallback, warn_once
from icecore.transformers.masks import CompactMask, RangeMask, additive, causal_rows, full_mask

#: Keywords of modules that change no result: what they say is in the masks, or is not for attention.
HARMLESS = {
    "cache", "cache_position", "deterministic", "layer_idx", "logits_to_keep", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "past_key_values", "position_ids", "return_dict", "sliding_window",
    "use_cache",
}
#: Those that icecore computes.
COMPUTED = {"indices", "position_bias", "s_aux", "softcap"}
#: Those that the model's own eager function computes.
EAGER = {"sinks"}
#: Those of packed sequences, which only flash attention reads, and blocks, which eager functions expect in the mask.
REFUSED = {"block_indices", "cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "seq_idx"}

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_DIM = 576
#: Below both, PyTorch's function is faster by what a call of icecore costs before it computes (bench/bench_transformers.py).
MIN_KEYS, MIN_PRODUCTS = 512, 8192


@dataclass(frozen=True)
class Settings:
    """What a name stands for: options of near/far attention, none where it is exact."""

    near_far: dict
    min_keys: int
    num_threads: int | None

    def options(self, keys, causal):
        """Options of `icecore.attention` for a call of so many keys."""
        options = {} if keys < self.min_keys else self.near_far
        if not causal:  # a window around the query and sinks are of causal attention
            options = {name: value for name, value in options.items() if name != "window"}
        return {**options, "num_threads": self.num_threads}


def attend(module, query, key, value, attention_mask=None, dropout=0.0, scaling=None, is_causal=None, *, settings, **keywords):
    """Attention as transformers' modules ask for it.

    Parameters
    ----------
    module : torch.nn.Module
    query : Tensor, shape (B, H, L, d)
    key, value : Tensor, shapes (B, H_k, S, d) and (B, H_k, S, d_v)
    attention_mask : Tensor or None
        What the mask function returned, or one with a row for each query.
    dropout, scaling, is_causal, **keywords
        As for transformers' own functions.

    Returns
    -------
    out : Tensor, shape (B, L, H, d_v)
    weights : None, or what an eager function returned

    Raises
    ------
    ValueError
        A keyword that is not known; masks that do not fit.
    """
    given = {name: value for name, value in keywords.items() if value is not None and name not in HARMLESS}
    unknown = given.keys() - COMPUTED - EAGER
    if unknown:
        raise ValueError(f"{type(module).__name__} passes {', '.join(sorted(unknown))} to attention, which icecore does not "
                         "know; expected another attn_implementation, such as 'eager'")
    if keywords.get("output_attentions"):
        warn_once("icecore returns no attention weights; output_attentions=True needs attn_implementation='eager'")
    layer = getattr(key, "icecore_layer", None)
    if getattr(value, "icecore_layer", None) is not layer:  # the model changed what the cache returned
        layer = None
    if torch.is_autocast_enabled("cpu"):
        query, key, value = map(_autocast, (query, key, value))
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    call = _Call(module, query, key, value, attention_mask, dropout, scaling, is_causal, given, settings, layer)
    if given.keys() & EAGER:
        return call.by_eager(f"{', '.join(sorted(given.keys() & EAGER))} is not computed")
    reason = call.reason_for_torch()
    if reason is not None:
        return call.by_eager(reason) if given.keys() & {"s_aux", "softcap"} else call.by_sdpa(reason)  # sdpa has neither
    if torch.compiler.is_compiling():
        return call.compiled()
    return call.run(), None


def _autocast(tensor):
    return tensor.to(torch.get_autocast_dtype("cpu")) if tensor.dtype in _DTYPES else tensor


class _Call:
    """One call on its way to what computes it; `layer` is the cache's layer that key and value are of, or None."""

    def __init__(self, module, query, key, value, mask, dropout, scaling, is_causal, given, settings, layer):
        if query.shape[0] != key.shape[0]:  # learned queries that all rows of the batch share, or keys that all do
            batch = max(query.shape[0], key.shape[0])
            query, key, value = (tensor.expand(batch, -1, -1, -1) for tensor in (query, key, value))
        self.module, self.query, self.key, self.value, self.mask = module, query, key, value, mask
        self.dropout, self.scaling, self.is_causal, self.given, self.settings = dropout, scaling, is_causal, given, settings
        self.layer = layer
        self.queries, self.keys = query.shape[2], key.shape[2]

    # ---- Other functions ----

    def reason_for_torch(self):
        """Why icecore does not compute this, or None."""
        masks = [] if isinstance(self.mask, (CompactMask, RangeMask, type(None))) else [self.mask]
        tensors = [self.query, self.key, self.value, *masks, *filter(torch.is_tensor, self.given.values())]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return "a gradient is wanted (a model that is not trained is called under torch.no_grad or inference_mode)"
        if self.dropout > 0:
            return "there is dropout"
        if any(tensor.device.type != "cpu" for tensor in tensors):
            return f"tensors are on {self.query.device}"
        if self.query.dtype not in _DTYPES or not self.query.dtype == self.key.dtype == self.value.dtype:
            return f"query, key and value are {self.query.dtype}, {self.key.dtype} and {self.value.dtype}"
        if max(self.query.shape[-1], self.value.shape[-1]) > _MAX_DIM:
            return f"heads are wider than {_MAX_DIM}"
        if "indices" in self.given and ("position_bias" in self.given or (self.mask is not None and self.mask.shape[1] != 1)):
            return "indices come with a position_bias or a mask for each head"
        return "the model is traced by torch.jit" if torch.jit.is_tracing() else None

    def by_sdpa(self, reason):
        """transformers' sdpa function, which has the same keywords where it knows them."""
        self._count(reason, "sdpa")
        mask, bias = self._full_mask(), self.given.get("position_bias")
        return sdpa_attention_forward(self.module, self.query, self.key, self.value, mask, dropout=self.dropout,
                                      scaling=self.scaling, is_causal=self.is_causal, position_bias=bias)

    def by_eager(self, reason):
        """The eager function in the file of the module's class."""
        eager = getattr(sys.modules[type(self.module).__module__], "eager_attention_forward", None)
        if eager is None:
            raise ValueError(f"{type(self.module).__name__}: {reason} by icecore, and its file has no "
                             "eager_attention_forward; expected another attn_implementation")
        self._count(reason, "eager")
        mask = self._full_mask() if "indices" in self.given else self._explicit_mask()
        if mask is not None:
            mask = additive(mask, self.query.dtype)
        scaling = self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        others = {name: value for name, value in self.given.items() if name != "indices"}
        return eager(self.module, self.query, self.key, self.value, mask, scaling=scaling, dropout=self.dropout, **others)

    def compiled(self):
        """The operator of icecore.torch, which a compiler keeps; exact, and not counted."""
        if self.given:
            return self.by_eager(f"{', '.join(sorted(self.given))} is not compiled")
        return self._by(scaled_dot_product_attention, self._full_mask(), num_threads=self.settings.num_threads), None

    def _by(self, function, mask, **options):
        """(B, L, H, d_v), by a function with PyTorch's arguments."""
        causal = bool(mask is None and self.is_causal and self.queries > 1)
        shared = self.query.shape[1] != self.key.shape[1]
        options = {"is_causal": causal, "scale": self.scaling, "enable_gqa": shared, **options}
        return function(self.query, self.key, self.value, mask, **options).transpose(1, 2)

    def _count(self, reason, way):
        if not torch.compiler.is_compiling():
            count_fallback(reason, self.module, way)

    def _explicit_mask(self):
        """With a row for each query, causality of the module included; None where nothing is hidden."""
        if self.mask is None and self.is_causal and self.queries > 1:
            return causal_rows(self.queries, self.keys, 0)[None, None].to(self.query.device)
        return full_mask(self.mask)

    def _full_mask(self):
        """With a row for each query, None as sdpa's function takes it; without the keys that indices leave out."""
        if "indices" not in self.given:
            return full_mask(self.mask)
        chosen = torch.zeros(len(self.query), self.queries, self.keys, dtype=torch.bool, device=self.query.device)
        chosen = chosen.scatter_(-1, self.given["indices"].long(), True)[:, None]
        mask = self._explicit_mask()
        if mask is None:
            return chosen
        return chosen & mask if mask.dtype == torch.bool else mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)

    # ---- icecore ----

    def run(self):
        """(B, L, H, d_v), by icecore."""
        layer = None if self.given.keys() & {"indices", "position_bias"} else self.layer
        firsts = None if layer is None else self._firsts()
        if firsts is not None and layer.attends(self.queries):
            count("cache")
            return layer.attend(self.query, firsts, self._scores(), self.settings.num_threads)
        out = self._attend()
        if firsts is not None:
            layer.remember(self.query, firsts)
        return out

    def _scores(self):
        """How products become scores: keywords of icecore's functions."""
        sinks = self.given.get("s_aux")  # a logit of each head
        logits = None if sinks is None else as_array(sinks.float().reshape(-1), "s_aux")
        return {"scale": self.scaling, "softcap": self.given.get("softcap") or None, "sink_logits": logits}

    def _firsts(self):
        """The first key of each row where queries are the last tokens, and see all keys from there to their own; else None."""
        if self.mask is not None:
            return self.mask.firsts if isinstance(self.mask, CompactMask) and self.mask.causal else None
        aligned = self.queries == 1 or (self.is_causal and self.queries == self.keys)
        return [0] * self.key.shape[0] if aligned else None

    def _attend(self):
        """The result for key and value as they are."""
        if self.mask is None and not self.given and self.keys < MIN_KEYS and self.queries * self.keys < MIN_PRODUCTS:
            count("exact")
            return self._by(functional.scaled_dot_product_attention, None)
        batch, heads, queries, _ = self.query.shape
        out = self.query.new_empty(batch, queries, heads, self.value.shape[-1])
        exact = self.given.keys() & {"indices", "position_bias"} or self.keys < self.settings.min_keys
        count("near_far" if self.settings.near_far and not exact else "exact")
        if "indices" in self.given:
            self._by_indices(out.transpose(1, 2))
        elif "position_bias" in self.given:
            self._part(out.transpose(1, 2), mask=self._bias(), near_far=False)
        elif isinstance(self.mask, CompactMask):
            self._padded(out.transpose(1, 2))
        elif isinstance(self.mask, RangeMask):
            self._ranged(out.transpose(1, 2))
        elif self.mask is not None:
            self._part(out.transpose(1, 2), mask=self.mask)
        else:
            causal = bool(self.is_causal) and queries > 1
            last = queries if causal and self.keys > queries else self.keys  # a static cache that is being filled
            self._part(out.transpose(1, 2), keys=slice(0, last), causal=causal)
        return out

    def _padded(self, out):
        """Each row by itself where its keys lie together, so that it does not depend on the others' lengths."""
        mask = self.mask
        if mask.spans is None or (mask.causal and mask.firsts is None):
            self._part(out, mask=mask.keep[:, None, None, :], causal=mask.causal)
        elif all(span == (0, self.keys) for span in mask.spans):
            self._part(out, causal=mask.causal)
        else:
            for row, (first, last) in enumerate(mask.spans):
                own = min(self.queries, last - first) if mask.causal else self.queries
                out[row, :, : self.queries - own] = 0
                tokens = slice(self.queries - own, None)
                self._part(out, slice(row, row + 1), tokens, slice(first, last), causal=mask.causal)

    def _ranged(self, out):
        """Of keys those that some query sees, without ranges where each sees all of them."""
        mask = self.mask
        ranges = (mask.ranges - mask.first).clamp_(min=0)
        if (ranges == torch.tensor([0, mask.end - mask.first])).all():
            ranges = None
        self._part(out, keys=slice(mask.first, mask.end), ranges=ranges, causal=mask.causal)

    def _part(self, out, rows=slice(None), queries=slice(None), keys=slice(None), *, mask=None, ranges=None,
              causal=False, near_far=True):
        """Some rows, queries and keys of the call, into their place of out (B, H, L, d_v)."""
        query, key, value = self.query[rows, :, queries], self.key[rows, :, keys], self.value[rows, :, keys]
        options = self.settings.options(key.shape[2] if near_far else -1, causal)
        attention(query, key, value, attn_mask=mask, key_ranges=ranges, causal=causal, out=out[rows, :, queries],
                  **self._scores(), **options)

    def _bias(self):
        """position_bias and the mask in one that is added to the scores."""
        bias, mask = self.given["position_bias"].float(), self._explicit_mask()
        if mask is None:
            return bias
        return torch.where(mask, bias, -torch.inf) if mask.dtype == torch.bool else bias + mask

    def _by_indices(self, out):
        """Attention to the keys that the model's indexer chose; hidden ones are -1."""
        indices, mask = self.given["indices"].long(), self._explicit_mask()
        if mask is not None:
            keep = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
            keep = keep[:, 0].expand(len(indices), -1, -1).gather(-1, indices.clamp(min=0))
            indices = indices.masked_fill(~keep, -1)
        arrays = [as_array(tensor) for tensor in (self.query, self.key, self.value, indices[:, None])]
        icecore.attend_indices(*arrays, out=as_array(out), num_threads=self.settings.num_threads, **self._scores())
