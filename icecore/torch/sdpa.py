"""torch's scaled_dot_product_attention: what of it icecore computes, what torch does, and the operator of compiled graphs."""

import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import CausalBias, CausalVariant

from .tensors import attention

#: What icecore computes on a CPU; float64 goes to an oracle, which nobody wants by way of PyTorch.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_DIM = 576


# ---- torch's function ----


def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None,
                                 enable_gqa=False, tolerance=None, k=None, num_threads=None):
    """`torch.nn.functional.scaled_dot_product_attention` with a tolerance.

    Parameters
    ----------
    query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        As torch has them: shapes (..., L, d), (..., S, d) and (..., S, d_v) that broadcast, ``is_causal=True`` aligned
        top-left. A `torch.nn.attention.bias.CausalBias` as `attn_mask` needs no L x S array.
    tolerance, k, num_threads
        As in `icecore.attention`. Neither tolerance nor k: exact.

    Returns
    -------
    Tensor, shape (..., L, d_v)
        Query's dtype; under `torch.autocast` autocast's. A query that sees no key gives 0.

    Raises
    ------
    TypeError, ValueError
        Of `icecore.attention`, for the keyword-only arguments.
    RuntimeError
        Of PyTorch, for the others.

    Notes
    -----
    PyTorch's own function computes what icecore cannot: where a gradient is wanted (a warning says so once), dropout, other
    devices and dtypes, nested tensors, widths above 576, a mask together with is_causal.

    `torch.compile` and `torch.export` keep the call as the operator ``torch.ops.icecore.scaled_dot_product_attention``.
    """
    def by_torch():
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                                                       enable_gqa=enable_gqa)

    tensors, mask, causal, lower_right = [query, key, value], attn_mask, is_causal, False
    if isinstance(attn_mask, CausalBias):
        if is_causal or (attn_mask.seq_len_q, attn_mask.seq_len_kv) != (query.shape[-2], key.shape[-2]):
            return by_torch()
        lower_right = attn_mask.variant == CausalVariant.LOWER_RIGHT
        mask, causal = None, not lower_right
    if torch.is_autocast_enabled("cpu"):
        tensors = [_autocast(tensor) for tensor in tensors]
        mask = None if mask is None else _autocast(mask)
    if not _computes(*tensors, mask, dropout_p, causal or lower_right, enable_gqa):
        return by_torch()
    factor = None if scale is None else float(scale)
    if not _is_traced(tensors):
        options = {"tolerance": tolerance, "k": k, "num_threads": num_threads}
        return _compute(*tensors, mask, causal, lower_right, factor, options)
    return _operator(*tensors, mask, causal, lower_right, factor, tolerance, k, num_threads)


def _autocast(tensor):
    """`tensor` as autocast gives it to the function."""
    casts = tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.device.type == "cpu"
    return tensor.to(torch.get_autocast_dtype("cpu")) if casts else tensor


def _computes(query, key, value, mask, dropout_p, causal, enable_gqa):
    """Whether icecore computes this call: it is valid, and nothing but a plain result on a CPU is wanted."""
    tensors = [query, key, value] if mask is None else [query, key, value, mask]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        _warn_of_gradient()
        return False
    if dropout_p > 0 or (causal and mask is not None) or torch.jit.is_tracing():
        return False
    if not all(tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_nested for tensor in tensors):
        return False
    if any(map(_overrides, tensors)) or _is_transformed(tensors):
        return False
    if query.dtype not in _DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        return False
    if mask is not None and (mask.dtype not in (torch.bool, torch.float32, query.dtype) or mask.ndim > query.ndim):
        return False
    return _shapes_fit(query.shape, key.shape, value.shape, None if mask is None else mask.shape, enable_gqa)


def _shapes_fit(query, key, value, mask, enable_gqa):
    """Whether shapes are such that both torch and icecore compute them."""
    if not 2 <= len(query) == len(key) == len(value) or key[:-1] != value[:-1] or key[-1] != query[-1]:
        return False
    if not (1 <= query[-1] <= _MAX_DIM and 1 <= value[-1] <= _MAX_DIM):
        return False
    if len(query) == 2:
        return not enable_gqa and (mask is None or _broadcast(mask, (query[0], key[0])) == (query[0], key[0]))
    if _broadcast(query[:-3], key[:-3]) is None:
        return False
    heads, key_heads = query[-3], key[-3]
    if heads != key_heads and 1 not in (heads, key_heads) and not (enable_gqa and key_heads and heads % key_heads == 0):
        return False
    scores = (*_leading_shape(query, key), query[-2], key[-2])
    return mask is None or _broadcast(mask, scores) == scores


def _leading_shape(query, key):
    """The axes of the result before (L, d_v): query's and key's, broadcast, with query's heads where key's are shared."""
    if len(query) == 2:
        return ()
    return (*_broadcast(query[:-3], key[:-3]), key[-3] if query[-3] == 1 else query[-3])


def _broadcast(first, second):
    """The shape to which two shapes broadcast, or None."""
    count = max(len(first), len(second))
    pairs = zip((1,) * (count - len(first)) + tuple(first), (1,) * (count - len(second)) + tuple(second), strict=True)
    shape = []
    for one, other in pairs:
        if one != other and 1 not in (one, other):
            return None
        shape.append(other if one == 1 else one)
    return tuple(shape)


_warned = False


def _warn_of_gradient():
    global _warned
    if not (_warned or torch.compiler.is_compiling()):
        _warned = True
        warnings.warn("attention whose gradient is wanted is computed by PyTorch, not by icecore; call the model under "
                      "torch.inference_mode() or torch.no_grad() if it is not trained", UserWarning, stacklevel=4)


def _overrides(tensor):
    """Whether the tensor's class answers torch's functions itself (torch.overrides.has_torch_function counts modes, too)."""
    return type(tensor).__torch_function__ not in (Tensor.__torch_function__, torch._C._disabled_torch_function_impl)


def _is_transformed(tensors):
    """Whether torch.func (vmap, jvp, ...) has wrapped a tensor: no memory lies behind it."""
    if torch.compiler.is_compiling():
        return False
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


def _is_traced(tensors):
    """Whether the call is recorded, or seen by a dispatch mode, rather than just computed: then it goes by the operator."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return any(type(tensor) is not Tensor and not isinstance(tensor, torch.nn.Parameter) for tensor in tensors)


# ---- The computation ----


def _empty_result(query, key, value):
    """For the result: the heads of a position lie together, as a model's next layer wants them, which then copies nothing."""
    shape = (*_leading_shape(query.shape, key.shape), query.shape[-2], value.shape[-1])
    if len(shape) < 3:
        return query.new_empty(shape)
    *batch, heads, queries, width = shape
    return query.new_empty((*batch, queries, heads, width)).transpose(-2, -3)


def _compute(query, key, value, mask, is_causal, lower_right, scale, options):
    """A call that `_computes` has seen, on tensors with memory."""
    out = _empty_result(query, key, value)
    if query.ndim >= 3:
        batch, key_heads = out.shape[:-3], key.shape[-3]
        query = query.expand(*batch, out.shape[-3], *query.shape[-2:])
        key, value = (tensor.expand(*batch, key_heads, *tensor.shape[-2:]) for tensor in (key, value))
    options = {**options, "scale": scale}
    for index in np.ndindex(out.shape[:-4]):
        part = mask if mask is None or mask.ndim <= 4 else mask.expand(*out.shape[:-4], *mask.shape[-4:])[index]
        _attend(query[index], key[index], value[index], part, is_causal, lower_right, options, out[index])
    return out


def _attend(query, key, value, mask, is_causal, lower_right, options, out):
    """Of at most four axes. Causal top-left is bottom-right of as many keys as queries; queries after them see every key."""
    if not is_causal:
        attention(query, key, value, attn_mask=mask, causal=lower_right, out=out, **options)
        return
    count = min(query.shape[-2], key.shape[-2])
    first = [tensor[..., :count, :] for tensor in (query, key, value)]
    attention(*first, causal=True, out=out[..., :count, :], **options)
    if count < query.shape[-2]:
        attention(query[..., count:, :], key, value, out=out[..., count:, :], **options)


@torch.library.custom_op("icecore::scaled_dot_product_attention", mutates_args=(), device_types="cpu")
def _operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    lower_right: bool,
    scale: float | None,
    tolerance: float | None,
    k: int | None,
    num_threads: int | None,
) -> Tensor:
    options = {"tolerance": tolerance, "k": k, "num_threads": num_threads}
    return _compute(query, key, value, attn_mask, is_causal, lower_right, scale, options)


@_operator.register_fake
def _(query, key, value, attn_mask, is_causal, lower_right, scale, tolerance, k, num_threads):
    return _empty_result(query, key, value)
