"""What people would call instead, each at its best: functions of NumPy arrays that return a call without arguments."""

import numpy as np


def torch_sdpa(query, key, value, *, causal, bfloat16=False, threads=2):
    """PyTorch's scaled_dot_product_attention on the CPU; conversion happens here, not in the timed call."""
    import torch

    torch.set_num_threads(threads)
    arrays = [torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (query, key, value)]
    if bfloat16:
        arrays = [a.to(torch.bfloat16) for a in arrays]
    grouped = query.shape[1] != key.shape[1]
    lower_right = causal and query.shape[2] == key.shape[2]

    def call():
        with torch.no_grad():
            return torch.nn.functional.scaled_dot_product_attention(*arrays, is_causal=lower_right, enable_gqa=grouped)

    return call


def torch_array(result):
    """A result of `torch_sdpa` as float32 NumPy."""
    return result.float().numpy()


def naive_numpy(query, key, value, *, causal):
    """The formula in float32 NumPy, one head at a time, with its L x S array."""
    group = query.shape[1] // key.shape[1]
    scale = np.float32(query.shape[-1] ** -0.5)

    def call():
        out = np.empty((*query.shape[:-1], value.shape[-1]), np.float32)
        for b, h in np.ndindex(query.shape[:2]):
            scores = (query[b, h] * scale) @ key[b, h // group].T
            if causal:
                queries, keys = scores.shape
                scores[np.arange(keys) > np.arange(queries)[:, None] + (keys - queries)] = -np.inf
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=1, keepdims=True)
            np.matmul(scores, value[b, h // group], out=out[b, h])
        return out

    return call


def naive_top_k(query, key, value, *, k, causal, window, sinks, rows):
    """Exact top-k attention for some query rows (reference oracle): the ceiling of methods that drop the rest."""
    from icecore import reference

    outs = []
    for row in rows:
        seen = slice(0, row + 1) if causal else slice(None)
        out, _ = reference.top_k_attention(query[:, :, row : row + 1], key[:, :, seen], value[:, :, seen], k=k, causal=causal,
                                           window=window, sinks=sinks)
        outs.append(out)
    return np.concatenate(outs, axis=2)
