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


def _antidiagonal_mass(query, key, stride, rows, block):
    """(H, blocks of rows, blocks of keys): the weight that groups of rows give to groups of keys."""
    import torch

    heads, queries, dim = query.shape
    groups = queries // stride
    rows_of = query.view(heads, groups, stride, dim)
    reverse, keys = rows_of.flip(2).flatten(2), key[0].view(groups, stride * dim)
    diagonal = (rows_of.flip(2)[:, :, : stride // 2] * key[0].view(groups, stride, dim)[:, : stride // 2]).sum((2, 3))
    mass, places = torch.zeros(heads, -(-queries // rows), -(-queries // block)), torch.arange(groups) * stride // block
    later = torch.arange(groups)
    for first in range(0, groups, 512):
        own = slice(first, min(first + 512, groups))
        scores = reverse[:, own] @ keys[: own.stop].T / stride
        scores.masked_fill_(later[: own.stop] > later[own, None], -torch.inf)
        scores[:, later[: own.stop - first], later[own]] = diagonal[:, own] * 2 / stride
        pooled = torch.zeros(heads, scores.shape[1], mass.shape[2]).index_add_(2, places[: own.stop],
                                                                                torch.softmax(scores * dim**-0.5, -1))
        mass.index_add_(1, later[own] * stride // rows, pooled)
    return mass


def torch_xattention(query, key, value, stride, threshold, rows=48, block=128):
    """Blocks of keys by antidiagonals of scores, until they hold a share of the mass: those of a block of rows are gathered."""
    import torch

    with torch.no_grad():
        query, key, value = (array.contiguous() for array in _tensors(query, key, value))
        heads, queries, dim = query.shape
        out, positions = torch.empty(heads, queries, value.shape[-1]), torch.arange(queries)
        mass = _antidiagonal_mass(query, key, stride, rows, block)
        whole = (positions[::rows] + 1) // block  # blocks that all of the rows see
        for head in range(heads):
            for number, first in enumerate(range(0, queries, rows)):
                own, seen = positions[first : first + rows], int(whole[number])
                share, behind = mass[head, number], positions[seen * block : int(positions[first : first + rows][-1]) + 1]
                order = share[1:seen].argsort(descending=True) + 1
                held = share[:1].sum() * (seen > 0) + share[seen:].sum()
                taken = int((held + share[order].cumsum(0) - share[order] < threshold * share.sum()).sum())
                blocks = torch.cat([torch.arange(min(seen, 1)), order[:taken]])
                near = torch.cat([(blocks[:, None] * block + torch.arange(block)).flatten(), behind])
                scores = query[head, own] @ key[0, near].T * dim**-0.5
                scores[:, len(near) - len(behind) :].masked_fill_(behind > own[:, None], -torch.inf)
                out[head, own] = torch.softmax(scores, -1) @ value[0, near]
        return out[None].numpy()


def _morton_codes(vectors, directions, bits=10):
    """(..., d), (axes, d) -> (...) int64, as `icecore.selectors.Zeta` has them."""
    import torch

    x = torch.nn.functional.normalize(vectors.double(), dim=-1) @ directions.T * (vectors.shape[-1] ** 0.5 / 8) + 0.5
    cells = (x * 2**bits).long().clamp_(0, 2**bits - 1)
    code = torch.zeros(cells.shape[:-1], dtype=torch.long)
    for bit in range(bits):
        for axis in range(len(directions)):
            code |= (cells[..., axis] >> bit & 1) << (bit * len(directions) + axis)
    return code


def torch_zeta(query, key, value, k, directions, rows=32):
    """Neighbours on a Z-order curve: of the places about a row's own, those of keys that it sees are counted on either side."""
    import torch

    with torch.no_grad():
        query, key, value = (array.contiguous() for array in _tensors(query, key, value))
        directions = torch.from_numpy(directions).double()
        heads, queries, dim = query.shape
        out, positions = torch.empty(heads, queries, value.shape[-1]), torch.arange(queries)
        places, codes = _morton_codes(query, directions), _morton_codes(key[0], directions)
        order = codes.argsort(stable=True)
        for first in range(0, queries, rows):
            own = positions[first : first + rows]
            seen = order[order <= int(own[-1])]
            here = torch.searchsorted(codes[seen], places[:, own])  # (H, rows)
            reach = torch.arange(1, k + rows)
            at = torch.stack([here[..., None] - reach, here[..., None] + reach - 1])  # (2, H, rows, reach), outwards
            inside = (at >= 0) & (at < len(seen))
            keys = seen[at.clamp_(0, len(seen) - 1)]
            inside &= keys <= own[:, None]
            rank = inside.cumsum(-1)  # of those seen
            before, behind = rank[..., -1].clamp(max=k)
            before = torch.minimum(before, (k - behind).clamp(min=(k + 1) // 2))
            chosen = inside & (rank <= torch.stack([before, k - before])[..., None])
            few = first < k  # some rows see fewer keys
            for head in range(heads):
                near, kept = keys[:, head].transpose(0, 1).flatten(1), chosen[:, head].transpose(0, 1).flatten(1)
                if not few:
                    near = near[kept].view(len(own), k)
                scores = (key[0, near] @ query[head, own, :, None])[..., 0] * dim**-0.5
                if few:
                    scores.masked_fill_(~kept, -torch.inf)
                out[head, own] = (torch.softmax(scores, -1)[:, None] @ value[0, near])[:, 0]
        return out[None].numpy()


def torch_vattention(query, key, value, k, sinks, window, epsilon, delta):
    """The largest scores and a sample of the rest: the first of the rest in one random order of the keys, for all rows."""
    import torch

    with torch.no_grad():
        query, key, value = _tensors(query, key, value)
        heads, queries, dim = query.shape
        deviate = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - delta / 2))
        out, shuffled = torch.empty(heads, queries, value.shape[-1]), torch.randperm(queries)
        for first in range(0, queries, ROWS):
            rows = torch.arange(first, min(first + ROWS, queries))
            order = shuffled[shuffled <= int(rows[-1])]
            scores = query[:, rows] @ key[:, order].transpose(1, 2) * dim**-0.5
            hidden, local = order > rows[:, None], (order < sinks) | (order > rows[:, None] - window)
            scores.masked_fill_(hidden, -torch.inf)
            middle = scores.masked_fill(local, -torch.inf)
            if k < len(order):
                fixed = (middle >= middle.topk(k, sorted=False).values.amin(-1, keepdim=True)) | local
            else:
                fixed = torch.ones_like(scores, dtype=torch.bool)
            rest = ~fixed & ~hidden
            rank = rest.cumsum(-1)
            n = rank[..., -1:]
            base = (-(-n // 40)).clamp(min=32).minimum(n)
            weights = torch.exp(scores - scores.amax(-1, keepdim=True))
            sampled = weights * (rest & (rank <= base))
            mean = sampled.sum(-1, keepdim=True) / base.clamp(min=1)
            variance = ((sampled**2).sum(-1, keepdim=True) - base * mean**2).clamp(min=0) / (base - 1).clamp(min=1)
            total = (weights * fixed).sum(-1, keepdim=True) + n * mean
            size = torch.ceil((deviate * n / (epsilon * total)) ** 2 * variance).maximum(base).minimum(n)
            weights *= torch.where(fixed, 1.0, (rest & (rank <= size)) * (n / size.clamp(min=1)))
            out[:, rows] = weights @ value[:, order] / weights.sum(-1, keepdim=True)
        return out[None].numpy()


def torch_arkvale(query, key, value, k, page=32, oldest=2, newest=1):
    """Pages by the largest scores in their boxes: of all scores those in other pages are hidden."""
    import torch

    with torch.no_grad():
        query, key, value = _tensors(query, key, value)
        pages = key[0, : key.shape[1] // page * page].unflatten(0, (-1, page))
        high, low = pages.amax(1), pages.amin(1)
        centre = (high + low) / 2
        reach = (pages - centre[:, None]).abs().mean(1)
        high, low = centre + reach, centre - reach

        def weigh(scores, rows):
            own, whole, seen = query[:, rows], (rows[:, None] + 1) // page, scores.shape[-1] // page
            bound, place = own.clamp(min=0) @ high[:seen].T + own.clamp(max=0) @ low[:seen].T, torch.arange(seen)
            bound.masked_fill_((place < oldest) | (place >= whole - newest), torch.inf).masked_fill_(place >= whole, -torch.inf)
            best = bound.topk(min(-(-k // page), seen), sorted=False).indices
            dropped = torch.ones_like(bound, dtype=torch.bool).scatter_(-1, best, False) & (place < whole)
            scores[..., : seen * page].masked_fill_(dropped.repeat_interleave(page, -1), -torch.inf)
            return scores

        return _over_rows(query, key, value, weigh)


def _spherical_clusters(rows, size=16, iterations=10):
    """(segments, N, d) -> (segments, N) int: the cluster of each row of a segment, by its direction from their mean."""
    import torch

    centred = rows - rows.mean(1, keepdim=True)
    picked = torch.randperm(rows.shape[1])[: -(-rows.shape[1] // size)]
    centroids = torch.nn.functional.normalize(centred[:, picked], dim=-1)
    for iteration in range(iterations):
        label = (centred @ centroids.transpose(1, 2)).argmax(-1)
        if iteration < iterations - 1:
            sums = torch.zeros_like(centroids).scatter_add_(1, label[..., None].expand_as(centred), centred)
            centroids = torch.nn.functional.normalize(sums, dim=-1)
    return label


def torch_retroinfer(query, key, value, retrieval, estimation, segment, sinks=4, local=64):
    """Clusters in three zones: keys of clusters that are not retrieved are hidden, and the estimated ones join as means."""
    import torch

    with torch.no_grad():
        query, key, value = _tensors(query, key, value)
        heads, queries, dim = query.shape
        clustered = slice(sinks, sinks + (queries - sinks - local) // segment * segment)
        rows = key[0, clustered].unflatten(0, (-1, segment))
        label = _spherical_clusters(rows) + segment * torch.arange(len(rows))[:, None]
        label = label.unique(return_inverse=True)[1]  # without empty ones
        first = torch.cat([torch.zeros(1, dtype=torch.long), label.amax(1) + 1])  # a segment's first cluster
        label, count = label.flatten(), label.flatten().bincount()

        def means(array):
            return torch.zeros(len(count), array.shape[-1]).index_add_(0, label, array[0, clustered]) / count[:, None]

        mean_key, mean_value = means(key), means(value)
        out, positions = torch.empty(heads, queries, value.shape[-1]), torch.arange(queries)
        for begin in range(0, queries, ROWS):
            own = positions[begin : begin + ROWS, None]
            sealed = (own + 1 - sinks - local).clamp(min=0) // segment
            seen, end, tail = first[sealed], int(own[-1]) + 1, sinks + segment * sealed
            all_seen = int(seen[-1])
            rank = query[:, own[:, 0]] @ mean_key[:all_seen].T * dim**-0.5
            rank.masked_fill_(torch.arange(all_seen) >= seen, -torch.inf)
            retrieved, kept = torch.ceil(retrieval * seen), torch.ceil((retrieval + estimation) * seen)
            best, place = rank.topk(int(kept.max())), torch.arange(int(kept.max()))
            others = (place >= retrieved).expand_as(best.values)
            dropped = torch.ones_like(rank, dtype=torch.bool).scatter_(-1, best.indices, others)
            mass = (best.values + count.log()[best.indices]).masked_fill_((place < retrieved) | (place >= kept), -torch.inf)
            mass = torch.full_like(rank, -torch.inf).scatter_(-1, best.indices, mass)
            scores = query[:, own[:, 0]] @ key[:, :end].transpose(1, 2) * dim**-0.5
            scores.masked_fill_(positions[:end] > own, -torch.inf)
            behind = sinks + segment * int(sealed[-1])
            hidden = dropped[..., label[: behind - sinks]] & (positions[sinks:behind] < tail)
            scores[..., sinks:behind].masked_fill_(hidden, -torch.inf)
            weights = torch.softmax(torch.cat([scores, mass], -1), -1)
            out[:, own[:, 0]] = weights @ torch.cat([value[0, :end], mean_value[:all_seen]])
        return out[None].numpy()
