"""Attention as the models call it: exact by default, one call a layer and sequence."""

from itertools import pairwise

import numpy as np

import icecore


def exact_attention(query, key, value, *, layer, window=None):
    """Exact causal attention by icecore, the default of decoders."""
    return icecore.attention(query, key, value, causal=True, window=window)


def bidirectional_attention(query, key, value, *, layer):
    """Exact attention to all positions by icecore, the default of encoders."""
    return icecore.attention(query, key, value)


def each_sequence(attention, layer, query, key, value, spans, caches=None, **options):
    """Attention within each of several sequences that lie one after another in the rows.

    Parameters
    ----------
    attention : callable
        ``attention(query, key, value, *, layer, **options) -> out`` for one sequence.
    layer : int
    query : ndarray, (query_heads, rows, head_width) float32
    key, value : ndarray, (key_heads, rows, head_width) float32
    spans : list of slice
        The rows of each sequence.
    caches : list of KeyValueCache or NearFarCache, optional
        One for each sequence: keys and values are added to it, and queries attend to all that it holds.
    **options
        Passed on.

    Returns
    -------
    ndarray, (query_heads, rows, head_width) float32

    Raises
    ------
    ValueError
        If `attention` returns another shape than that of its queries.
    """
    outs = []
    for index, rows in enumerate(spans):
        queries, keys, values = query[:, rows], key[:, rows], value[:, rows]  # (heads, n_i, head_width) each
        if caches is not None:
            out = caches[index].attend(attention, layer, queries, keys, values, **options)
        else:
            out = attention(queries, keys, values, layer=layer, **options)
        if np.shape(out) != queries.shape:
            raise ValueError(f"attention must return shape {queries.shape} in layer {layer}, got {np.shape(out)}")
        outs.append(out)  # (query_heads, n_i, head_width)
    return outs[0] if len(outs) == 1 else np.concatenate(outs, axis=1)


def spans_of(sequences):
    """The rows of each sequence when all lie one after another."""
    ends = np.cumsum([0, *map(len, sequences)])  # (sequences + 1,)
    return [slice(first, end) for first, end in pairwise(ends)]
