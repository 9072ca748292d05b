"""Tensors on the CPU as arrays, and attention on them, without copies."""

import torch
from torch import Tensor

import icecore


def as_array(tensor, name="tensor"):
    """The memory of a CPU tensor as an array, for any function of icecore; bfloat16 as its bits, in uint16.

    Parameters
    ----------
    tensor : Tensor
    name : str
        For messages.

    Returns
    -------
    ndarray
        Shares the tensor's memory. ``torch.from_numpy(array).view(torch.bfloat16)`` leads back from bits.

    Raises
    ------
    TypeError, ValueError
        What is no tensor, is not on the CPU, requires grad while gradients are on, or is of a kind that NumPy has no array of:
        float8, sparse, quantized, or a view whose sign or conjugate is pending.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}; arrays go to icecore.attention")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; expected a tensor on the CPU")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires grad, and icecore has no gradients; expected a call under torch.no_grad(), "
                         f"or {name}.detach()")
    tensor = tensor.detach()
    try:
        return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} is a tensor ({tensor.dtype}, {tensor.layout}) without an array of its memory; expected a "
                        f"dense one of numbers that NumPy has, or bfloat16 ({error})") from error


def _tensor(array, dtype):
    """The reverse of `as_array`."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def attention(query, key, value, /, *, out=None, **options):
    """`icecore.attention` on CPU tensors, without copying them.

    Parameters
    ----------
    query : Tensor, shape (B, H, L, d), (H, L, d) or (L, d)
        float32, float16, bfloat16 or float64, any strides.
    key : Tensor, shape (B, H_k, S, d), (H_k, S, d) or (S, d)
    value : Tensor, shape (B, H_k, S, d_v), (H_k, S, d_v) or (S, d_v)
    out : Tensor, optional
        Result: shape (..., L, d_v), query's dtype, sharing no memory with the inputs.
    **options
        Of `icecore.attention`, under its names and with its meaning: ``causal=True`` is aligned bottom-right, and query heads
        may share key heads. `attn_mask`, `key_ranges`, `metric`, `sink_logits` and `alibi_slopes` may be tensors,
        and `scale` one of a single number.

    Returns
    -------
    out : Tensor, shape (..., L, d_v), query's dtype
    lse : Tensor of float32, shape (..., L)
        Only with return_lse.
    info : AttentionInfo
        Only with return_info.

    Raises
    ------
    TypeError, ValueError
        As `icecore.attention`; and for what is no tensor, is not on the CPU, or requires grad while gradients are on.

    Notes
    -----
    Not differentiable. `scaled_dot_product_attention` is the function for code that is differentiated or compiled.
    """
    arrays = [as_array(tensor, name) for tensor, name in ((query, "query"), (key, "key"), (value, "value"))]
    for name in ("attn_mask", "key_ranges", "metric", "sink_logits", "alibi_slopes"):
        if isinstance(options.get(name), Tensor):
            given = options[name]
            options[name] = as_array(given.float() if given.dtype == torch.bfloat16 else given, name)
    scale = options.get("scale")
    if isinstance(scale, Tensor) and scale.ndim == 0:
        options["scale"] = scale.item()
    result = icecore.attention(*arrays, out=None if out is None else as_array(out, "out"), **options)
    parts = list(result) if isinstance(result, tuple) else [result]
    parts[0] = _tensor(parts[0], query.dtype) if out is None else out
    if options.get("return_lse"):
        parts[1] = torch.from_numpy(parts[1])
    return parts[0] if len(parts) == 1 else tuple(parts)
