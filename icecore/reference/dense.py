"""Dense attention."""

from __future__ import annotations

import numpy as np


def visible_keys(queries, keys, causal=False, window=None, sinks=0, key_ranges=None):
    """(L, S) bool: which keys each query may see; (B, L, S) with key_ranges (B, L, 2). Query i stands at position S - L + i."""
    position = np.arange(queries)[:, None] + (keys - queries)  # (L, 1)
    j = np.arange(keys)[None, :]  # (1, S)
    visible = np.ones((queries, keys), bool)
    if window is not None:
        left, right = (window, window) if np.ndim(window) == 0 else (side + 1 if side >= 0 else np.inf for side in window)
        visible = ((position - j < left) & (j - position < right)) | (j < sinks)
    if causal:
        visible &= j <= position
    if key_ranges is not None:
        first, end = np.moveaxis(np.asarray(key_ranges)[..., None], -2, 0)  # (B, L, 1) each
        visible = visible & (first <= j) & (j < end)
    return visible


def visible_count(queries, keys, causal=False, window=None, sinks=0):
    """(L,): how many keys each query may see, without the (L, S) array."""
    position = np.arange(queries) + (keys - queries)  # (L,)
    end = np.clip(position + 1, 0, keys) if causal else np.full(queries, keys)
    if window is None:
        return end
    sink_end = np.minimum(sinks, end)
    begin = np.maximum(sink_end, position - window + 1)
    end = np.minimum(end, np.maximum(0, position + window))
    return sink_end + np.maximum(end - begin, 0)


def per_query_head(array, query_heads):
    """(B, H_k, S, d) -> (B, H, S, d): each key head repeated for its group of query heads."""
    return np.repeat(array, query_heads // array.shape[1], axis=1) if query_heads else array[:, :0]


def softmax_sum(scores, value):
    """(..., L, S) scores with -inf where hidden, (..., S, dv) values -> out (..., L, dv), lse (..., L)."""
    top = scores.max(axis=-1, initial=-np.inf)  # (..., L)
    shift = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(scores - shift[..., None])  # (..., L, S)
    total = weights.sum(axis=-1)  # (..., L)
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    if np.isfinite(value).all():
        summed = weights @ value  # (..., L, dv)
    else:  # a hidden key contributes nothing, NaN and inf included
        with np.errstate(invalid="ignore"):
            terms = weights[..., None] * value[..., None, :, :]  # (..., L, S, dv)
        summed = np.where(np.isneginf(scores)[..., None], 0.0, terms).sum(axis=-2)
    return summed / np.where(total == 0.0, 1.0, total)[..., None], lse


def bias_of(mask):
    """What a mask adds to scores."""
    mask = np.asarray(mask)
    return np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else mask.astype(np.float64)


def capped(scores, softcap):
    """softcap tanh(scores / softcap); None: as they are."""
    return scores if softcap is None else softcap * np.tanh(scores / softcap)


def alibi_bias(slopes, position, keys):
    """(H, L, S): what ALiBi adds to the scores of queries at these positions (L,), -slope |position - j|."""
    return -np.asarray(slopes, np.float64)[:, None, None] * np.abs(position[:, None] - np.arange(keys))


def add_sink(out, lse, logit):
    """One more key of score `logit`, without a value, joins softmaxes: out (..., dv), lse (...)."""
    with_sink = np.logaddexp(lse, logit)
    share = np.exp(lse - np.where(np.isneginf(with_sink), 0.0, with_sink))
    return out * share[..., None], with_sink


def attention(query, key, value, *, causal=False, window=None, sinks=0, attn_mask=None, key_ranges=None, scale=None,
              softcap=None, sink_logits=None, alibi_slopes=None):
    """Exact attention in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    causal, window, sinks, attn_mask, key_ranges, scale, softcap, sink_logits, alibi_slopes
        As in `icecore.attention`.

    Returns
    -------
    out : (B, H, L, dv) float64; lse : (B, H, L) float64
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    heads, queries, dim = query.shape[1:]
    keys = key.shape[2]
    scale = 1.0 / np.sqrt(dim) if scale is None else scale
    key, value = per_query_head(key, heads), per_query_head(value, heads)
    visible = visible_keys(queries, keys, causal, window, sinks, key_ranges)  # (L, S) or (B, L, S)
    visible = visible[None, None] if visible.ndim == 2 else visible[:, None]
    out, lse = np.empty((*query.shape[:3], value.shape[-1])), np.empty(query.shape[:3])
    if attn_mask is not None:
        attn_mask = np.broadcast_to(attn_mask, (*query.shape[:3], keys))
    rows = max(1, 2**22 // max(keys, 1))  # in chunks of queries: no (L, S) array of a long input
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(0, queries, rows):
            chunk = slice(i, i + rows)
            scores = capped(scale * (query[:, :, chunk] @ key.swapaxes(-1, -2)), softcap)  # (B, H, rows, S)
            if alibi_slopes is not None:
                scores = scores + alibi_bias(alibi_slopes, np.arange(queries)[chunk] + keys - queries, keys)
            if attn_mask is not None:
                bias = bias_of(attn_mask[:, :, chunk])
                scores = np.where(np.isneginf(bias), -np.inf, scores + bias)
            scores = np.where(visible[:, :, chunk], scores, -np.inf)
            out[:, :, chunk], lse[:, :, chunk] = softmax_sum(scores, value)
    return (out, lse) if sink_logits is None else add_sink(out, lse, np.asarray(sink_logits, np.float64)[:, None])
