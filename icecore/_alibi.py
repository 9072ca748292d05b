"""ALiBi in near/far attention: the distance as one more component of queries and keys.

Causal, ``-slope |p - j|`` is ``slope (j - (S - 1))`` less ``slope (p - (S - 1))``, which is the same for all keys of a row: the
product of one more component of each, and a constant that lse alone shows. Cells then group keys by their places as well, as
far as a head's queries tell these apart, and risks know distances, without a word of it in the core.
"""

from __future__ import annotations

import numpy as np

from icecore._arrays import FLOAT32, MAX_DIM, Problem, widened

DIM = MAX_DIM - 1  # of queries and keys, at most
#: Scores and lse are off by what a slope times the number of keys loses in float32: 0.008 where that is so large.
MAX_BIAS = 2.0**17


def check_alibi(problem, causal, **others):
    """ValueError where near/far attention cannot have ALiBi. others: arguments that it then does not take."""
    for name, given in others.items():
        if given is not None:
            raise ValueError(f"alibi_slopes with {name}: expected exact attention, or near/far attention without {name}")
    if not causal:
        raise ValueError("alibi_slopes with k or tolerance needs causal=True")
    dim = problem.query.shape[-1]
    if dim > DIM:
        raise ValueError(f"query has a last axis of {dim}; expected at most {DIM} with alibi_slopes and k or tolerance")


def are_too_steep(slopes, keys):
    """Whether float32 would round what they take off scores too much."""
    return slopes.max(initial=0.0) * keys > MAX_BIAS


def with_positions(problem, scale, slopes):
    """The `Problem` whose products are ``scale * query . key + slope * (j - (S - 1))``, in float32 or float64."""
    dtype = problem.dtype if problem.is_double else FLOAT32
    dim, keys = problem.shape[3:5]

    def widen(array, width, factor=1.0):
        if array.dtype == dtype and width == array.shape[-1]:
            return array
        wide = np.empty((*array.shape[:-1], width), dtype)
        for head in np.ndindex(array.shape[:2]):  # so that float64 is of one head
            wide[head][:, : array.shape[-1]] = widened(array[head]) * factor
        return wide

    query, key = widen(problem.query, dim + 1, scale), widen(problem.key, dim + 1)
    query[..., dim] = slopes[:, None]
    key[..., dim] = np.arange(keys) - (keys - 1)
    return Problem(dtype, query, key, widen(problem.value, problem.value.shape[-1]), problem.out_shape)


def row_constants(slopes, queries):
    """(H, L): what products `with_positions` are too small by for a distance, -slope * (p - (S - 1))."""
    return slopes[:, None] * (queries - 1 - np.arange(queries))
