"""PyTorch: attention on CPU tensors, torch's own function with a tolerance, and that function replaced inside a `with`.

    import icecore.torch

    with torch.inference_mode(), icecore.torch.replace_sdpa(tolerance=0.04):
        model(**inputs)
"""

import contextlib
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.overrides import TorchFunctionMode

import icecore

__all__ = ["as_array", "attention", "replace_sdpa", "scaled_dot_product_attention", "varlen_attention"]

#: What icecore computes on a CPU; float64 goes to an oracle, which nobody wants by way of PyTorch.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_DIM = 576


# ---- Tensors and arrays ----


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
        What is no tensor, is not on the CPU, or requires grad while gradients are on.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}; arrays go to icecore.attention")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; expected a tensor on the CPU")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires grad, and icecore has no gradients; expected a call under torch.no_grad(), "
                         f"or {name}.detach()")
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _tensor(array, dtype):
    """The reverse of `as_array`."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def attention(query, key, value, /, *, out=None, **options):
    """`icecore.attention` on CPU tensors, without copying them.

    Parameters
    ----------
    query : Tensor, shape (..., H, L, d), (H, L, d) or (L, d)
        float32, float16, bfloat16 or float64, any strides.
    key : Tensor, shape (..., H_k, S, d)
    value : Tensor, shape (..., H_k, S, d_v)
    out : Tensor, optional
        Result: shape (..., L, d_v), query's dtype, sharing no memory with the inputs.
    **options
        Of `icecore.attention`, under its names and with its meaning: ``causal=True`` is aligned bottom-right, and query heads
        may share key heads. `attn_mask`, `key_ranges`, `metric`, `sink_logits` and `alibi_slopes` may be tensors.

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
    result = icecore.attention(*arrays, out=None if out is None else as_array(out, "out"), **options)
    parts = list(result) if isinstance(result, tuple) else [result]
    parts[0] = _tensor(parts[0], query.dtype) if out is None else out
    if options.get("return_lse"):
        parts[1] = torch.from_numpy(parts[1])
    return parts[0] if len(parts) == 1 else tuple(parts)


# ---- Packed sequences ----


def varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k, /, *, causal=False, window=None, out=None, return_lse=False,
                     **options):
    """Attention of sequences that are packed one after another, each to its own keys; as flash-attention's varlen functions.

    Parameters
    ----------
    query : Tensor, shape (total_q, H, d)
        float32, float16 or bfloat16, any strides.
    key : Tensor, shape (total_k, H_k, d)
    value : Tensor, shape (total_k, H_k, d_v)
    cu_seqlens_q, cu_seqlens_k : Tensor or array_like of integers, shape (sequences + 1,)
        Where sequences begin, and last where they end: from 0, not falling, to total_q and total_k.
    causal : bool
        In each sequence, aligned bottom-right: its last query sees all of its keys.
    window : int or (int, int), optional
        As in `icecore.attention`; a pair is flash-attention's ``window_size``. Exact attention only.
    out : Tensor, optional
        Result: shape (total_q, H, d_v), query's dtype, sharing no memory with the inputs.
    return_lse : bool
        Also return the logarithms of the sums of exponentials.
    **options
        `k`, `tolerance`, `scale`, `softcap`, `sink_logits`, `num_threads` and `seed`, as in `icecore.attention`.

    Returns
    -------
    out : Tensor, shape (total_q, H, d_v), query's dtype
    lse : Tensor of float32, shape (H, total_q)
        Only with return_lse.

    Raises
    ------
    TypeError, ValueError
        As `attention`; and for sequences that do not fit.

    Notes
    -----
    Exact: one call, whose `key_ranges` say what a query sees; its cost is that of the visible keys, its memory 16 bytes for
    each query besides `out`. With k or a tolerance each sequence is a call of its own, with cells of its own.
    """
    for tensor, name in ((query, "query"), (key, "key"), (value, "value")):
        if as_array(tensor, name).ndim != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected three axes: (total, heads, dim)")
    known = {"k", "tolerance", "scale", "softcap", "sink_logits", "num_threads", "seed"}
    if unknown := options.keys() - known:
        raise TypeError(f"varlen_attention() got an unexpected keyword argument {min(unknown)!r}")
    starts = _check_starts(cu_seqlens_q, len(query), "q"), _check_starts(cu_seqlens_k, len(key), "k")
    if len(starts[0]) != len(starts[1]):
        raise ValueError(f"cu_seqlens_q is of {len(starts[0]) - 1} sequences and cu_seqlens_k of {len(starts[1]) - 1}")
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    if out is None:
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
    lse = query.new_empty(query.shape[:2], dtype=torch.float32) if return_lse else None
    result = out.transpose(0, 1)
    if options.get("k") is None and options.get("tolerance") is None:
        parts = [(slice(None), slice(None), {"key_ranges": _ranges_of(*starts, causal, window)})]
    elif window is not None:
        raise ValueError(f"window={window} with k or tolerance; expected None, as windows are exact")
    else:
        parts = [(slice(*q), slice(*k), {"causal": causal}) for q, k in zip(*map(_pairs, starts), strict=True)]
    for own, keys, how in parts:
        returned = attention(query[:, own], key[:, keys], value[:, keys], out=result[:, own], return_lse=return_lse, **how,
                             **options)
        if return_lse:
            lse[:, own] = returned[1]
    return (out, lse) if return_lse else out


def _check_starts(given, total, name):
    """cu_seqlens as an array of int64, of sequences that fill `total` rows."""
    starts = as_array(given, f"cu_seqlens_{name}") if isinstance(given, Tensor) else np.asarray(given)
    if starts.dtype.kind not in "iu":
        raise TypeError(f"cu_seqlens_{name} has dtype {starts.dtype}; expected integers")
    if starts.ndim != 1 or len(starts) < 1:
        raise ValueError(f"cu_seqlens_{name} has shape {starts.shape}; expected (sequences + 1,)")
    starts = starts.astype(np.int64)
    if starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        raise ValueError(f"cu_seqlens_{name} must go from 0 to {total}, the rows of its tensor, without falling")
    return starts


def _pairs(starts):
    return zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)


def _ranges_of(queries, keys, causal, window):
    """(total_q, 2): what each query may see of the keys of its sequence; both cu_seqlens."""
    counts = np.diff(queries)
    first, end = np.repeat(keys[:-1], counts), np.repeat(keys[1:], counts)
    position = end - np.repeat(queries[1:], counts) + np.arange(counts.sum())  # of queries among the keys
    low, high = first, np.minimum(end, position + 1) if causal else end
    if window is not None:
        one = np.zeros((1, 1), np.float32)
        icecore.attention(one, one, one, window=window)  # checks it
        pair = isinstance(window, (tuple, list))
        left, right = window if pair else (window - 1, window - 1)
        low = low if pair and left < 0 else np.maximum(low, position - left)
        high = high if pair and right < 0 else np.minimum(high, position + right + 1)
    low = np.minimum(low, end)
    return np.stack([low, np.maximum(low, high)], axis=-1)


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


# ---- In place of torch's function ----


class _Replacement(TorchFunctionMode):
    def __init__(self, min_keys, options):
        super().__init__()
        self.min_keys, self.options = min_keys, options

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(self, query, key, *args, **kwargs):
        options = self.options if key.shape[-2] >= self.min_keys else {}
        return scaled_dot_product_attention(query, key, *args, **kwargs, **options)


@contextlib.contextmanager
def replace_sdpa(*, tolerance=None, k=None, min_keys=4096, num_threads=None):
    """Inside the `with`, this thread's calls of torch's scaled_dot_product_attention are icecore's.

    Parameters
    ----------
    tolerance, k, num_threads
        As in `icecore.attention`. Neither tolerance nor k: exact.
    min_keys : int
        Calls of fewer keys are exact.

    Raises
    ------
    TypeError, ValueError
        Arguments that `icecore.attention` would refuse, before the block is entered.

    Notes
    -----
    Nothing is patched: other threads, and this one after the block, call PyTorch's function. What icecore cannot compute,
    PyTorch does (see `scaled_dot_product_attention`).

    Calls are seen where Python makes them by ``torch.nn.functional.scaled_dot_product_attention``. Those inside
    `torch.nn.MultiheadAttention`, and so inside `torch.nn.TransformerEncoderLayer`, are not.
    """
    options = {"tolerance": tolerance, "k": k, "num_threads": num_threads}
    if not torch.compiler.is_compiling():
        one = np.zeros((1, 1), np.float32)
        icecore.attention(one, one, one, **options)
    if isinstance(min_keys, bool) or not isinstance(min_keys, int) or min_keys < 0:
        raise ValueError(f"min_keys must be an integer of at least 0, got {min_keys!r}")
    with _Replacement(min_keys, options):
        yield
