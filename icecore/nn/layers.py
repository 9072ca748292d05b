"""The row-wise mathematics of a transformer, in float32 NumPy: one function per formula."""

import numpy as np
from scipy.special import erf


def linear(x, weight, bias=None, out=None):
    """Apply a projection.

    Parameters
    ----------
    x : ndarray, (n, inputs) float32
    weight : ndarray, (outputs, inputs) float32
    bias : ndarray, (outputs,) float32, optional
    out : ndarray, (n, outputs) float32, optional
        Where to write the result.

    Returns
    -------
    ndarray, (n, outputs) float32
    """
    out = np.matmul(x, weight.T, out=out)  # (n, inputs) @ (inputs, outputs) -> (n, outputs)
    if bias is not None:
        out += bias  # (n, outputs) + (outputs,) -> (n, outputs)
    return out


def split_heads(x, heads):
    """Columns as heads of equal width.

    Parameters
    ----------
    x : ndarray, (n, heads * head_width) float32
    heads : int

    Returns
    -------
    ndarray, (heads, n, head_width) float32
        A view where `x` has contiguous rows.
    """
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)  # (n, heads, head_width) -> (heads, n, head_width)


def merge_heads(x):
    """The heads' results side by side: (heads, n, head_width) -> (n, heads * head_width)."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)  # (n, heads, head_width) -> (n, heads * head_width)


def layer_norm(x, weight, bias, epsilon):
    """Shift each row to mean 0 and scale it to variance 1, then scale and shift each column.

    Parameters
    ----------
    x : ndarray, (n, width) float32
    weight, bias : ndarray, (width,) float32
    epsilon : float
        Added to the variance.

    Returns
    -------
    ndarray, (n, width) float32
    """
    out = x - x.mean(axis=1, keepdims=True)  # (n, width) - (n, 1) -> (n, width)
    variance = np.einsum("nw,nw->n", out, out) / x.shape[1]  # (n, width), (n, width) -> (n,)
    out /= np.sqrt(variance + np.float32(epsilon))[:, None]  # (n, width) / (n, 1) -> (n, width)
    out *= weight  # (n, width) * (width,) -> (n, width)
    out += bias  # (n, width) + (width,) -> (n, width)
    return out


def rms_norm(x, weight, epsilon):
    """Divide each row by its root mean square, then scale each column.

    Parameters
    ----------
    x : ndarray, (..., width) float32
    weight : ndarray, (width,) float32
    epsilon : float
        Added to the mean square.

    Returns
    -------
    ndarray, (..., width) float32
    """
    mean_square = np.einsum("...w,...w->...", x, x) / x.shape[-1]  # (..., width), (..., width) -> (...)
    scale = 1.0 / np.sqrt(mean_square + np.float32(epsilon))  # (...)
    out = x * scale[..., None]  # (..., width) * (..., 1) -> (..., width)
    out *= weight  # (..., width) * (width,) -> (..., width)
    return out


def rotary_tables(positions, head_width, base):
    """Cosines and sines of rotary position embedding.

    Parameters
    ----------
    positions : ndarray, (n,) of integers
    head_width : int
        Width of one head, even.
    base : float
        Pair ``p`` of a head turns by ``position * base ** (-2 * p / head_width)``.

    Returns
    -------
    cosine, sine : ndarray, (n, head_width / 2) float32
        Computed in float64, so that late positions keep their precision.
    """
    frequencies = base ** (np.arange(0, head_width, 2) / -head_width)  # (head_width / 2,)
    angles = np.outer(positions, frequencies)  # (n,), (head_width / 2,) -> (n, head_width / 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def apply_rotary(x, cosine, sine, out):
    """Turn every head by its position, in the half-split convention.

    Column ``p`` of a head is paired with column ``p + head_width / 2``, as in Hugging Face's weights.

    Parameters
    ----------
    x : ndarray, (heads, n, head_width) float32
        Any strides.
    cosine, sine : ndarray, (n, head_width / 2) float32
        The tables of `rotary_tables`.
    out : ndarray, (heads, n, head_width) float32
        Where to write the result; must not overlap `x`.
    """
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]  # (heads, n, half) each
    out_left, out_right = out[..., :half], out[..., half:]  # (heads, n, half) each
    np.multiply(left, cosine, out=out_left)  # (heads, n, half) * (n, half) -> (heads, n, half)
    product = right * sine  # (heads, n, half)
    out_left -= product  # left cos - right sin
    np.multiply(right, cosine, out=out_right)  # (heads, n, half)
    np.multiply(left, sine, out=product)  # (heads, n, half)
    out_right += product  # right cos + left sin


def swiglu(gate_up):
    """Gate one half of the columns by the SiLU of the other.

    Parameters
    ----------
    gate_up : ndarray, (n, 2 * hidden) float32
        The gate's columns, then the columns that it gates.

    Returns
    -------
    ndarray, (n, hidden) float32
        ``gate / (1 + exp(-gate)) * up``.
    """
    gate, up = np.split(gate_up, 2, axis=1)  # (n, hidden) each, views
    out = np.negative(gate)  # (n, hidden)
    with np.errstate(over="ignore"):  # exp(-gate) = inf gives the right limit: 0
        np.exp(out, out=out)  # (n, hidden)
    out += 1.0  # (n, hidden)
    np.divide(gate, out, out=out)  # (n, hidden): silu(gate)
    out *= up  # (n, hidden)
    return out


def geglu(gate_up):
    """Gate one half of the columns by the tanh approximation of GELU of the other.

    Parameters
    ----------
    gate_up : ndarray, (n, 2 * hidden) float32
        The gate's columns, then the columns that it gates.

    Returns
    -------
    ndarray, (n, hidden) float32
        ``gelu_tanh(gate) * up``.
    """
    gate, up = np.split(gate_up, 2, axis=1)  # (n, hidden) each, views
    out = gelu_tanh(gate)  # (n, hidden)
    out *= up  # (n, hidden)
    return out


def gelu(x):
    """Each value times the share of a standard normal distribution below it.

    Parameters
    ----------
    x : ndarray, any shape, float32

    Returns
    -------
    ndarray, the same shape, float32
        ``x * (1 + erf(x / sqrt(2))) / 2``.
    """
    out = erf(x * np.float32(0.5**0.5))
    out += 1.0
    out *= x
    out *= 0.5
    return out


def gelu_tanh(x):
    """The approximation of `gelu` by a hyperbolic tangent, which some models are trained with.

    Parameters
    ----------
    x : ndarray, any shape, float32

    Returns
    -------
    ndarray, the same shape, float32
        ``x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2``.
    """
    out = x * x
    out *= 0.044715
    out += 1.0
    out *= x
    out *= np.float32((2 / np.pi) ** 0.5)
    np.tanh(out, out=out)
    out += 1.0
    out *= x
    out *= 0.5
    return out


def cross_entropy(logits, targets):
    """Negative log likelihood of each row's target under the softmax of its logits.

    Parameters
    ----------
    logits : ndarray, (n, vocabulary) float32
    targets : ndarray, (n,) of integers

    Returns
    -------
    ndarray, (n,) float32
        In nats.
    """
    top = logits.max(axis=1)  # (n, vocabulary) -> (n,)
    shifted = logits - top[:, None]  # (n, vocabulary)
    np.exp(shifted, out=shifted)  # (n, vocabulary)
    log_sum = np.log(shifted.sum(axis=1)) + top  # (n,)
    chosen = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]  # (n,)
    return log_sum - chosen  # (n,)
