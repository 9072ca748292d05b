"""The methods of `icecore.selectors` in PyTorch's operations, on the CPU: one key head and its query heads, causal.

Each is written as PyTorch does it best: whole blocks of rows, dense products, its own top-k. Arrays (1, H, L, d) and
(1, 1, S, d) in, (1, H, L, dv) out.
"""

import numpy as np

#: Rows that are scored at a time.
ROWS = 512


def _tensors(*arrays):
    import torch

    return [torch.from_numpy(np.ascontiguousarray(array, np.float32))[0] for array in arrays]


def _over_rows(query, key, value, weigh):
    """Attention of blocks of rows by ``weigh(scores, positions)``, of (H, rows, keys that some row sees), -inf where hidden."""
    import torch

    out, offset = torch.empty(*query.shape[:2], value.shape[-1]), key.shape[1] - query.shape[1]
    for first in range(0, query.shape[1], ROWS):
        rows = torch.arange(first, min(first + ROWS, query.shape[1])) + offset
        end = int(rows[-1]) + 1
        scores = query[:, rows - offset] @ key[:, :end].transpose(1, 2) * query.shape[-1] ** -0.5
        scores.masked_fill_(torch.arange(end) > rows[:, None], -torch.inf)
        out[:, rows - offset] = torch.softmax(weigh(scores, rows), -1) @ value[:, :end]
    return out[None].numpy()


def torch_top_k(query, key, value, k):
    """Exact top-k: scores below the k-th largest are hidden."""
    import torch

    def weigh(scores, rows):
        if k >= scores.shape[-1]:
            return scores
        return scores.masked_fill_(scores < scores.topk(k, sorted=False).values.amin(-1, keepdim=True), -torch.inf)

    with torch.no_grad():
        return _over_rows(*_tensors(query, key, value), weigh)


def torch_minference(query, key, value, vertical, slash, block=48, voters=64):
    """Vertical and slash lines: a block's keys are gathered and masked by its rows' positions."""
    import torch

    with torch.no_grad():
        query, key, value = _tensors(query, key, value)
        heads, queries, dim = query.shape
        out, positions = torch.empty(heads, queries, value.shape[-1]), torch.arange(queries)
        scores = query[:, -voters:] @ key.transpose(1, 2) * dim**-0.5
        scores.masked_fill_(positions > positions[-voters:, None], -torch.inf)
        votes = torch.softmax(scores, -1)  # (H, voters, S)
        columns = votes.sum(1)
        distance = (positions[-voters:, None] - positions).clamp_(min=0).flatten()
        diagonals = torch.zeros(heads, queries).index_add_(1, distance, votes.flatten(1))
        columns[:, :30], diagonals[:, :100] = torch.inf, torch.inf
        for head in range(heads):
            lines = columns[head].topk(vertical).indices, diagonals[head].topk(slash).indices
            for first in range(0, queries, block):
                rows, marks = positions[first : first + block], torch.zeros(first + 2 * block, dtype=torch.bool)
                begins = first - lines[1]
                squares = (begins[begins > -block, None] + torch.arange(block)).flatten()
                marks[squares[squares >= 0]] = True
                marks[lines[0][lines[0] < first]] = True
                seen = marks[:queries].nonzero()[:, 0]
                scores = query[head, rows] @ key[0, seen].T * dim**-0.5
                scores.masked_fill_(seen > rows[:, None], -torch.inf)
                out[head, rows] = torch.softmax(scores, -1) @ value[0, seen]
        return out[None].numpy()


def torch_block_sparse(query, key, value, k, rows=48, block=64):
    """Blocks of keys by the scores of mean queries with mean keys: those of a block of rows are gathered."""
    import torch

    with torch.no_grad():
        query, key, value = (array.contiguous() for array in _tensors(query, key, value))
        heads, queries, dim = query.shape
        out, positions = torch.empty(heads, queries, value.shape[-1]), torch.arange(queries)
        blocks = queries // block
        keys, values = (array[0, : blocks * block].view(blocks, block, -1) for array in (key, value))
        means = keys.mean(1)
        for first in range(0, queries, rows):
            own, seen = positions[first : first + rows], (first + 1) // block
            pooled = query[:, own].mean(1) @ means[:seen].T  # (H, blocks)
            best = pooled.topk(min(-(-k // block), seen)).indices
            behind = slice(seen * block, int(own[-1]) + 1)
            for head in range(heads):
                near = torch.cat([keys[best[head]].flatten(0, 1), key[0, behind]])
                scores = query[head, own] @ near.T * dim**-0.5
                hidden = positions[behind] > own[:, None]
                scores[:, -hidden.shape[1] :].masked_fill_(hidden, -torch.inf)
                weights = torch.softmax(scores, -1)
                out[head, own] = weights @ torch.cat([values[best[head]].flatten(0, 1), value[0, behind]])
        return out[None].numpy()


def torch_sparq(query, key, value, k, components=16, local=32):
    """Keys by the scores of each query's largest components, which others are zero besides, and the running mean of values."""
    import torch

    with torch.no_grad():
        query, key, value = _tensors(query, key, value)
        size = query.abs()
        taken = size.topk(components, sorted=False).indices
        share = size.gather(-1, taken).sum(-1, keepdim=True) / size.sum(-1, keepdim=True)
        sparse = torch.zeros_like(query).scatter_(-1, taken, query.gather(-1, taken)) * (query.shape[-1] * share) ** -0.5
        counts = torch.arange(1, key.shape[1] + 1)
        means, out = value[0].cumsum(0) / counts[:, None], torch.empty(*query.shape[:2], value.shape[-1])
        for first in range(0, query.shape[1], ROWS):
            rows = torch.arange(first, min(first + ROWS, query.shape[1]))
            end = int(rows[-1]) + 1
            hidden, near = torch.arange(end) > rows[:, None], torch.arange(end) > rows[:, None] - local
            scores = (sparse[:, rows] @ key[:, :end].transpose(1, 2)).masked_fill_(hidden, -torch.inf)
            mass = torch.softmax(scores, -1)
            best = scores.masked_fill_(near & ~hidden, torch.inf).topk(min(k, end), sorted=False).indices
            alpha = mass.gather(-1, best).sum(-1, keepdim=True)
            scores = (query[:, rows] @ key[:, :end].transpose(1, 2) * query.shape[-1] ** -0.5).masked_fill_(hidden, -torch.inf)
            weights = alpha * torch.softmax(scores.gather(-1, best), -1)
            out[:, rows] = torch.zeros_like(scores).scatter_(-1, best, weights) @ value[:, :end] + (1 - alpha) * means[rows]
        return out[None].numpy()


def torch_magicpig(query, key, value, bits, tables, sinks=4, local=64, seed=0):
    """Keys by collisions in two tables, counted by a product of sparse matrices; keys less one mean, weights dense."""
    import torch

    with torch.no_grad():
        query, key, value = _tensors(query, key, value)
        dim, generator = query.shape[-1], torch.Generator().manual_seed(seed)
        directions, powers = torch.randn(dim, tables * bits, generator=generator), 1 << torch.arange(bits)
        centred = key[0] - key[0].mean(0)

        def buckets(rows):
            """(N, d) -> (N, all buckets), sparse: 1 where a row lies."""
            found = (((rows @ directions) >= 0).unflatten(-1, (tables, bits)) * powers).sum(-1)
            found += torch.arange(tables) << bits
            begins = torch.arange(0, found.numel() + 1, tables)
            return torch.sparse_csr_tensor(begins, found.flatten(), torch.ones(found.numel()), (len(rows), tables << bits))

        of_keys, lengths = buckets(centred).to_sparse_coo().t().coalesce().to_sparse_csr(), centred.norm(dim=-1)

        def weigh(scores, rows):
            own, end = query[:, rows], scores.shape[-1]
            hits = (buckets(own.flatten(0, 1)) @ of_keys).to_dense()[:, :end].view(scores.shape)
            cosine = (own @ centred[:end].T) / (own.norm(dim=-1, keepdim=True) * lengths[:end])
            same = (1 - torch.acos(cosine.clamp_(-1, 1)) / torch.pi) ** bits
            chance = 1 - (1 - same) ** tables - tables * same * (1 - same) ** (tables - 1)
            near = (torch.arange(end) < sinks) | (torch.arange(end) > rows[:, None] - local)
            return torch.where(near, scores, (scores - chance.log()).masked_fill_(hits < 2, -torch.inf))

        return _over_rows(query, key, value, weigh)
