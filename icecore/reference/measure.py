"""The measured threshold: some rows are attended exactly as well, and their errors tell how far cells have to be opened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icecore.reference.combine import scores_of, with_sink
from icecore.reference.near_far import EXPAND_SHARE, left_by, log_guess, log_mass, marks_of, risks_of

#: (G,): the grid of thresholds, largest first.
THRESHOLDS = 2.0 * 1.2 ** -np.arange(112.0)
#: So much of the relative error of the mass counts.
MASS_SHARE = 0.5
#: What a row's keys and nodes may cost more than by the loosest threshold that passes, for rows unlike those measured.
SPARE = 0.05
#: A row more than were met may miss as much as the worst of them did by a threshold so many levels looser, twice as loose.
LOOSER = 4
#: Queries that are so many times as long as the longest measured are unlike them: their softmax is as much sharper.
LONGER = 1.5
#: Curves end at this part of the tolerance, unless no threshold up to there will do.
TRACED = 64.0
#: Fewer rows say nothing of what later rows need.
MIN_LATER = 8
#: Levels of the grid below the chosen one on which later rows are tried.
FINER = 48


@dataclass(frozen=True)
class Curve:
    """Near/far attention of one row at every threshold of the grid, beside exact attention.

    exact_out : (dv,); out : (G, dv);
    summed_mass : (G,), mass of the keys that are summed exactly; mean_mass : (G,), mass of the means that stand for the others:
    both divided by the true mass of all keys;
    near : (G,) int, keys of opened cells; nodes : (G,) int, parents and cells that are scored.
    """

    exact_out: np.ndarray
    out: np.ndarray
    summed_mass: np.ndarray
    mean_mass: np.ndarray
    near: np.ndarray
    nodes: np.ndarray


def row_curve(query, key, value, bias, trees, exact, *, scale, all_cells=False, softcap=None, sink=-np.inf):
    """The Curve of a query (d,) over key (S, d), value (S, dv): exact keys plus trees (a list of (first key, Tree)).

    bias (S,) is its row of the mask. all_cells: every parent is expanded. sink: the head's sink logit.
    """
    exact, marks = left_by(bias, exact), marks_of(bias, trees)
    exact_score, exact_value = with_sink(scores_of(query, key, exact, scale, bias, softcap), value[exact], sink)
    guess = log_guess(query, scale, exact_score, exact_value, trees, marks, softcap)

    def is_open(risk, cut, share=1.0):
        """(G, N): which nodes of log risk (N,) are opened (expanded)."""
        return (risk >= (np.log(THRESHOLDS) + guess + np.log(share))[:, None]) | cut

    # terms of both sums: log masses (N,), values (N, dv) and at which thresholds they take part (G, N)
    keys = [(exact_score, exact_value, np.ones((len(THRESHOLDS), len(exact_score)), bool))]
    means = [(np.empty(0), value[:0], np.empty((len(THRESHOLDS), 0), bool))]
    nodes = np.zeros(len(THRESHOLDS), int)
    risks = risks_of(query, scale, trees, marks, softcap)
    for (first, tree), mark, (parent_risk, cell_risk) in zip(trees, marks, risks, strict=True):
        (parent_hidden, parent_cut), (hidden, cut) = mark
        expanded = (is_open(parent_risk, parent_cut, EXPAND_SHARE) | all_cells) & ~parent_hidden  # (G, P)
        reached = expanded[:, tree.parent] & ~hidden  # (G, C)
        opened = reached & is_open(cell_risk, cut)
        for closed, part in ((tree.parents, ~expanded & ~parent_hidden), (tree.cells, reached & ~opened)):
            used = part.any(axis=0)  # what hidden keys hold must not matter
            means.append((log_mass(query, scale, closed, tree, softcap)[used], closed.mean_value[used], part[:, used]))
        rows = first + np.concatenate(tree.cells.members)
        seen = ~np.isneginf(bias[rows])
        own = np.repeat(opened, tree.cells.count, axis=1)[:, seen]  # (G, keys)
        keys.append((scores_of(query, key, rows[seen], scale, bias, softcap), value[rows[seen]], own))
        nodes += (~parent_hidden).sum() + reached.sum(axis=1)

    (key_score, key_value, key_part), (mean_score, mean_value, mean_part) = (
        (np.concatenate(scores), np.concatenate(values), np.concatenate(parts, axis=1))
        for scores, values, parts in (zip(*each, strict=True) for each in (keys, means))
    )
    near = key_part.sum(axis=1) - len(exact_score)
    if np.isneginf(key_score).all():  # nothing is visible: the answer is 0, and no mass is missing
        zero = np.zeros((len(THRESHOLDS), value.shape[1]))
        return Curve(zero[0], zero, np.ones(len(THRESHOLDS)), np.zeros(len(THRESHOLDS)), near, nodes)
    top = max(key_score.max(), mean_score.max(initial=-np.inf))
    key_mass, mean_mass = np.exp(key_score - top), np.exp(mean_score - top)
    summed, far = key_part @ key_mass, mean_part @ mean_mass  # (G,)
    out = (key_part * key_mass) @ key_value + (mean_part * mean_mass) @ mean_value  # (G, dv)
    total = key_mass.sum()
    return Curve(key_mass @ key_value / total, out / (summed + far)[:, None], summed / total, far / total, near, nodes)


def mass_scale(curves):
    """(G,): the factor by which the means' masses come nearest to the true ones, by least squares over a head's rows.

    1 without means. A row whose means miss a large key counts for little: the factor is for all rows.
    """
    own = np.array([c.mean_mass for c in curves])  # (R, G)
    true = 1 - np.array([c.summed_mass for c in curves])
    squares = (own**2).sum(axis=0)
    return np.divide((own * true).sum(axis=0), squares, out=np.ones(len(THRESHOLDS)), where=squares > 0)


def row_errors(curves):
    """(R, G): |o - o^| of each row, half the relative error of its mass counting as one more component, of the length of o."""
    factor, errors = mass_scale(curves), []
    for c in curves:
        size, mass = np.linalg.norm(c.exact_out), c.summed_mass + factor * c.mean_mass  # mass: Z^ / Z
        errors.append(np.sqrt(((c.exact_out - c.out) ** 2).sum(axis=1) + (MASS_SHARE * size * (mass - 1)) ** 2))
    return np.array(errors)


def head_error(curves, weights=None):
    """Error of a head, sum |o - o^| / sum |o| over its rows, and its standard error: (G,) each.

    weights : (R,), optional
        How much each row counts.
    """
    weights = np.ones(len(curves)) if weights is None else np.asarray(weights, np.float64)
    errors, sizes = row_errors(curves), np.array([np.linalg.norm(c.exact_out) for c in curves])  # (R, G), (R,)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = weights @ errors / (weights @ sizes)
        deviation = errors - error * sizes[:, None]
        return error, np.sqrt(weights**2 @ deviation**2) / (weights @ sizes)


def loosest(passes):
    """The first index of passes (n,) from which on all are true; n where the last is not."""
    failing = np.flatnonzero(~passes)
    return int(failing[-1]) + 1 if len(failing) else 0


def doubt(curves):
    """What a head's error may be above that of its rows: a standard error, or one row more that misses, (G,).

    Before more rows are known, one more may miss as much as any of these did by a threshold LOOSER levels looser.
    """
    _, standard_error = head_error(curves)
    largest = row_errors(curves).max(axis=0)[np.maximum(np.arange(len(THRESHOLDS)) - LOOSER, 0)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.maximum(standard_error, largest / sum(np.linalg.norm(c.exact_out) for c in curves))


def passing_level(error, doubt, tolerance):
    """The level of the largest threshold that passes, as do all smaller ones; their number where the smallest does not.

    error, doubt : (G,), or of the levels that were traced
        To pass is to have error + doubt <= tolerance.
    """
    return loosest(error + doubt <= tolerance)


def caution_of(errors, sizes, tolerance, weights=None):
    """How many levels finer than chosen the tolerance would have been kept on rows that had no part in the choice.

    errors : (R, FINER)
        |o - o^| of at least MIN_LATER later rows, from the level on that was in force for each before it was known.
    sizes, weights : (R,)
        |o|, and how much each row counts.
    """
    weights = np.ones(len(sizes)) if weights is None else np.asarray(weights, np.float64)
    return loosest(weights @ errors <= tolerance * (weights @ sizes)) if weights.sum() >= MIN_LATER else 0


def finest_for_little(level, cost, exact):
    """The finest level by which a row's near keys and nodes cost little more than by `level`.

    cost : (levels,), not falling, by keys of exact attention; exact : keys that the row attends to anyway.
    """
    return level + np.count_nonzero(cost[level:] <= cost[level] + SPARE * (cost[level] + exact)) - 1


def choose_level(curves, tolerance, *, exact, prices=(1.0, 1.0), caution=0):
    """The level in force after these rows: passing, `caution` levels finer, and as fine as costs little more; or None.

    exact : float, keys that each row attends to anyway; prices : of a near key and of a node, by exact attention's of a key.
    """
    error, doubts = head_error(curves)[0], doubt(curves)
    near, nodes = (np.mean([getattr(c, name) for c in curves], axis=0) for name in ("near", "nodes"))
    levels = int(np.abs(np.log(THRESHOLDS * TRACED / tolerance)).argmin()) + 1  # that are traced
    level = passing_level(error[:levels], doubts[:levels], tolerance)
    if level + caution >= levels:
        levels = len(THRESHOLDS)
        level = passing_level(error, doubts, tolerance)
    if level == levels:
        return None
    return finest_for_little(min(level + caution, levels - 1), (prices[0] * near + prices[1] * nodes)[:levels], exact)


def row_thresholds(query, threshold, measured):
    """(L,): the threshold, and 0 for rows of query (L, d) that are unlike those that were measured, (M, d): they open all."""
    longest = np.linalg.norm(measured, axis=-1).max()
    return np.where(np.linalg.norm(query, axis=-1) > LONGER * longest, 0.0, threshold)
