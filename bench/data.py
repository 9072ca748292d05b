"""Queries, keys and values to measure on; each set says where it comes from.

`capture(n)`: SmolLM2-135M-Instruct, layer 15, 9 query heads on 3 key heads, d = 64, on a real text, up to 8192 tokens.
Needs ``icecore[models]`` and the weights package; computed once and kept under bench/.cache. Without them the 2048 tokens of
one key head in tests/data stand in. Beyond the capture's length it is continued: repeated with fresh noise of a tenth of each
component's standard deviation in its head.
`decode_heads(n)`: eight key heads of layers 3, 10 and 15 of the same pass.
`gaussian(...)`: iid numbers, without structure: only for exact attention, where the data does not matter.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FIXTURE = HERE.parent / "tests" / "data" / "smollm2_layer15_head0_2048.npz"
LAYER = 15
LAYERS = (3, 10, 15)


def gaussian(heads, key_heads, queries, keys, dim, dtype=np.float32, seed=0):
    """(1, heads, queries, dim), (1, key_heads, keys, dim) twice."""
    rng = np.random.default_rng(seed)
    shapes = [(1, heads, queries, dim), (1, key_heads, keys, dim), (1, key_heads, keys, dim)]
    return [rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes]


def smollm2(tokens=8192, layer=LAYER):
    """q (9, n, 64), k and v (3, n, 64) float16 of one layer, or None without the model. All of LAYERS are captured at once."""
    cached = {index: HERE / ".cache" / f"smollm2_layer{index}_{tokens}.npz" for index in LAYERS}
    if not cached[layer].exists():
        try:
            from icecore import nn
            from icecore.evaluation.texts import manual

            path = nn.find_smollm2()
            weights, tokenizer = nn.load_gguf(path), nn.load_tokenizer(path)
        except (ImportError, FileNotFoundError):
            return None

        def attention(query, key, value, *, layer):
            if layer in cached:
                arrays = {"q": query.astype(np.float16), "k": key.astype(np.float16), "v": value.astype(np.float16)}
                np.savez(cached[layer], **arrays)
            return nn.exact_attention(query, key, value, layer=layer)

        cached[layer].parent.mkdir(exist_ok=True)
        nn.forward(weights, tokenizer.encode(manual())[:tokens], attention=attention)
    with np.load(cached[layer]) as file:
        return file["q"], file["k"], file["v"]


def continued(array, length):
    """(heads, length, width) float32: repeated beyond its end with fresh noise."""
    array, rng, available = array.astype(np.float32), np.random.default_rng(0), array.shape[1]
    parts = [array[:, :length]]
    for first in range(available, length, available):
        noise = 0.1 * array.std(axis=1, keepdims=True) * rng.standard_normal(array.shape, np.float32)
        parts.append((array + noise)[:, : length - first])
    return np.concatenate(parts, axis=1)


def capture(length, real=None):
    """(source, q (1, h, n, 64), k, v (1, h_k, n, 64)) float32, real up to the capture's length or its first `real` tokens."""
    arrays, source = smollm2(), "SmolLM2"
    if arrays is None:
        with np.load(FIXTURE) as file:
            arrays, source = (file["q"], file["k"], file["v"]), "SmolLM2 (one key head)"
    arrays = [array[:, :real] for array in arrays]
    if length > arrays[0].shape[1]:
        source += ", continued"
    return source, *(continued(array, length)[None] for array in arrays)


def decode_heads(length, heads=8):
    """(source, q, k, v (heads, n, 64)) float32: key heads of LAYERS, each with its first query head."""
    layers = [smollm2(layer=layer) for layer in LAYERS]
    source = "SmolLM2, layers " + ", ".join(map(str, LAYERS))
    if layers[0] is None:
        with np.load(FIXTURE) as file:
            layers, source = [(file["q"], file["k"], file["v"])] * heads, "SmolLM2 (one key head, repeated)"
    if length > layers[0][0].shape[1]:
        source += ", continued"
    query, key, value = (np.concatenate(arrays)[:heads] for arrays in zip(*((q[::3], k, v) for q, k, v in layers), strict=True))
    return source, *(continued(array, length) for array in (query, key, value))
