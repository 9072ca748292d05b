"""Features of pictures: how near exact attention's they are, and which patches of two views they match."""

from math import isqrt

import numpy as np

from icecore import nn

from . import pictures
from .cost import Cost
from .methods import EXACT
from .results import MEMORY
from .statistics import retained
from .watch import COLUMNS, Watch

#: Patches of a view, about.
LENGTHS = (8100,)
MIN_LENGTH = 64
#: A patch counts as matched to the right place this near to it, in sides of the view.
NEAR = 0.05


def cases(lengths, names):
    """One for each picture and length."""
    return [{"picture": name, "length": length} for name in names or pictures.PICTURES for length in lengths]


def cost(case):
    """What a case costs a method: a pass for each view of the picture, the first included."""
    return [Cost(prefill=case["length"])] * (2 if case["picture"] == pictures.STEREO else 1 + len(pictures.AFFINE))


def check(model, case):
    """ImportError if the pictures are not installed, ValueError if there is none of the case's name."""
    pictures.views(case["picture"], model.weights.config.patch, model.weights.config.patch)


def run(model, case, method, exact):
    """Encode the views of a picture and match the first's patches with each other view's.

    Parameters
    ----------
    model : Model
    case : dict
    method : Method
    exact : dict or None
        The result of exact attention; None if this is it.

    Returns
    -------
    dict
        ``right`` of each view: for each patch of the first view that is seen in it a digit, 1 if the patch with the nearest
        features lies at the right place. The means of `Watch`. Of other methods also ``patch_cosine`` and ``pooled_cosine`` to
        exact attention's features, mean over patches and of their mean, and ``equal_neighbours``, the share of patches of the
        first view whose nearest other patch of it is the same. Of exact attention ``memory``: the features; where `exact`
        lacks them they are computed and put there.
    """
    patch = model.weights.config.patch
    side = isqrt(case["length"]) * patch
    first, others = pictures.views(case["picture"], side, patch)
    watch = Watch(method)
    features = {
        name: nn.encode_image(model.weights, pixels, attention=watch.method.bidirectional)[1:]  # (patches, width)
        for name, pixels in {"first": first, **{name: view.pixels for name, view in others.items()}}.items()
    }
    units = {name: unit(array) for name, array in features.items()}
    right = {name: digits(matches(units["first"], units[name], view.places)) for name, view in others.items()}
    result = {"right": right} | watch.means()
    if exact is None:
        return result | {MEMORY: features}
    if MEMORY not in exact:  # of an earlier run, which stored no features
        exact[MEMORY] = run(model, case, EXACT, None)[MEMORY]
    cosines = [np.mean(np.sum(units[name] * unit(array), axis=1)) for name, array in exact[MEMORY].items()]
    pooled = [unit(features[name].mean(axis=0)) @ unit(array.mean(axis=0)) for name, array in exact[MEMORY].items()]
    same = nearest_others(units["first"]) == nearest_others(unit(exact[MEMORY]["first"]))
    result |= {"patch_cosine": float(np.mean(cosines)), "pooled_cosine": float(np.mean(pooled))}
    return result | {"equal_neighbours": float(np.mean(same))}


def unit(array):
    """Rows of length 1."""
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def matches(first, second, places):
    """Whether patches are matched to the right place.

    Parameters
    ----------
    first, second : ndarray, (rows * rows, width) float32
        Features of length 1 of two views.
    places : ndarray, (rows, rows, 2)
        As of `pictures.View`.

    Returns
    -------
    ndarray, (seen,) bool
        Of the patches of the first view that lie in the second.
    """
    rows = len(places)
    places = places.reshape(-1, 2)  # (rows * rows, 2)
    seen = np.all((places >= -0.5) & (places <= rows - 0.5), axis=1)  # (rows * rows,): not where it is NaN
    found = nearest(first[seen], second)  # (seen,)
    found = np.stack(np.divmod(found, rows), axis=1)  # (seen, 2)
    return np.linalg.norm(found - places[seen], axis=1) <= NEAR * rows


def digits(right):
    """A digit for each of many bool, which is short in a file."""
    return "".join("01"[bool(value)] for value in right)


def nearest(queries, keys, chunk=1024):
    """Index of the key with the largest inner product, (queries,)."""
    return np.concatenate([(queries[at : at + chunk] @ keys.T).argmax(axis=1) for at in range(0, len(queries), chunk)])


def nearest_others(keys, chunk=1024):
    """Index of the other key with the largest inner product, for each key."""
    found = []
    for at in range(0, len(keys), chunk):
        products = keys[at : at + chunk] @ keys.T  # (chunk, keys)
        np.fill_diagonal(products[:, at:], -np.inf)
        found.append(products.argmax(axis=1))
    return np.concatenate(found)


def compare(result, exact):
    """The columns of a report for one case."""
    names = ("patch_cosine", "pooled_cosine", "equal_neighbours")
    return {name: result.get(name) for name in names} | _matched([(result, exact)]) | {name: result[name] for name in COLUMNS}


def overall(pairs):
    """The columns of a report for all cases together, from pairs of a method's and exact attention's results."""
    names = ("patch_cosine", "pooled_cosine", "equal_neighbours")
    columns = {name: [result[name] for result, _ in pairs if name in result] for name in names}
    return {name: float(np.mean(values)) if values else None for name, values in columns.items()} | _matched(pairs)


def _matched(pairs):
    mine, exact = (
        np.array([digit == "1" for results in side for right in results["right"].values() for digit in right])
        for side in zip(*pairs, strict=True)
    )
    kept = retained(mine, exact)
    return {"matched": float(mine.mean()), "exact_matched": float(exact.mean()), "retained": kept.share}
