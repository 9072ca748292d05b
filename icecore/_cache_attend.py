"""Attention from a KVCache: one call of the core for all its sequences, and what it reports."""

from __future__ import annotations

import numpy as np

from icecore import _native
from icecore._arrays import NO_MASK, bits, native_dtype, native_view
from icecore._info import exact_info, info_of, new_errors, new_report, visited_fraction


def attend_rows(cache, queries, scores, rows, result, return_lse, return_info, threads):
    """Fill the `rows` of `result` that are each sequence's own; (lse or None, parts for `join_infos` or None)."""
    counts, lengths, heads = [own.stop - own.start for own in rows], [], queries.shape[1]
    by_distance = scores.alibi_slopes is not None
    for i, (sequence, count) in enumerate(zip(cache._sequences, counts, strict=True)):
        state = sequence.state()
        lengths.append(state["length"])
        whose = "the cache" if cache.batch is None else f"sequence {i}"
        if heads:
            _check_queries(count, state, whose)
        if by_distance and state["sealed"]:
            raise ValueError(f"alibi_slopes needs all tokens as they came, but {state['sealed']} are sealed in {whose}, by "
                             "a call without alibi_slopes; expected a cache that attends with them alone")
    packed = 1, heads, sum(counts)  # as the core fills them: of each sequence (heads, own rows), one after another
    lse = np.empty(packed, np.float32) if return_lse else None
    measured = return_info and not by_distance
    report = new_report(packed) if measured else {}
    errors = new_errors(queries.shape) if measured and cache.tolerance is not None else {}
    problem = _native.Problem(dtype=native_dtype(queries.dtype), query=native_view(queries), out=bits(result), lse=lse,
                              threads=threads, **scores.fields())
    options = _native.NearFar(head_tolerance=cache._head_tolerance, head_threshold=cache._head_threshold)
    places = None  # all rows
    if sum(counts) < queries.shape[0] * queries.shape[2]:
        places = np.array([(own.start, count) for own, count in zip(rows, counts, strict=True)])
    _native.Cache.attend(cache._sequences, places, problem, options, _native.Report(**report, **errors))
    if return_lse:
        unpacked = np.full(result.shape[:3], -np.inf, np.float32)
        for to, own, part in zip(unpacked, rows, _unpacked(lse, counts), strict=True):
            to[:, own] = part
        lse = unpacked
    if by_distance and return_info:
        return lse, _exact_infos(cache, heads, rows, lengths)
    return lse, _infos(cache, report, errors, rows, lengths) if return_info else None


def _exact_infos(cache, heads, rows, lengths):
    infos = []
    for i, (own, length) in enumerate(zip(rows, lengths, strict=True)):
        shape = 1, heads, own.stop - own.start, cache.dim, length, cache.value_dim
        infos.append(((slice(i, i + 1), slice(None), own), exact_info(shape, True, None, 0, NO_MASK)))
    return infos


def _infos(cache, report, errors, rows, lengths):
    parts = {name: _unpacked(array, [own.stop - own.start for own in rows]) for name, array in report.items()}
    infos = []
    for i, (own, length) in enumerate(zip(rows, lengths, strict=True)):
        one = slice(i, i + 1)
        content = {name: part[i] for name, part in parts.items()} | {name: array[one] for name, array in errors.items()}
        visited = visited_fraction(content["near_count"], content["summaries"], length, True, cache.window, cache.sinks)
        infos.append(((one, slice(None), own), info_of(content, visited)))
    return infos


def _check_queries(count, state, whose):
    """ValueError where so many last tokens' queries are more than a sequence can attend."""
    length, first = state["length"], state["first_query"]
    if count > length:
        raise ValueError(f"queries has {count} rows, but {whose} holds {length} tokens; expected at most as many")
    if count and length - count < first:
        raise ValueError(f"queries begin at token {length - count}, but tokens before {first + 1} are sealed in {whose}; "
                         f"expected at most the last {length - first} tokens' queries")


def _unpacked(array, counts):
    """Each sequence's part, (1, heads, count), of an array (1, heads, sum of counts) that holds one part after another."""
    heads = array.shape[1]
    parts = np.split(array.reshape(-1), heads * np.cumsum(counts)[:-1])
    return [part.reshape(1, heads, count) for part, count in zip(parts, counts, strict=True)]
