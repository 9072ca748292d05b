"""Near/far attention: a treecode for softmax, one level of cells, as the C core computes it but in float64."""

from __future__ import annotations

import numpy as np

from icecore.reference.cells import build_cells
from icecore.reference.dense import softmax_sum
from icecore.reference.random import segment_seed


def sealed_ranges(blocks, block, sinks):
    """The segments of a binary counter of `blocks` blocks: (first, end) key ranges past the sinks, the largest first."""
    ranges, first = [], 0
    for bit in reversed(range(blocks.bit_length())):
        if blocks >> bit & 1:
            end = first + (block << bit)
            if end > max(first, sinks):
                ranges.append((max(first, sinks), end))
            first = end
    return ranges


def exact_and_sealed(position, keys, *, causal, block, sinks):
    """For a query at `position`: the keys it sees exactly, and the sealed ranges it sees by cells."""
    if not causal:
        sinks = min(sinks, keys)
        return np.arange(sinks), [(sinks, keys)] if sinks < keys else []
    sealed_blocks = max(position // block - 1, 0)
    open_begin = sealed_blocks * block
    if open_begin <= sinks:
        return np.arange(position + 1), []
    return np.r_[:sinks, open_begin : position + 1], sealed_ranges(sealed_blocks, block, sinks)


def opened_cells(risk, count, wanted):
    """Bool (C,): cells in order of risk until they hold `wanted` keys; equal risks open together."""
    order = np.argsort(-risk, kind="stable")
    held = np.cumsum(count[order])
    if held[-1] <= wanted:
        return np.ones(len(risk), bool)
    threshold = risk[order[np.searchsorted(held, wanted)]]
    return risk >= threshold


def attend_one(query, key, value, cells, exact, *, k, far_field, visit, scale):
    """One query (d,) over key (S, d), value (S, dv): exact keys plus cells (a list of (first key, Cells)).

    Returns out (dv,), lse, near keys, captured mass, margin: the gap in log risk between the last cell opened and the first
    one not.
    """
    if not cells:
        out, lse = softmax_sum(scale * (key[exact] @ query)[None], value[exact])
        return out[0], lse[0], 0, 1.0 if len(exact) else 0.0, np.inf
    count = np.concatenate([c.count for _, c in cells])  # (C,)
    mean_key = np.concatenate([c.mean_key for _, c in cells])  # (C, d)
    mean_value = np.concatenate([c.mean_value for _, c in cells])  # (C, dv)
    variance = np.concatenate([c.variance for _, c in cells])  # (C,)
    members = [first + m for first, c in cells for m in c.members]

    far_score = scale * (mean_key @ query) + np.log(count)  # (C,): log of n_c exp(z_c)
    exact_score = scale * (key[exact] @ query)  # (E,)
    top = max(far_score.max(), exact_score.max(initial=-np.inf))
    spread = np.minimum(scale**2 * (query @ query) * variance, 60.0)  # x_c
    mass = np.where((far_score - top) < -125 * np.log(2), 0.0, np.exp(far_score - top))  # as the core: below 2^-125 is 0
    risk = mass * np.sqrt(np.expm1(spread))  # (C,)
    opened = opened_cells(risk, count, k if far_field else visit)
    inside, outside = risk[opened], risk[~opened]
    margin = np.log(inside.min() / outside.max()) if len(outside) and outside.max() > 0 else np.inf

    near = np.concatenate([members[c] for c in np.flatnonzero(opened)])  # visited keys
    near_score = scale * (key[near] @ query)
    if not far_field and len(near) > k:
        kept = np.zeros(len(near), bool)
        kept[np.argsort(-near_score, kind="stable")[:k]] = True
        dropped = np.exp(near_score[~kept] - top).sum()
        near, near_score = near[kept], near_score[kept]
    else:
        dropped = 0.0
    scores = [exact_score, near_score]
    values = [value[exact], value[near]]
    if far_field:
        scores.append(np.where(opened | (mass == 0.0), -np.inf, far_score))
        values.append(mean_value)
    out, lse = softmax_sum(np.concatenate(scores)[None], np.concatenate(values))
    summed = np.exp(exact_score - top).sum() + np.exp(near_score - top).sum()
    missed = mass[~opened].sum() + dropped
    return out[0], lse[0], len(near), summed / (summed + missed), margin


def near_far_attention(query, key, value, *, k, far_field=True, causal=False, block=512, sinks=0, visit=None, cell_size=32,
                       scale=None, seed=0, cells_of=None, return_margin=False):
    """Near/far attention in float64, query by query.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    block : int
        Causal: keys per sealed block; the current block and the one before stay open.
    cells_of : callable (key, value, cell_size, seed) -> Cells, optional
        Builds a segment's cells; default `build_cells`. Pass one that returns the C core's cells to compare the rest alone.
    return_margin : bool
        Also return how clearly each query's opened cells are separated from the others (log risk).

    Returns
    -------
    out (B, H, L, dv), lse (B, H, L), near_keys (B, H, L) int32, captured_mass (B, H, L) float32
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    scale = 1.0 / np.sqrt(dim) if scale is None else scale
    group = heads // key.shape[1] if heads else 1
    cells_of = cells_of or (lambda rows, values, size, seed: build_cells(rows, values, cell_size=size, seed=seed))
    built = {}

    def cells(b, head, first, end):
        if (b, head, first, end) not in built:
            rows, values = key[b, head, first:end], value[b, head, first:end]
            built[b, head, first, end] = cells_of(rows, values, cell_size, segment_seed(seed, first, end - first))
        return first, built[b, head, first, end]

    out, lse = np.zeros((batch, heads, queries, value.shape[-1])), np.full((batch, heads, queries), -np.inf)
    near, mass = np.zeros((batch, heads, queries), np.int32), np.zeros((batch, heads, queries), np.float32)
    margin = np.full((batch, heads, queries), np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        for b, h, i in np.ndindex(batch, heads, queries):
            position = keys - queries + i
            if keys == 0 or (causal and position < 0):
                continue
            exact, ranges = exact_and_sealed(position, keys, causal=causal, block=block, sinks=sinks)
            result = attend_one(
                query[b, h, i], key[b, h // group], value[b, h // group],
                [cells(b, h // group, first, end) for first, end in ranges], exact,
                k=k, far_field=far_field, visit=visit, scale=scale,
            )
            out[b, h, i], lse[b, h, i], near[b, h, i], mass[b, h, i], margin[b, h, i] = result
    returned = (out, lse, near, mass)
    return (*returned, margin) if return_margin else returned


