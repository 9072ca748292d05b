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


def torch_gather(query, key, value, indices, *, bfloat16=False, threads=2):
    """Attention to given keys in PyTorch: rows gathered for some queries at a time, then einsum or its own attention,
    whichever of these and of the numbers of queries is fastest on the first 512 queries."""
    import time

    import torch

    torch.set_num_threads(threads)
    query, key, value = (torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (query, key, value))
    if bfloat16:
        query, key, value = (a.to(torch.bfloat16) for a in (query, key, value))
    indices = torch.from_numpy(np.ascontiguousarray(indices))
    batch, heads, queries, dim = query.shape
    lists, count = indices.shape[1], indices.shape[-1]
    group = heads // lists  # query heads of one list

    def einsum(q, k, v):
        weights = torch.softmax(torch.einsum("cgd,ckd->cgk", q, k) * dim**-0.5, -1)
        return torch.einsum("cgk,ckd->cgd", weights, v)

    def sdpa(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]

    def call(attend, chunk, queries=queries):
        out = torch.empty(batch, heads, queries, value.shape[-1], dtype=query.dtype)
        with torch.no_grad():
            for b, n in np.ndindex(batch, lists):
                k, v = (a[b, n * key.shape[1] // lists] for a in (key, value))
                own = slice(n * group, (n + 1) * group)
                for i in range(0, queries, chunk):
                    rows = slice(i, min(i + chunk, queries))
                    flat = indices[b, n, rows].reshape(-1)
                    part = (a.index_select(0, flat).view(-1, count, a.shape[-1]) for a in (k, v))
                    out[b, own, rows] = attend(query[b, own, rows].transpose(0, 1), *part).transpose(0, 1)
        return out

    def seconds(way):
        start = time.perf_counter()
        call(*way, queries=min(queries, 512))
        return time.perf_counter() - start

    ways = [(attend, chunk) for attend in (einsum, sdpa) for chunk in (4, 16, 64)]
    seconds(ways[0])
    best = min(ways, key=seconds)
    return lambda: call(*best)


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
