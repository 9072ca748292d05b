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


def each_sequence(call, query, key, value, spans):
    """Attention within each of several sequences that lie one after another in the rows.

    Parameters
    ----------
    call : callable
        ``call(sequence, query, key, value) -> out`` for one sequence.
    query : ndarray, (query_heads, rows, head_width) float32
    key, value : ndarray, (key_heads, rows, head_width) float32
    spans : list of slice
        The rows of each sequence.

    Returns
    -------
    ndarray, (query_heads, rows, head_width) float32
    """
    outs = [call(i, query[:, rows], key[:, rows], value[:, rows]) for i, rows in enumerate(spans)]
    return outs[0] if len(outs) == 1 else np.concatenate(outs, axis=1)


def spans_of(sequences):
    """The rows of each sequence when all lie one after another."""
    ends = np.cumsum([0, *map(len, sequences)])  # (sequences + 1,)
    return [slice(first, end) for first, end in pairwise(ends)]
