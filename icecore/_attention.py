"""attention(): validation and ergonomics; the work is the C core's."""

from __future__ import annotations

import operator

import numpy as np

from icecore._arrays import check_mask, check_out, check_problem, check_scale, integer, native_result, refuse_names
from icecore._call import Call, mask_of, warn_of_errors
from icecore._info import join_infos
from icecore._metric import check_metric
from icecore._plan import check_plan
from icecore._runtime import threads_for_call
from icecore._settings import (
    DEFAULT_SINKS,
    DEFAULT_WINDOW,
    MAX_KEYS,
    Settings,
    check_k,
    check_selector,
    check_tolerance,
)


def attention(query, key, value, /, *, k=None, tolerance=None, plan=None, far_field=True, causal=False, window=None, sinks=None,
              scale=None, attn_mask=None, visit=None, metric=None, last_exact=0, selector=None, return_lse=False,
              return_info=False, out=None, num_threads=None, seed=0, **others):
    """Softmax attention, exact or near/far, on the CPU.

    ``out[i] = sum_j softmax_j(scale * query[i] . key[j]) value[j]``.

    Parameters
    ----------
    query : array_like, shape (..., H, L, d), (H, L, d) or (L, d)
        float32, float16, bfloat16 (``ml_dtypes.bfloat16``, or its bits as uint16). float64 is computed by the slow oracle
        in ``icecore.reference``. Any strides; copied if the last axis is not contiguous.
    key : array_like, shape (..., H_k, S, d)
        Same dtype and number of dimensions; H must be a multiple of H_k (grouped-query attention: query head h reads key
        head ``h // (H // H_k)``). 1 <= d <= 512.
    value : array_like, shape (..., H_k, S, d_v)
        1 <= d_v <= 512.
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
    far_field : bool, default True
        Every unopened cell contributes through its mean key and mean value. False is the published rule of IceFormer: the k
        visited keys with the largest scores, the rest dropped.
    causal : bool, default False
        Query i sees keys up to S - L + i (aligned bottom-right, as a cache needs it).
    window : int, optional
        With k=None: sliding-window attention, a query sees only the keys less than `window` positions away, and the sinks.
        With k and causal: at least the last `window` keys (up to twice as many) are exact; default 512. With k and not
        causal it must be None.
    sinks : int, optional
        First keys that are always exact and visible in spite of a window. Default 16 with k and causal, else 0.
    scale : float, optional
        Default ``1 / sqrt(d)``.
    attn_mask : array_like, optional
        Broadcasts to (..., L, S). bool: True keeps. Floating: added to the scaled scores; -inf hides a key, and the lowest
        finite number does where another key is left (a row of nothing else is the mean of all values, as in PyTorch). In
        near/far attention hidden keys count neither near nor far; cells of which some keys are hidden or biased are opened, so
        that scattered masks leave little to gain, while padding, documents and windows leave most.
    visit : int, optional
        With far_field=False: keys to visit per query, at least k; default ``max(8 * k, 1024)``. ``visit=S`` finds the exact
        top k.
    metric : array_like, (H_k, d, d) or (H_k, d), optional
        With k or tolerance: second moments of queries (`query_metric`), or their diagonals, which say which keys are near one
        another; no score changes. Default: with causal=True those of the queries that stand at the keys of each sealed segment,
        so that no row depends on a later one; else those of this call's queries. A chunk (queries of the last tokens only)
        knows no queries of the tokens before it: segments there take the metric of its first window of queries with a
        tolerance, which is exact, and of their own keys with k. ``np.ones((H_k, d))`` is none.
    last_exact : int, default 0
        With k, tolerance or a plan: the last so many queries attend exactly. Where a prompt ends, the answer may hang on one
        key, which an error that is a mean over many rows does not protect.
    selector : {"pages"}, optional
        With k: another method of choosing keys, for comparisons. ``"pages"`` is Quest's: of pages of 16 keys those that could
        hold the largest scores, by their componentwise maxima and minima, until they hold k keys, and the page that a query
        sees a part of; the rest is dropped. It always runs where k < S, and takes no tolerance, window, sinks, mask or metric.
    return_lse : bool, default False
        Also return the natural logarithm of the sum of exponentials, float32, shape (..., L). With a tolerance half its error
        counts as one more component of the output's, whether it is returned or not: it is an estimate, off by up to twice the
        tolerance on average, and by more in single rows.
    return_info : bool, default False
        Also return an `AttentionInfo`, as the last item.
    out : ndarray, optional
        Result array: shape (..., L, d_v), query's dtype, writable, sharing no memory with the inputs.
    num_threads : int, optional
        For this call; default as in `get_num_threads`.
    seed : int, default 0
        Of the cells' sampled parents. The same seed gives the same bits for any number of threads.

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
        Nothing was written then.

    Notes
    -----
    A query that sees no key gives 0 and lse -inf, never NaN. A key that is not visible contributes nothing, whatever it holds.
    NaN and inf in visible inputs propagate as IEEE arithmetic has it; by way of cell means they reach every query that uses the
    cell, and an inf may come out as NaN.

    With a far field, queries, keys, values and weights are rounded to bfloat16 on machines that multiply it natively, unless
    the tolerance is below 0.01; sums are in float32.

    Exact: O(L S (d + d_v)) time; extra memory under 8 MB a thread. Near/far: about
    O(L (window + k + S / 256 + cells of expanded parents) (d + d_v) + S^2 / 256 d) time and, for a moment, up to two copies of
    keys and values (of 16 bits where they are rounded, and then one more).

    Thread safe: calls may run at once, on separate `out`. The GIL is released. Ctrl-C interrupts long calls.

    References
    ----------
    .. [1] IceFormer: Accelerated Inference with Long-Sequence Transformers on CPUs, ICLR 2024, arXiv 2405.02842.
    .. [2] FlashAttention, arXiv 2205.14135 (the blocking of the exact path).
    .. [3] Quest, arXiv 2406.10774 (``selector="pages"``).
    """
    refuse_names("attention", others)
    k, tolerance = check_k(k), check_tolerance(tolerance)
    if tolerance is not None and (k is not None or not far_field):
        raise ValueError(f"tolerance={tolerance} replaces k and needs the far field; got k={k}, far_field={far_field}")
    if plan is not None:
        published = None if far_field else far_field
        check_plan(plan, k=k, tolerance=tolerance, window=window, sinks=sinks, visit=visit, metric=metric, far_field=published)
    if selector is not None:
        check_selector(selector, k, plan=plan, tolerance=tolerance, window=window, sinks=sinks, attn_mask=attn_mask,
                       visit=visit, metric=metric, far_field=None if far_field else far_field)
    sparse = k is not None or tolerance is not None
    window = None if window is None else integer(window, "window", 0)
    sinks = None if sinks is None else integer(sinks, "sinks", 0)
    integer(seed, "seed", 0)
    seed = operator.index(seed) % 2**64
    if visit is not None:
        visit = integer(visit, "visit", 1)
        if k is None or far_field:
            raise ValueError(f"visit={visit} needs k and far_field=False")
        if visit < k:
            raise ValueError(f"visit must be at least k={k}, got {visit}")
    if sparse and not causal and window is not None:
        raise ValueError(f"window={window} with k or tolerance needs causal=True")
    threads = threads_for_call(num_threads) or 0
    problem = check_problem(query, key, value)
    if (sparse or plan is not None) and problem.key.shape[2] > MAX_KEYS:
        raise ValueError(f"key has {problem.key.shape[2]} rows; expected at most {MAX_KEYS} with k, tolerance or a plan")
    scale = check_scale(scale, problem.query.shape[-1])
    metric = check_metric(metric, problem.key.shape[1], problem.key.shape[3])
    last_exact = min(integer(last_exact, "last_exact", 0), problem.shape[2])
    if metric is not None and not sparse:
        raise ValueError("metric needs k or tolerance")
    mask = check_mask(attn_mask, problem)
    if out is not None:
        check_out(out, problem, {"query": problem.query, "key": problem.key, "value": problem.value, "attn_mask": attn_mask})

    batch, heads, queries, _, keys, _ = problem.shape
    every = slice(None)
    if plan is not None:
        parts = plan.parts(problem, bool(causal))
    elif not sparse or (k is not None and far_field and k >= keys):
        parts = [(every, every, Settings(None, window=None if sparse else window, sinks=0 if sparse else sinks or 0))]
    elif selector is not None:
        parts = [(every, every, Settings(k, selector=selector))]
    else:
        k = 1 if tolerance is not None else max(1, min(k, keys))  # by tolerance, k counts for nothing
        parts = [(every, every, Settings(
            k, tolerance, far_field, max(8 * k, 1024) if visit is None else visit,
            (DEFAULT_WINDOW if window is None else max(window, 1)) if causal else None,
            sinks if sinks is not None else DEFAULT_SINKS if causal else 0, metric=metric,
        ))]

    result = native_result(out, problem)
    as_four = result[(None,) * (4 - result.ndim)]
    lse = np.empty((batch, heads, queries), np.float32) if return_lse else None
    infos, calls = [], []
    for query_heads, key_heads, settings in parts:
        call = Call(problem.part(query_heads, key_heads), scale, bool(causal), threads, settings, seed, return_info)
        call.out = as_four[:, query_heads]
        if return_lse:
            call.lse = lse if len(parts) == 1 else np.empty((batch, call.out.shape[1], queries), np.float32)
        infos.append(call.run(*(None if m is None else m[:, query_heads] for m in mask), mask_of(attn_mask, query_heads)))
        calls.append(call)
        if last_exact and settings.k is not None:
            infos[-1] = call.attend_last(last_exact, infos[-1], mask, query_heads, attn_mask)
        if return_lse and len(parts) > 1:
            lse[:, query_heads] = call.lse
    if out is not None and result is not out:
        out[...] = result

    shape = problem.out_shape[:-1]
    returned = [out if out is not None else result]
    if return_lse:
        returned.append(lse.reshape(shape))
    if return_info:
        returned.append(join_infos(infos, shape))
    warn_of_errors(calls)
    return returned[0] if len(returned) == 1 else tuple(returned)
