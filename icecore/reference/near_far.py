"""Near/far attention: a treecode for softmax, cells under parents, as the C core computes it but in float64."""

from __future__ import annotations

import numpy as np

from icecore.reference.cells import build_tree
from icecore.reference.dense import softmax_sum
from icecore.reference.random import segment_seed

#: Keys of the largest segments, unless a block has more; of pairs that are merged as soon as they are complete.
LARGEST_SEGMENT, MERGED_AT_ONCE = 32768, 2048


def merged_from(first, size, block):
    """How many blocks there must be for the `size` blocks at `first` and as many behind them to be one segment."""
    if first >= 6 * size or 2 * size * block <= MERGED_AT_ONCE:
        return first + 2 * size
    return (7 * size | 1) + first // size  # an odd number


def sealed_ranges(blocks, block, sinks):
    """The segments of a stack of blocks: (first, end) key ranges past the sinks."""
    ranges, first = [], 0
    while first < blocks:
        size = 1
        while first % (2 * size) == 0 and 2 * size * block <= LARGEST_SEGMENT and blocks >= merged_from(first, size, block):
            size *= 2
        begin, end = max(first * block, sinks), (first + size) * block
        if end > begin:
            ranges.append((begin, end))
        first += size
    return ranges


def exact_and_sealed(position, keys, *, causal, block, sinks):
    """For a query at `position`: the keys it sees exactly, and the sealed ranges it sees by cells."""
    if not causal:
        sinks = min(sinks, keys)
        return np.arange(sinks), [(sinks, keys)] if sinks < keys else []
    sealed_blocks = max(position // block - 1, 0)
    open_begin = sealed_blocks * block
    if open_begin <= sinks:
        return np.arange(position + 1), []
    return np.r_[:sinks, open_begin : position + 1], sealed_ranges(sealed_blocks, block, sinks)


#: Parents are expanded at this share of the risk that opens a cell; or until they hold so many times the wanted keys,
#: and at least so many.
EXPAND_SHARE, EXPAND_FACTOR, LEAST_EXPANDED = 0.2, 16, 2048
#: A query of nothing but zeros leaves an order of risks.
LEAST_SPREAD = 2.0**-126
#: All cells are opened where those that a mask cuts leave more than one in so many of the sealed keys.
DENSE_SHARE = 6


def log_risk(query, scale, cells, tree):
    """(C,): log of n_c exp(z_c) sqrt(x_c) exp(h(x_c)) w_c, what the mean of a cell of a tree may be wrong by (icecore.h)."""
    spread = scale**2 * ((query / tree.metric) ** 2 @ tree.component_variance)
    x = spread * cells.variance
    h = x / 4 * (1 + x / (12 + x))
    with np.errstate(divide="ignore"):
        of_variances = np.log(cells.variance) + np.log(cells.value_variance)
        least = np.log(np.maximum(spread, LEAST_SPREAD))
        return log_mass(query, scale, cells, tree) + h + 0.5 * (least + of_variances)


def log_mass(query, scale, cells, tree):
    """(C,): log of n_c exp(z_c), what the mean of a cell of a tree stands for."""
    return scale * (cells.mean_key @ (query / tree.metric)) + np.log(cells.count)


def least_risk(risk, count, wanted):
    """The largest threshold at or above which cells hold `wanted` keys; -inf where all together hold fewer."""
    order = np.argsort(-risk, kind="stable")
    held = np.cumsum(count[order])
    return -np.inf if count.sum() <= wanted else risk[order[np.searchsorted(held, wanted)]]


def gap(risk, threshold):
    """How clearly the risks lie on one side or the other."""
    finite = np.isfinite(risk)
    inside, outside = risk[finite & (risk >= threshold)], risk[finite & (risk < threshold)]
    if not len(inside) or not len(outside):
        return np.inf
    return inside.min() - outside.max()


def marked(bias, first, tree):
    """Of a row of the mask (S,): which parents and cells it hides whole, and of which it hides or biases some keys."""
    seen = [bias[first + members] for members in tree.cells.members]
    hidden = np.array([np.isneginf(b).all() for b in seen])
    cut = np.array([(b != 0).any() for b in seen]) & ~hidden
    children = [tree.parent == p for p in range(len(tree.parents.count))]
    parent_hidden = np.array([hidden[c].all() for c in children])
    parent_cut = np.array([(hidden | cut)[c].any() for c in children]) & ~parent_hidden
    return (parent_hidden, parent_cut), (hidden, cut)


def attend_one(query, key, value, bias, trees, exact, *, k, risk, far_field, visit, scale):
    """One query (d,) over key (S, d), value (S, dv): exact keys plus trees (a list of (first key, Tree)).

    bias (S,) is its row of the mask. Nodes that it hides stand for nothing; those that it cuts are opened, and all where
    these leave more than a sixth of the sealed keys.

    Returns out (dv,), lse, near keys, captured mass, margin: the gap in log risk between what was opened (expanded) last and
    what was not.
    """
    exact = exact[~np.isneginf(bias[exact])]
    exact_score = scale * (key[exact] @ query) + bias[exact]  # (E,)
    if not trees:
        out, lse = softmax_sum(exact_score[None], value[exact])
        return out[0], lse[0], 0, 1.0 if len(exact) else 0.0, np.inf
    marks = [marked(bias, first, tree) for first, tree in trees]
    left_in_cut = sum(
        np.count_nonzero(~np.isneginf(bias[first + tree.cells.members[c]]))
        for (first, tree), (_, (_, cut)) in zip(trees, marks, strict=True) for c in np.flatnonzero(cut)
    )
    if DENSE_SHARE * left_in_cut > sum(tree.parents.count.sum() for _, tree in trees):
        marks = [tuple((hidden, ~hidden) for hidden, _ in mark) for mark in marks]  # all are opened
    node_risk = [
        tuple(np.where(hidden | cut, -np.inf, log_risk(query, scale, nodes, tree))
              for nodes, (hidden, cut) in zip((tree.parents, tree.cells), mark, strict=True))
        for (_, tree), mark in zip(trees, marks, strict=True)
    ]
    parent_risk = np.concatenate([p for p, _ in node_risk])
    parent_count = np.concatenate([tree.parents.count for _, tree in trees])
    sealed, wanted = parent_count.sum(), k if far_field else visit
    if risk is not None:
        far = [
            np.where(hidden | cut, -np.inf, log_mass(query, scale, tree.parents, tree))
            for (_, tree), ((hidden, cut), _) in zip(trees, marks, strict=True)
        ]
        masses = np.concatenate([exact_score, *far])
        guess, guess_lse = softmax_sum(masses[None], np.concatenate([value[exact], *(t.parents.mean_value for _, t in trees)]))
        with np.errstate(divide="ignore"):  # a guess of 0, where the mask leaves nothing to guess from
            threshold = np.log(risk) + guess_lse[0] + np.log(np.linalg.norm(guess[0]))
        expand = threshold + np.log(EXPAND_SHARE)
    elif far_field and wanted < sealed // EXPAND_FACTOR and LEAST_EXPANDED < sealed:
        expand = least_risk(parent_risk, parent_count, max(EXPAND_FACTOR * wanted, LEAST_EXPANDED))
    else:
        expand = -np.inf
    margin = gap(parent_risk, expand)
    expanded = [
        ((p >= expand) | cut) & ~hidden for (p, _), ((hidden, cut), _) in zip(node_risk, marks, strict=True)
    ]
    cell_risk = np.concatenate([c[e[t.parent]] for (_, c), e, (_, t) in zip(node_risk, expanded, trees, strict=True)])
    cell_count = np.concatenate([t.cells.count[e[t.parent]] for e, (_, t) in zip(expanded, trees, strict=True)])
    if risk is None:
        threshold = -np.inf if wanted >= sealed else least_risk(cell_risk, cell_count, wanted)
    margin = min(margin, gap(cell_risk, threshold))

    near, far_score, far_value = [np.empty(0, int)], [np.empty(0)], [np.empty((0, value.shape[1]))]
    for (first, tree), mark, (_, risks), expand_parent in zip(trees, marks, node_risk, expanded, strict=True):
        (parent_hidden, _), (hidden, cut) = mark
        reached = expand_parent[tree.parent] & ~hidden
        opened = reached & ((risks >= threshold) | cut)
        near += [first + tree.cells.members[c] for c in np.flatnonzero(opened)]
        for nodes, closed in ((tree.parents, ~expand_parent & ~parent_hidden), (tree.cells, reached & ~opened)):
            far_score.append(log_mass(query, scale, nodes, tree)[closed])
            far_value.append(nodes.mean_value[closed])
    near, far_score, far_value = np.concatenate(near), np.concatenate(far_score), np.concatenate(far_value)
    near = near[~np.isneginf(bias[near])]
    near_score = scale * (key[near] @ query) + bias[near]
    top = max(far_score.max(initial=-np.inf), exact_score.max(initial=-np.inf), near_score.max(initial=-np.inf))
    top = 0.0 if np.isneginf(top) else top  # nothing is visible
    missed = np.exp(far_score - top).sum()
    if not far_field and len(near) > k:
        kept = np.zeros(len(near), bool)
        kept[np.argsort(-near_score, kind="stable")[:k]] = True
        missed += np.exp(near_score[~kept] - top).sum()
        near, near_score = near[kept], near_score[kept]
    scores, values = [exact_score, near_score], [value[exact], value[near]]
    if far_field:
        scores.append(far_score)
        values.append(far_value)
    out, lse = softmax_sum(np.concatenate(scores)[None], np.concatenate(values))
    summed = np.exp(exact_score - top).sum() + np.exp(near_score - top).sum()
    return out[0], lse[0], len(near), summed / (summed + missed) if summed + missed else 0.0, margin


def near_far_attention(query, key, value, *, k, risk=None, metric=None, far_field=True, causal=False, block=512, sinks=0,
                       visit=None, attn_mask=None, cell_size=32, scale=None, seed=0, tree_of=None, return_margin=False):
    """Near/far attention in float64, query by query.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    risk : float or array_like (H,), optional
        Instead of k: the risk, as a share of the output's norm, at which cells are opened; of each query head.
    metric : array_like (H_k, d), optional
        Key components are multiplied and query components divided by it: cells are those of the multiplied keys. Default:
        the own metric of each segment's keys (`cells.key_metric`).
    cell_size : int or array_like (H_k,)
        Keys per cell, of each key head.
    block : int
        Causal: keys per sealed block; the current block and the one before stay open.
    attn_mask : array_like, optional
        Broadcasts to (B, H, L, S): bool, True keeps; or added to the scaled scores.
    tree_of : callable (key, value, cell_size, seed, metric) -> Tree, optional
        Builds a segment's tree; default `build_tree`. Pass one that returns the C core's to compare the rest alone.
    return_margin : bool
        Also return how clearly each query's opened cells are separated from the others (log risk).

    Returns
    -------
    out (B, H, L, dv), lse (B, H, L), near_keys (B, H, L) int32, captured_mass (B, H, L) float32
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    scale = 1.0 / np.sqrt(dim) if scale is None else scale
    mask = np.zeros(()) if attn_mask is None else np.asarray(attn_mask)
    mask = np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else mask.astype(np.float64)
    mask = np.broadcast_to(mask, (batch, heads, queries, keys))
    group = heads // key.shape[1] if heads else 1
    metric = [None] * key.shape[1] if metric is None else np.asarray(metric, np.float64)
    risks = [None] * heads if risk is None else np.broadcast_to(risk, heads)
    tree_of = tree_of or (lambda rows, values, size, seed, own: build_tree(rows, values, cell_size=size, seed=seed, metric=own))
    sizes, built = np.broadcast_to(cell_size, key.shape[1]).tolist(), {}

    def tree(b, head, first, end):
        if (b, head, first, end) not in built:
            rows, values = key[b, head, first:end], value[b, head, first:end]
            built[b, head, first, end] = tree_of(
                rows, values, sizes[head], segment_seed(seed, first, end - first), metric[head]
            )
        return first, built[b, head, first, end]

    out, lse = np.zeros((batch, heads, queries, value.shape[-1])), np.full((batch, heads, queries), -np.inf)
    near, mass = np.zeros((batch, heads, queries), np.int32), np.zeros((batch, heads, queries), np.float32)
    margin = np.full((batch, heads, queries), np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        for b, h, i in np.ndindex(batch, heads, queries):
            position = keys - queries + i
            if keys == 0 or (causal and position < 0):
                continue
            exact, ranges = exact_and_sealed(position, keys, causal=causal, block=block, sinks=sinks)
            result = attend_one(
                query[b, h, i], key[b, h // group], value[b, h // group], mask[b, h, i],
                [tree(b, h // group, first, end) for first, end in ranges], exact,
                k=k, risk=risks[h], far_field=far_field, visit=visit, scale=scale,
            )
            out[b, h, i], lse[b, h, i], near[b, h, i], mass[b, h, i], margin[b, h, i] = result
    returned = (out, lse, near, mass)
    return (*returned, margin) if return_margin else returned


