"""Near/far attention: a treecode for softmax, cells under parents, as the C core computes it but in float64."""

from __future__ import annotations

import numpy as np

from icecore.reference.cells import build_tree
from icecore.reference.combine import Choice, attend_chosen, scores_of
from icecore.reference.dense import bias_of, capped, softmax_sum, visible_keys
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


#: A segment's moments come from every so many-th position, of long ones from about so many; fewer rows say too little.
MOMENT_STEP, MAX_POSITIONS, MIN_MOMENT_ROWS = 8, 2048, 64


def query_moments(query, first):
    """E[q q^T] (d, d) of finite queries (group, n, d) at positions first .. first + n - 1; None where they say too little.

    Of every eighth position or, where these are fewer than 64 rows, of all.
    """
    position = first + np.arange(query.shape[1])
    for step in (max(MOMENT_STEP, len(position) // MAX_POSITIONS), 1):
        rows = query[:, position % step == step - 1].reshape(-1, query.shape[2])
        rows = rows[np.isfinite(rows).all(axis=1)]
        if len(rows) >= MIN_MOMENT_ROWS:
            return rows.T @ rows / len(rows)
    return None


#: Parents are expanded at this share of the risk that opens a cell; or until they hold so many times the wanted keys,
#: and at least so many.
EXPAND_SHARE, EXPAND_FACTOR, MIN_EXPANDED = 0.2, 16, 2048
#: A query of nothing but zeros leaves an order of risks.
MIN_SPREAD = 2.0**-126
#: So much longer may a query be once it is rounded to bfloat16.
ROUNDED_QUERY = 1.004
#: All cells are opened where those that a mask cuts leave more than one in so many of the sealed keys.
DENSE_SHARE = 6


def log_risk(query, scale, cells, tree, softcap=None):
    """(C,): log of n_c exp(z_c) exp(F_c) w_c, the error of replacing each cell of a tree by its mean; inf for what is apart.

    A soft cap brings scores nearer to one another, so F_c is then an upper estimate.
    w_c: what values differ by from their mean; the mass counts as one more component, as large as the segment's mean value.
    """
    squared_weight = cells.value_variance + (tree.mean_value**2).sum()
    with np.errstate(divide="ignore"):
        log_weight = 0.5 * np.log(squared_weight)
    risk = log_mass(query, scale, cells, tree, softcap) + log_spread(query, scale, cells, tree) + log_weight
    return np.where(always_open(cells, tree), np.inf, risk)


def always_open(cells, tree):
    """(C,) bool: the parent of what is apart, and its cells of one key."""
    last = len(tree.parents.count) - 1
    if not tree.has_apart:
        return np.zeros(len(cells.count), bool)
    return np.arange(last + 1) == last if cells is tree.parents else (tree.parent == last) & (cells.count == 1)


def log_spread(query, scale, cells, tree):
    """(C,): F_c, log of the standard deviation of exp(score - z_c) in a cell whose scores are normal with variance x_c.

    sqrt(x) exp(h(x)) is sqrt(exp(x) - 1) within a twentieth. But n scores hardly reach further than sqrt(2 ln n) standard
    deviations, so that the exponentials of all of them come to exp(sqrt(2 x ln n)) where x > 2 ln n, n times their mean; and no
    score lies further from z_c than the radius allows.
    """
    own = query / tree.metric
    x = np.maximum(scale**2 * (own**2 @ tree.component_variance), MIN_SPREAD) * cells.variance
    log_count = np.log(cells.count)
    h = x / 4 * (1 + x / (12 + x))
    with np.errstate(divide="ignore"):
        spread = np.where(x <= 2 * log_count, 0.5 * np.log(x) + h, np.sqrt(2 * x * log_count) - log_count)
    return np.minimum(spread, ROUNDED_QUERY * abs(scale) * np.linalg.norm(own) * cells.radius)


def log_mass(query, scale, cells, tree, softcap=None):
    """(C,): log of n_c exp(z_c), what the mean of a cell of a tree stands for."""
    return capped(scale * (cells.mean_key @ (query / tree.metric)), softcap) + np.log(cells.count)


def min_risk(risk, count, wanted):
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


def left_by(bias, rows):
    """The rows that the mask (S,) leaves."""
    return rows[~np.isneginf(bias[rows])]


def marks_of(bias, trees):
    """`marked` for each tree; cut are all where these leave more than a sixth of the sealed keys."""
    marks = [marked(bias, first, tree) for first, tree in trees]
    left_in_cut = sum(
        len(left_by(bias, first + tree.cells.members[c]))
        for (first, tree), (_, (_, cut)) in zip(trees, marks, strict=True) for c in np.flatnonzero(cut)
    )
    if DENSE_SHARE * left_in_cut > sum(tree.parents.count.sum() for _, tree in trees):
        return [tuple((hidden, ~hidden) for hidden, _ in mark) for mark in marks]
    return marks


def risks_of(query, scale, trees, marks, softcap=None):
    """For each tree `log_risk` of its parents and of its cells; -inf for those that the mask hides or cuts."""
    return [
        tuple(np.where(hidden | cut, -np.inf, log_risk(query, scale, nodes, tree, softcap))
              for nodes, (hidden, cut) in zip((tree.parents, tree.cells), mark, strict=True))
        for (_, tree), mark in zip(trees, marks, strict=True)
    ]


def log_guess(query, scale, exact_score, exact_value, trees, marks, softcap=None):
    """Log of |sum_j exp(z_j) value_j| over the exact keys and, by their means, all parents that the mask does not cut."""
    masses = [
        np.where(hidden | cut, -np.inf, log_mass(query, scale, tree.parents, tree, softcap))
        for (_, tree), ((hidden, cut), _) in zip(trees, marks, strict=True)
    ]
    values = [exact_value, *(tree.parents.mean_value for _, tree in trees)]
    guess, lse = softmax_sum(np.concatenate([exact_score, *masses])[None], np.concatenate(values))
    with np.errstate(divide="ignore"):  # a guess of 0, where the mask leaves nothing to guess from
        return lse[0] + np.log(np.linalg.norm(guess[0]))


def choose(query, key, value, bias, trees, exact, *, k, threshold, scale, all_cells=False, softcap=None):
    """The Choice of a query (d,) over key (S, d), value (S, dv): exact keys plus trees (a list of (first key, Tree)).

    bias (S,) is its row of the mask: nodes that it hides stand for nothing; those that it cuts are opened, and all where these
    leave more than a sixth of the sealed keys. Also returns the gap in log risk between what was opened (expanded) last and
    what was not.
    """
    exact = left_by(bias, exact)
    if not trees:
        return Choice(exact), np.inf
    marks = marks_of(bias, trees)
    risks = risks_of(query, scale, trees, marks, softcap)
    parent_risk = np.concatenate([p for p, _ in risks])
    parent_count = np.concatenate([tree.parents.count for _, tree in trees])
    sealed = parent_count.sum()
    expand_at = -np.inf
    if threshold is not None:
        exact_score = scores_of(query, key, exact, scale, bias, softcap)
        with np.errstate(divide="ignore"):  # 0: all is opened
            open_at = np.log(threshold) + log_guess(query, scale, exact_score, value[exact], trees, marks, softcap)
        expand_at = open_at + np.log(EXPAND_SHARE)
    elif k < sealed // EXPAND_FACTOR and MIN_EXPANDED < sealed:
        expand_at = min_risk(parent_risk, parent_count, max(EXPAND_FACTOR * k, MIN_EXPANDED))
    expand_at = -np.inf if all_cells else expand_at
    expanded = [((p >= expand_at) | cut) & ~hidden for (p, _), ((hidden, cut), _) in zip(risks, marks, strict=True)]
    cell_risk = np.concatenate([c[e[t.parent]] for (_, c), e, (_, t) in zip(risks, expanded, trees, strict=True)])
    if threshold is None:
        cell_count = np.concatenate([t.cells.count[e[t.parent]] for e, (_, t) in zip(expanded, trees, strict=True)])
        open_at = -np.inf if k >= sealed else min_risk(cell_risk, cell_count, k)

    near, mean_score, mean_value = [], [], []
    for (first, tree), mark, (_, risk), expand in zip(trees, marks, risks, expanded, strict=True):
        (parent_hidden, _), (hidden, cut) = mark
        reached = expand[tree.parent] & ~hidden
        opened = reached & ((risk >= open_at) | cut)
        near += [first + tree.cells.members[c] for c in np.flatnonzero(opened)]
        for nodes, closed in ((tree.parents, ~expand & ~parent_hidden), (tree.cells, reached & ~opened)):
            mean_score.append(log_mass(query, scale, nodes, tree, softcap)[closed])
            mean_value.append(nodes.mean_value[closed])
    near, mean_score = left_by(bias, np.concatenate([np.empty(0, int), *near])), np.concatenate(mean_score)
    margin = min(gap(parent_risk, expand_at), gap(cell_risk, open_at))
    return Choice(np.r_[exact, near], mean_score, np.concatenate(mean_value)), margin


def near_far_attention(query, key, value, *, k, threshold=None, all_cells=False, moments=None, causal=False,
                       block=512, sinks=0, attn_mask=None, key_ranges=None, cell_size=32, scale=None, seed=0, tree_of=None,
                       return_margin=False, softcap=None, sink_logits=None):
    """Near/far attention in float64, query by query.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    threshold : float or array_like (H,) or (H, L), optional
        Instead of k: cells are opened whose risk is at least this share of the norm of the output, as it is guessed from the
        exact keys and the parents' means; of each query head, or row (`measure.choose_level`, `row_thresholds`). 0 opens all.
    all_cells : bool or array_like (H,)
        Every parent is expanded; of each query head.
    moments : array_like (H_k, d, d), optional
        E[q q^T] of the queries of each key head, by which cells are found (`cells.build_tree`). Default: of each segment its
        own, from the queries that stand at its keys, or if not causal from all (`query_moments`); none where they are too few.
    cell_size : int or array_like (H_k,)
        Keys per cell, of each key head.
    block : int
        Causal: keys per sealed block; the current block and the one before stay open.
    attn_mask : array_like, optional
        Broadcasts to (B, H, L, S): bool, True keeps; or added to the scaled scores.
    key_ranges : array_like (B, L, 2) or (L, 2), optional
        As a mask that hides all keys outside [first, end).
    tree_of : callable (key, value, cell_size, seed, moments) -> Tree, optional
        Builds a segment's tree by its moments (d, d), or None; default `build_tree`. Pass one that returns the C core's to
        compare the rest alone.
    softcap, sink_logits
        As in `icecore.attention`; a cell's mean is capped as a key is.
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
    mask = np.broadcast_to(0.0 if attn_mask is None else bias_of(attn_mask), (batch, heads, queries, keys))
    if key_ranges is not None:
        seen = visible_keys(queries, keys, key_ranges=key_ranges)
        mask = np.where(seen if seen.ndim == 2 else seen[:, None], mask, -np.inf)
    group = heads // key.shape[1] if heads else 1
    if threshold is not None:
        threshold = np.asarray(threshold, np.float64)
        threshold = np.broadcast_to(threshold if threshold.ndim == 2 else threshold[..., None], (heads, queries))
    all_cells = np.broadcast_to(all_cells, heads)
    tree_of = tree_of or (
        lambda rows, values, size, seed, own: build_tree(rows, values, cell_size=size, seed=seed, moments=own)
    )
    sizes, built = np.broadcast_to(cell_size, key.shape[1]).tolist(), {}

    def moments_of(b, head, first, end):
        if moments is not None:
            return np.asarray(moments[head], np.float64)
        offset = keys - queries  # position of the first query
        first, end = (max(first - offset, 0), max(end - offset, 0)) if causal else (0, queries)
        return query_moments(query[b, head * group : (head + 1) * group, first:end], offset + first)

    def tree(b, head, first, end, start):
        if (b, head, first, end) not in built:
            rows, values = key[b, head, first:end], value[b, head, first:end]
            built[b, head, first, end] = tree_of(
                rows, values, sizes[head], segment_seed(seed, first, end - first), moments_of(b, head, start, end)
            )
        return first, built[b, head, first, end]

    near, margin = np.zeros((batch, heads, queries), np.int32), np.full((batch, heads, queries), np.inf)

    def choice_of(b, h, i):
        position = keys - queries + i
        if keys == 0 or (causal and position < 0):
            return Choice(np.empty(0, int))
        exact, ranges = exact_and_sealed(position, keys, causal=causal, block=block, sinks=sinks)
        # where segments would begin without sinks: the queries of these count for their moments
        whole = {end: start for start, end in exact_and_sealed(position, keys, causal=causal, block=block, sinks=0)[1]}
        trees = [tree(b, h // group, first, end, whole[end]) for first, end in ranges]
        choice, margin[b, h, i] = choose(
            query[b, h, i], key[b, h // group], value[b, h // group], mask[b, h, i], trees, exact, k=k,
            threshold=None if threshold is None else threshold[h, i], all_cells=all_cells[h], scale=scale, softcap=softcap,
        )
        near[b, h, i] = len(choice.keys) - len(left_by(mask[b, h, i], exact))
        return choice

    out, lse, mass, _ = attend_chosen(
        query, key, value, choice_of, scale=scale, bias=mask, softcap=softcap, sink_logits=sink_logits
    )
    returned = (out, lse, near, mass.astype(np.float32))
    return (*returned, margin) if return_margin else returned
