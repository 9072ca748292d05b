"""Rows in 8 or 4 bits: each group of 16 numbers under a scale of its own, as a cache's sealed segments hold them."""

import numpy as np

#: Numbers under one scale.
GROUP = 16


def round_to_bfloat16(x):
    """Float64 numbers that bfloat16 holds: 8 significant bits, ties to even; 0 below the normal range, 2**-126."""
    mantissa, exponent = np.frexp(x)
    rounded = np.ldexp(np.rint(mantissa * 256), exponent - 8)
    return np.where(np.abs(rounded) < 2.0**-126, 0.0, rounded)


def hadamard_matrix():
    """The Hadamard matrix H of 16 rows in Sylvester's order, (16, 16): entries 1 and -1, H H = 16 I."""
    matrix = np.ones((1, 1))
    while len(matrix) < GROUP:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def quantize(rows, bits=8):
    """Codes and scales of rows.

    Codes of 4 bits are of y = H x / 16 of each group x: a large number among small ones takes no digits from them (QuaRot,
    arXiv 2404.00456, turns keys and values so as a whole).

    Parameters
    ----------
    rows : (..., d) array_like
    bits : {8, 4}

    Returns
    -------
    codes : (..., d) int8
        Within -127 .. 127. With 4 bits those of whole groups, (..., 16 ceil(d / 16)), within -7 .. 7.
    scales : (..., ceil(d / 16)) float64
        Numbers that bfloat16 holds; NaN where a group holds NaN or inf.
    """
    rows = np.asarray(rows, np.float64)
    groups, largest = -(-rows.shape[-1] // GROUP), 2 ** (bits - 1) - 1
    padded = np.zeros((*rows.shape[:-1], groups * GROUP))
    padded[..., : rows.shape[-1]] = rows
    padded = padded.reshape(*rows.shape[:-1], groups, GROUP)
    finite = np.isfinite(padded).all(axis=-1)
    padded = np.where(finite[..., None], padded, 0.0)
    if bits == 4:
        padded = padded @ hadamard_matrix() / GROUP
    scales = round_to_bfloat16(np.abs(padded).max(axis=-1) / largest)
    codes = np.rint(padded / np.where(scales > 0, scales, np.inf)[..., None]).astype(np.int8)
    codes = codes.reshape(*rows.shape[:-1], -1)
    return codes if bits == 4 else codes[..., : rows.shape[-1]], np.where(finite, scales, np.nan)


def dequantize(codes, scales, bits=8):
    """Rows of float64 as wide as codes are: each code times the scale of its group; of 4 bits x = H y of that."""
    rows = codes * np.repeat(scales, GROUP, axis=-1)[..., : codes.shape[-1]]
    return rows if bits == 8 else (rows.reshape(*scales.shape, GROUP) @ hadamard_matrix()).reshape(codes.shape)


def quantized(rows, bits=8):
    """Rows (..., d) as so many bits hold them, float64."""
    return dequantize(*quantize(rows, bits), bits)[..., : np.shape(rows)[-1]]
