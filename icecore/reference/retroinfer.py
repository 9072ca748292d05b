"""Clusters of keys in three zones: RetroInfer (arXiv 2505.02922)."""

from __future__ import annotations

from math import ceil

import numpy as np

from icecore.reference.combine import Choice, attend_chosen
from icecore.reference.dense import capped, visible_count
from icecore.reference.random import sample_without_replacement, segment_seed

#: Keys of a cluster on average; iterations, the last of which only assigns keys.
CLUSTER, ITERATIONS = 16, 10


def directions(rows):
    """(n, d) -> (n, d): at length 1; 0 stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def spherical_clusters(key, seed):
    """Members of the clusters of key (n, d), a list of int arrays; and how clearly keys are assigned.

    Keys less their mean go to the centroid that they have the largest product with, the first among equals, and centroids to
    the direction of the mean of their keys. The margin is the smallest difference to the second largest product, by length.
    """
    rows = key - key.mean(axis=0)
    length = np.linalg.norm(rows, axis=1)
    centroids = directions(rows[sample_without_replacement(len(rows), -(-len(rows) // CLUSTER), seed)])
    margin = np.inf
    for iteration in range(ITERATIONS):
        products = rows @ centroids.T
        if len(centroids) > 1:
            best = np.partition(products, -2, axis=1)[:, -2:]
            margin = min(margin, ((best[:, 1] - best[:, 0])[length > 0] / length[length > 0]).min(initial=np.inf))
        label = np.unique(products.argmax(axis=1), return_inverse=True)[1]  # empty clusters vanish
        members = [np.flatnonzero(label == c) for c in range(label.max() + 1)]
        if iteration < ITERATIONS - 1:
            centroids = directions(np.array([rows[m].mean(axis=0) for m in members]))
    return members, margin


def clusters_of(key, value, segment, sinks, local, seed):
    """Of a head's keys (S, d) and values (S, dv) the clusters of each segment, and how clearly: a list of (members, margin).

    One that holds what is not finite has no clusters.
    """
    found = []
    for first in range(sinks, len(key) - local - segment + 1, segment):
        end = first + segment
        if np.isfinite(key[first:end]).all() and np.isfinite(value[first:end]).all():
            members, margin = spherical_clusters(key[first:end], segment_seed(seed, first, segment))
            found.append(([first + m for m in members], margin))
        else:
            found.append(([], np.inf))
    return found


def zone(scores, share):
    """(C,) bool: the best share of the clusters, rounded up, equal scores together; and how clearly."""
    wanted, ranked = ceil(share * len(scores)), -np.sort(-scores)
    margin = ranked[wanted - 1] - ranked[wanted] if wanted < len(ranked) else np.inf
    return ~(scores < ranked[wanted - 1]), margin  # a NaN is retrieved


def choose(query, key, value, segments, settings, scale, softcap):
    """The Choice of a query (d,) among the keys that it sees, (S, d); and how clearly its clusters are told apart.

    segments: those of `clusters_of` that it sees. settings: those of `icecore.selectors.RetroInfer`, by name.
    """
    end = settings["sinks"] + len(segments) * settings["segment"]
    steady = [np.arange(min(settings["sinks"], len(key))), np.arange(end, len(key))]
    steady += [settings["sinks"] + i * settings["segment"] + np.arange(settings["segment"])
               for i, (members, _) in enumerate(segments) if not members]
    members = [m for own, _ in segments for m in own]
    if not members:
        return Choice(np.concatenate(steady)), np.inf
    scores = scale * (np.array([key[m].mean(axis=0) for m in members]) @ query)
    retrieved, margin = zone(scores, settings["retrieval"])
    kept, own_margin = zone(scores, settings["retrieval"] + settings["estimation"])
    estimated = np.flatnonzero(kept & ~retrieved)
    mass = capped(scores[estimated], softcap) + np.log([len(members[c]) for c in estimated])
    mean_value = np.array([value[members[c]].mean(axis=0) for c in estimated]).reshape(-1, value.shape[1])
    keys = np.concatenate(steady + [members[c] for c in np.flatnonzero(retrieved)])
    return Choice(keys, mass, mean_value), min(margin, own_margin, *(own for _, own in segments))


def retroinfer_attention(query, key, value, *, retrieval, estimation, segment, sinks, local, causal=False, scale=None,
                         softcap=None, sink_logits=None, seed=0, return_margin=False):
    """Attention to the keys of some clusters, and to others by their means, in float64.

    Parameters
    ----------
    query : (B, H, L, d); key : (B, H_k, S, d); value : (B, H_k, S, dv)
    retrieval, estimation, segment, sinks, local
        As of `icecore.selectors.RetroInfer`.
    causal, scale, softcap, sink_logits, seed
        As in `icecore.attention`.

    Returns
    -------
    out : (B, H, L, dv) float64
    lse : (B, H, L) float64, of keys and means
    near_keys : (B, H, L) int, the keys attended to exactly
    margin : (B, H, L) float64, only with return_margin
        How clearly clusters are chosen and keys are in clusters; where it is tiny, rounding may choose others.
    """
    query, key, value = (np.asarray(a).astype(np.float64) for a in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group, end = query.shape[1] // key.shape[1], visible_count(query.shape[2], key.shape[2], causal)
    settings = {"retrieval": retrieval, "estimation": estimation, "segment": segment, "sinks": sinks}
    with np.errstate(invalid="ignore", over="ignore"):
        segments = {place: clusters_of(key[place], value[place], segment, sinks, local, seed)
                    for place in np.ndindex(key.shape[:2])}
    margin = np.full(query.shape[:3], np.inf)

    def choice(b, h, i):
        place = b, h // group
        seen, before = slice(end[i]), segments[place][: max(end[i] - local - sinks, 0) // segment]
        own, margin[b, h, i] = choose(query[b, h, i], key[place][seen], value[place][seen], before, settings, scale, softcap)
        return own

    out, lse, _, near = attend_chosen(query, key, value, choice, scale=scale, softcap=softcap, sink_logits=sink_logits)
    return (out, lse, near, margin) if return_margin else (out, lse, near)
