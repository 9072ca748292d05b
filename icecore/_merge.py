"""merge_states(): results over disjoint sets of keys, merged by their log-sum-exp."""

from __future__ import annotations

import numpy as np

from icecore._arrays import NATIVE_DTYPES, narrowed, plain, widened


def merge_states(outs, lses):
    """Merge attention results over disjoint sets of keys into the result over all of them.

    Parameters
    ----------
    outs : sequence of ndarray, each of shape (..., L, d_v)
        Results of `attention` for the same queries; uint16 is read as the bits of bfloat16.
    lses : sequence of ndarray, each of shape (..., L)
        Their natural-log sums of exponentials (``return_lse=True``).

    Returns
    -------
    out : ndarray, shape (..., L, d_v), dtype of ``outs[0]``
    lse : ndarray of float32, shape (..., L)

    Raises
    ------
    TypeError
        If an array of `outs` is of a dtype that `attention` never returns, such as integers, an array is masked, or one
        argument is no sequence.
    ValueError
        Empty or unequal sequences, or shapes that differ.

    Notes
    -----
    ``lse = log sum_n exp(lse_n)``, ``out = sum_n exp(lse_n - lse) out_n``: associative and commutative up to rounding. Where
    every part saw no key (lse -inf) the result is 0 and -inf. `sink_logits` belong to one of the parts, no matter which: each
    part that is given them counts them.
    """
    outs, lses = _parts(outs, "outs"), _parts(lses, "lses")
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs and lses must be equally many and not empty, got {len(outs)} and {len(lses)}")
    for n, (o, s) in enumerate(zip(outs, lses, strict=True)):
        if o.dtype.name not in (*NATIVE_DTYPES, "float64"):
            expected = "float32, float16, bfloat16 (or its bits as uint16) or float64"
            raise TypeError(f"outs[{n}] has dtype {o.dtype}; expected {expected}")
        if o.shape != outs[0].shape:
            raise ValueError(f"outs[{n}] has shape {o.shape}; expected that of outs[0], {outs[0].shape}")
        if s.shape != o.shape[:-1]:
            raise ValueError(f"lses[{n}] has shape {s.shape}; expected {o.shape[:-1]}, as outs[{n}] has {o.shape}")
    stacked = np.stack([s.astype(np.float64) for s in lses])
    top = stacked.max(axis=0)
    shift = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(stacked - shift)
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    share = weights / np.where(total == 0.0, 1.0, total)
    # a part that saw nothing adds nothing, whatever its out holds
    parts = (np.where(w[..., None] == 0.0, 0.0, w[..., None] * widened(o)) for w, o in zip(share, outs, strict=True))
    return narrowed(sum(parts), outs[0].dtype), lse.astype(np.float32)


def _parts(parts, name):
    try:
        parts = list(parts)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of arrays, got {type(parts).__name__}") from None
    return [plain(part, f"{name}[{n}]") for n, part in enumerate(parts)]
