"""attention(): validation and ergonomics; the work is the C core's."""

from __future__ import annotations

import warnings

import numpy as np

from icecore._alibi import check_alibi
from icecore._arguments import parts_of
from icecore._arrays import (
    as_four,
    check_mask,
    check_out,
    check_problem,
    check_ranges,
    check_scores,
    check_seed,
    flag,
    integer,
    native_result,
    refuse_names,
)
from icecore._call import Call, warn_of_errors
from icecore._info import join_infos
from icecore._lengths import entries_of
from icecore._runtime import threads_for_call
from icecore._settings import check_k
from icecore.selectors import PDCI


def attention(query, key, value, /, *, k=None, tolerance=None, plan=None, causal=False, window=None, sinks=None, scale=None,
              softcap=None, sink_logits=None, alibi_slopes=None, attn_mask=None, key_ranges=None, lengths=None,
              padding_side="right", metric=None, last_exact=0, selector=None, return_lse=False, return_info=False, out=None,
              num_threads=None, seed=0, far_field=None, visit=None, **others):
    """Softmax attention, exact or near/far, on the CPU.

    ``out[i] = sum_j softmax_j(scale * query[i] . key[j]) value[j]``.

    Parameters
    ----------
    query : array_like, shape (B, H, L, d), (H, L, d) or (L, d)
        float32, float16, bfloat16 (``ml_dtypes.bfloat16``, or its bits as uint16). float64 is computed by the slow oracle
        in ``icecore.reference``. Any strides; copied if the last axis is not contiguous.
    key : array_like, shape (B, H_k, S, d), (H_k, S, d) or (S, d)
        Same dtype and number of dimensions; H must be a multiple of H_k (grouped-query attention: query head h reads key
        head ``h // (H // H_k)``). 1 <= d <= 576.
    value : array_like, shape (B, H_k, S, d_v), (H_k, S, d_v) or (S, d_v)
        1 <= d_v <= 576; it may be a view of `key`, as ``key[..., :512]`` of a shared latent.
    k : int, optional
        Near-field keys per query besides sinks and window. None, or k >= S: exact attention. Otherwise keys are grouped in
        cells; a query opens the cells in which an error would weigh most until they hold at least k keys, and sums those
        exactly. Where that would not be faster than exact attention (short inputs), the call computes exactly.
    tolerance : float, optional
        Instead of k: the relative error of the output to aim for in every head, ``sum |out - exact| / sum |exact|``, between 0
        and 1. How far to open cells for it is measured in the call: sampled rows of each head are attended exactly as well, and
        heads that would need too much become exact. An estimate from these rows, not a bound; what it came to is
        `AttentionInfo.error`, and a warning says so where it ends well above the tolerance. 0.05 is a good start.
    plan : LayerPlan, optional
        Instead of k, tolerance, window and sinks: what `calibrate` found for this layer, ``plan[layer]``.
    causal : bool, default False
        Query i sees keys up to S - L + i (aligned bottom-right, as a cache needs it).
    window : int or (int, int), optional
        With k=None: sliding-window attention, a query sees only the keys less than `window` positions away, and the sinks; with
        a pair (left, right) those at most `left` before its position and at most `right` behind it, -1 for no bound.
        ``(w - 1, w - 1)`` is ``w``. With k and causal: at least the last `window` keys (up to twice as many) are exact; default
        512. With k and not causal it must be None.
    sinks : int, optional
        First keys that are always exact and visible in spite of a window. Default 16 with k and causal, else 0.
    scale : float, optional
        Default ``1 / sqrt(d)``.
    softcap : float, optional
        Scores become ``softcap * tanh(scores / softcap)`` after scaling, before masks and softmax (Gemma 2 [3]_): 1e-30 to
        1e30. None: no cap. On every path; near/far attention caps the scores of keys and of cells' means alike.
    sink_logits : array_like of float, shape (H,), optional
        Of each query head the score of one more key that every query sees and that has no value (gpt-oss [4]_): it joins the
        denominator of the softmax and the lse. Neither scaled, capped nor masked; magnitudes up to 1e30, or -inf for none. On
        every path. (`sinks` are keys; these are not.)
    alibi_slopes : array_like of float, shape (H,), optional
        ALiBi [5]_: from the score of each key, once it is scaled and capped, the query head's slope times its distance from the
        query is taken off, ``slope * |S - L + i - j|`` of query i and key j; 0 to 1e6 (the published ones go from 2 ** (-8 / H)
        to 2 ** -8). Positions are the same with causal=True and without: the last query stands at the last key, and so an
        attention over a part of the keys has others. With k or a tolerance only where causal, and without softcap, sink_logits
        and metric: places are then one more component of queries and keys, in float32 (d <= 575), which rounds scores and lse
        by 6e-8 of the slope times S. Where that is above 0.008, as by no published slope up to 131,072 keys, the call is exact.
    attn_mask : array_like, optional
        Broadcasts to (..., L, S). bool: True keeps. Floating: added to the scaled scores; -inf hides a key, and the lowest
        finite number of float32, bfloat16 or float64 does where another key is left (a row of nothing else is the mean of all
        values, as in PyTorch; float16's lowest, -65504, is a number like others). In near/far attention hidden keys count
        neither near nor far; cells of which some keys are hidden or biased are opened, so that scattered masks leave little to
        gain, while padding, documents and windows leave most.
    key_ranges : array_like of integers, optional
        Two or three axes, broadcasts to (B, L, 2): the first key that a query may see and the one behind its last,
        ``0 <= first <= end <= S``, where they are equal none. It sees no other key, sinks included; causality, windows,
        attn_mask and lengths may hide more. For masks whose rows are runs of keys (packed documents, prefixes, windows,
        padding) without an array of L x S. Exact attention costs what is visible; near/far attention takes them as attn_mask,
        at a look at every cell for each different row.
    lengths : array_like of integers, shape (B,), optional
        How many of its S keys each entry of a batch has; the others are padding, which costs nothing. Each entry attends by
        itself, as in a call of its own with its own keys: the bits are the same, whatever its neighbours' lengths. With
        causal=True its queries are at most as many as its keys, and its last query stands at its last key.
    padding_side : {"right", "left"}
        Where the padding of keys lies, and of causal queries: behind an entry's own, or before them.
    metric : array_like, (H_k, d, d) or (H_k, d), optional
        With k or tolerance: second moments of queries (`query_metric`), or their diagonals, which say which keys are near one
        another; no score changes. Default: with causal=True those of the queries that stand at the keys of each sealed segment,
        so that, up to rounding, no row depends on a later one; else those of this call's queries. A chunk (queries of the last
        tokens only) knows no queries of the tokens before it: segments there take the metric of its first window of queries
        with a tolerance, which is exact, and of their own keys with k. ``np.ones((H_k, d))`` is none.
    last_exact : int, default 0
        With k, tolerance, a plan or a selector: the last so many queries attend exactly. Where a prompt ends, the answer may
        hang on one key, which an error that is a mean over many rows does not protect.
    selector : str or an instance of a class of `icecore.selectors`, optional
        Another method of choosing keys, for comparisons, with its own parameters: ``icecore.selectors.Pages(k=64)``. By name
        with its defaults: ``"pages"``. It always runs where it leaves out keys, and takes no k, tolerance, plan, window, sinks,
        mask, key_ranges, metric or alibi_slopes. All others go with it: causal, scale, softcap, sink_logits, lengths,
        last_exact, return_lse, return_info, out.
    return_lse : bool, default False
        Also return the natural logarithm of the sum of exponentials (sink logits included: of what the result was divided by),
        float32, shape (..., L). With a tolerance half its error
        counts as one more component of the output's, whether it is returned or not: it is an estimate, off by up to twice the
        tolerance on average, and by more in single rows.
    return_info : bool, default False
        Also return an `AttentionInfo`, as the last item.
    out : ndarray, optional
        Result array: shape (..., L, d_v), query's dtype, writable, sharing no memory with the inputs.
    num_threads : int, optional
        For this call; default as in `get_num_threads`.
    seed : int, default 0
        Of the cells' sampled parents, and of projections. The same seed gives the same bits for any number of threads.
    far_field, visit : bool and int, optional
        Deprecated: with k, ``far_field=False, visit=visit`` is ``selector=icecore.selectors.PDCI(k, visit)``, and warns.

    Returns
    -------
    out : ndarray, shape (..., L, d_v), query's dtype
    lse : ndarray of float32, shape (..., L)
        Only with return_lse.
    info : AttentionInfo
        Only with return_info.

    Raises
    ------
    TypeError
        A dtype that is not supported, arrays of different dtypes, an argument that is not of its type, an array as ``k=``.
    ValueError
        Shapes that do not fit, numbers out of range, `out` read-only or overlapping an input, a plan of other heads or widths.
    MemoryError
        Nothing was written then, with `lengths`, a plan or a selector but entries or heads that were done.

    Notes
    -----
    A query that sees no key gives 0 and lse -inf (its sink logit if it has one), never NaN. A key that is not visible
    contributes nothing, whatever it holds. NaN and inf in visible inputs propagate as IEEE arithmetic has it (a soft cap makes
    an inf score softcap, and -inf -softcap); by way of cell means they reach every query that uses the cell, and an inf may
    come out as NaN. With a selector keys that are not finite reach the queries that choose them, and a NaN among the scores
    that it computes is always chosen.

    With k or a tolerance queries, keys, values and weights are rounded to bfloat16 on machines that multiply it natively,
    unless the tolerance is below 0.015; sums are in float32.

    Values are summed before they are divided by the sum of their weights: where the largest magnitude times S passes float32
    (3.4e38), results may be infinite.

    Exact: O(L S (d + d_v)) time; extra memory under 8 MB a thread, and on processors that multiply bfloat16, with more than a
    few rows, once more the keys and values of the heads in hand (AMX: 6 bytes a number), up to 64 MB or of one head. Rounded:
    a copy of keys and values in 16 bits besides. Near/far: about
    O(L (window + k + S / 256 + cells of expanded parents) (d + d_v) + S^2 / 256 d) time and, for a moment, up to two copies of
    keys and values (of 16 bits where they are rounded, and then one more). Selectors say theirs.

    Thread safe: calls may run at once, on separate `out`. The GIL is released. Ctrl-C interrupts long calls.

    References
    ----------
    .. [1] IceFormer: Accelerated Inference with Long-Sequence Transformers on CPUs, ICLR 2024, arXiv 2405.02842.
    .. [2] FlashAttention, arXiv 2205.14135 (the blocking of the exact path).
    .. [3] Gemma 2, arXiv 2408.00118, section 2.
    .. [4] gpt-oss-120b & gpt-oss-20b Model Card, arXiv 2508.10925, section 2.
    .. [5] Train Short, Test Long: Attention with Linear Biases, arXiv 2108.12409.
    """
    if others:
        refuse_names("attention", others)
    if far_field is not None or visit is not None:
        selector, k = _deprecated_selector(far_field, visit, selector, k)
    threads, seed = threads_for_call(num_threads) or 0, check_seed(seed)
    problem, causal = check_problem(query, key, value), flag(causal, "causal")

    masks = {"attn_mask": attn_mask, "key_ranges": key_ranges}
    ways = causal, plan, selector, masks, {"k": k, "tolerance": tolerance, "window": window, "sinks": sinks, "metric": metric}
    parts, entries = parts_of(problem, *ways), entries_of(lengths, padding_side, problem, causal)
    batch, heads, queries, dim = problem.query.shape
    scores = check_scores(scale, softcap, sink_logits, heads, dim, alibi_slopes)
    if alibi_slopes is not None and any(way is not None for way in (k, tolerance, plan, selector)):
        check_alibi(problem, causal, plan=plan, selector=selector, softcap=softcap, sink_logits=sink_logits, metric=metric)
    mask, ranges = check_mask(attn_mask, problem), check_ranges(key_ranges, problem)
    if ranges is not None:
        mask = mask._replace(ranges=ranges)
    last_exact = min(integer(last_exact, "last_exact", 0), queries)
    if out is not None:
        check_out(out, problem, {"query": problem.query, "key": problem.key, "value": problem.value, **masks})

    result = native_result(out, problem)
    lse = np.empty((batch, heads, queries), np.float32) if return_lse else None
    call = Call(problem, scores, as_four(result), lse, causal=causal, mask=mask, threads=threads, seed=seed,
                return_info=return_info)
    if entries is None:
        infos = call.run_parts(parts, last_exact)
    else:
        infos = call.run_entries(entries, lambda entry: parts_of(entry, *ways), last_exact)
    if out is not None and result is not out:
        out[...] = result
    warn_of_errors(call.over)

    returned, shape = [result if out is None else out], problem.out_shape[:-1]
    if return_lse:
        returned.append(lse.reshape(shape))
    if return_info:
        returned.append(join_infos(infos, (batch, heads, queries), shape))
    return returned[0] if len(returned) == 1 else tuple(returned)


def _deprecated_selector(far_field, visit, selector, k):
    """(selector, k) as the deprecated `far_field` and `visit` have them."""
    warnings.warn("far_field and visit are deprecated; k with far_field=False and visit is "
                  "selector=icecore.selectors.PDCI(k, visit) now", FutureWarning, stacklevel=3)
    if far_field in (None, True):
        if visit is not None:
            raise ValueError(f"visit={visit} needs far_field=False")
        return selector, k
    if selector is not None or k is None:
        raise ValueError(f"far_field=False is a selector, and needs k; got selector={selector!r} and k={k}")
    return PDCI(check_k(k), visit), None
