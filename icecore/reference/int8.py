"""Rows in 8 bits: each group of 16 numbers under a scale of its own, as a cache's sealed segments hold them."""

import numpy as np

#: Numbers under one scale.
GROUP = 16


def round_to_bfloat16(x):
    """Float64 numbers that bfloat16 holds: 8 significant bits, ties to even; 0 below the normal range, 2**-126."""
    mantissa, exponent = np.frexp(x)
    rounded = np.ldexp(np.rint(mantissa * 256), exponent - 8)
    return np.where(np.abs(rounded) < 2.0**-126, 0.0, rounded)


def quantize(rows):
    """Codes and scales of rows.

    Parameters
    ----------
    rows : (..., d) array_like

    Returns
    -------
    codes : (..., d) int8
        Within -127 .. 127.
    scales : (..., ceil(d / 16)) float64
        Numbers that bfloat16 holds; NaN where a group holds NaN or inf.
    """
    rows = np.asarray(rows, np.float64)
    groups = -(-rows.shape[-1] // GROUP)
    padded = np.zeros((*rows.shape[:-1], groups * GROUP))
    padded[..., : rows.shape[-1]] = rows
    padded = padded.reshape(*rows.shape[:-1], groups, GROUP)
    finite = np.isfinite(padded).all(axis=-1)
    padded = np.where(finite[..., None], padded, 0.0)
    scales = round_to_bfloat16(np.abs(padded).max(axis=-1) / 127)
    codes = np.rint(padded / np.where(scales > 0, scales, np.inf)[..., None]).astype(np.int8)
    return codes.reshape(*rows.shape[:-1], -1)[..., : rows.shape[-1]], np.where(finite, scales, np.nan)


def dequantize(codes, scales):
    """Rows (..., d) of float64: each code times the scale of its group."""
    return codes * np.repeat(scales, GROUP, axis=-1)[..., : codes.shape[-1]]
