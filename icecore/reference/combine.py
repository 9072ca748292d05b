"""What a query attends to, chosen, and the one softmax over it: every selector shares `combine`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icecore.reference.dense import capped, softmax_sum


@dataclass(frozen=True)
class Choice:
    """What a query sums.

    keys : (N,) int, summed exactly; a key that is listed twice counts twice;
    mean_score : (F,), log masses of the nodes that stand for their keys; mean_value : (F, dv), their mean values.
    """

    keys: np.ndarray
    mean_score: np.ndarray = ()
    mean_value: np.ndarray | None = None


def scores_of(query, key, rows, scale, bias=None, softcap=None):
    """Scores of those rows of key (S, d), capped, with what a row of the mask (S,) adds to them."""
    return capped(scale * (key[rows] @ query), softcap) + (0.0 if bias is None else bias[rows])


def with_sink(score, values, sink):
    """Scores (N,) and values (N, dv) of exact keys and of one more, of score `sink`, whose value is 0."""
    return np.append(score, sink), np.concatenate([values, np.zeros((1, values.shape[1]))])


def combine(query, key, value, choice, scale, bias=None, softcap=None, sink=-np.inf):
    """Softmax of a query (d,) over the keys and means of a Choice: out (dv,), lse, captured mass.

    A key of score `sink` without a value joins the keys. Captured mass is their share in the mass of keys and means.
    """
    score, values = with_sink(scores_of(query, key, choice.keys, scale, bias, softcap), value[choice.keys], sink)
    mean_value = value[:0] if choice.mean_value is None else choice.mean_value
    out, lse = softmax_sum(np.r_[score, choice.mean_score][None], np.concatenate([values, mean_value]))
    summed, missed = (np.logaddexp.reduce(s, initial=-np.inf) for s in (score, choice.mean_score))
    total = np.logaddexp(summed, missed)
    return out[0], lse[0], 0.0 if np.isneginf(total) else np.exp(summed - total)


def attend_chosen(query, key, value, choose, *, scale=None, bias=None, softcap=None, sink_logits=None):
    """Attention of each query to what ``choose(batch, head, row)``, a Choice, gives it.

    query (B, H, L, d), key (B, H_k, S, d) and value (B, H_k, S, dv) are float64; bias (B, H, L, S) and sink_logits (H,)
    are optional. Returns out (B, H, L, dv) and, for each query, lse, captured mass and the number of keys.
    """
    group = query.shape[1] // key.shape[1] if query.shape[1] else 1
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, (lse, mass) = np.empty((*query.shape[:3], value.shape[-1])), np.empty((2, *query.shape[:3]))
    count = np.zeros(query.shape[:3], np.int64)
    sinks = np.full(query.shape[1], -np.inf) if sink_logits is None else np.asarray(sink_logits, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for b, h, i in np.ndindex(query.shape[:3]):
            choice, own = choose(b, h, i), None if bias is None else bias[b, h, i]
            row = query[b, h, i], key[b, h // group], value[b, h // group]
            out[b, h, i], lse[b, h, i], mass[b, h, i] = combine(*row, choice, scale, own, softcap, sinks[h])
            count[b, h, i] = len(choice.keys)
    return out, lse, mass, count


def attend_by_heads(query, key, value, choose, *, scale=None, softcap=None, sink_logits=None):
    """Attention to the keys that ``choose(query, key, scale)`` gives a head, (L, d), (S, d) -> (L, S) bool and a margin.

    In float64. Returns out (B, H, L, dv), lse and the number of keys of each query, and the margins of all heads in a list.
    """
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group = query.shape[1] // key.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):
        found = [choose(query[b, h], key[b, h // group], scale) for b, h in np.ndindex(query.shape[:2])]
    chosen = np.reshape([own for own, _ in found], (*query.shape[:3], key.shape[2]))
    out, lse, _, near = attend_chosen(query, key, value, lambda *row: Choice(np.flatnonzero(chosen[row])), scale=scale,
                                      softcap=softcap, sink_logits=sink_logits)
    return out, lse, near, [margin for _, margin in found]
