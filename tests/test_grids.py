"""attention() on the grids by which other projects test theirs, against float64: vLLM on CPUs, flash-attention, PyTorch's
fused attention and llama.cpp's flash_attn_ext. Shapes, widths, types, windows, masks, and what models add to scores."""

from itertools import product

import numpy as np
import pytest
from helpers import as_four, assert_exact, decode, head_error, inputs, normal

import icecore
from icecore import reference

TYPES = ["float32", "float16", "bfloat16"]


def attend(arrays, **options):
    """Compare with the oracle, sums included."""
    assert_exact(icecore.attention(*arrays, return_lse=True, **options), *arrays, **options)


def slopes_of(heads):
    """ALiBi's slopes of a number of heads that is a power of two."""
    return (2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)).astype(np.float32)


# ---- vLLM: ragged batches of a decoder, (queries, keys) each, packed behind one another ----

SHORT = [(1, 1328), (5, 18), (129, 463)]
LONG = [(1, 7812), (134, 5131), (1025, 1025)]


def packed_ranges(sequences, window):
    """(queries of all, 2): the keys that each sees, of its own sequence; causal, aligned bottom-right."""
    ranges, first_key = [], 0
    for queries, keys in sequences:
        position = np.arange(keys - queries, keys)
        first = np.zeros_like(position) if window is None else np.maximum(position - window + 1, 0)
        ranges.append(first_key + np.stack([first, position + 1], axis=1))
        first_key += keys
    return np.concatenate(ranges)


def packed(sequences, heads, dim, dtype):
    """(query, key, value) of all sequences, and [(slice of queries, slice of keys)]."""
    ends = np.cumsum(sequences, axis=0)
    starts = ends - sequences
    parts = [(slice(a, c), slice(b, d)) for (a, b), (c, d) in zip(starts.tolist(), ends.tolist(), strict=True)]
    return inputs((heads[0], ends[-1, 0], dim), (heads[1], ends[-1, 1], dim), dim, dtype), parts


@pytest.mark.parametrize("window", [None, 256])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [80, 96, 112, 128, 512])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (9, 3)], ids=str)
def test_packed_sequences_are_each_on_their_own(heads, dim, dtype, window):
    (query, key, value), parts = packed(SHORT, heads, dim, dtype)
    out, lse = icecore.attention(query, key, value, key_ranges=packed_ranges(SHORT, window), return_lse=True)
    for queries, keys in parts:
        own = query[:, queries], key[:, keys], value[:, keys]
        assert_exact((out[:, queries], lse[:, queries]), *own, causal=True, window=window)


@pytest.mark.parametrize("window", [None, 256])
@pytest.mark.parametrize("dtype", TYPES)
def test_long_packed_sequences(dtype, window):
    (query, key, value), _ = packed(LONG, (8, 2), 128, dtype)
    ranges = packed_ranges(LONG, window)
    out, lse = icecore.attention(query, key, value, key_ranges=ranges, return_lse=True)
    rows = np.r_[:3, 130:140, 500 : len(ranges) : 97, len(ranges) - 1]
    assert_exact((out[:, rows], lse[:, rows]), query[:, rows], key, value, key_ranges=ranges[rows])


@pytest.mark.parametrize("added", ["softcap", "alibi_slopes", "sink_logits", "softcap and sink_logits"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("queries", "keys"), [*SHORT, (134, 1131)])
def test_what_models_add_to_scores(queries, keys, dtype, added):
    values = {"softcap": 50.0, "alibi_slopes": slopes_of(8), "sink_logits": normal(5, 8)}
    options = {name: values[name] for name in added.split(" and ")}
    arrays = inputs((8, queries, 96), (2, keys, 96), 96, dtype)
    for window in (None, 256):
        attend(arrays, causal=True, window=window, **options)


@pytest.mark.parametrize("window", [(-1, -1), (127, 127), (0, 64), (256, 0), (-1, 3)], ids=str)
@pytest.mark.parametrize("dtype", TYPES)
def test_windows_of_encoders_reach_to_both_sides(dtype, window):
    attend(inputs((6, 463, 80), (6, 463, 80), 80, dtype), window=window)


# ---- flash-attention: widths and pairs of lengths that fit no tile, more queries than keys, all groupings ----

WIDTHS = [32, 40, 59, 64, 96, 111, 128, 160, 192, 224, 256]
PAIRS = [(113, 203), (128, 217), (113, 211), (108, 256), (256, 512), (512, 256), (1024, 1024), (1023, 1024), (1024, 1023)]
#: Taken in turn along the grid of widths and pairs; their numbers have no common factor with its sides.
KINDS = list(product(["causal", "local", "whole", "causal and local"], [(6, 6), (6, 1), (6, 2)], TYPES[1:]))


@pytest.mark.parametrize("number", range(len(WIDTHS) * len(PAIRS)))
def test_widths_and_pairs_of_lengths(number):
    dim, (queries, keys) = WIDTHS[number % len(WIDTHS)], PAIRS[number % len(PAIRS)]
    kind, (heads, key_heads), dtype = KINDS[(5 * number) % len(KINDS)]
    options = {"causal": "causal" in kind, "softcap": 50.0 if number % 3 == 1 else None}
    if "local" in kind:
        options["window"] = (keys // 3, 0 if options["causal"] else keys // 5)
    if number % 3 == 2:
        options["alibi_slopes"] = np.linspace(0.0, 0.3, heads, dtype=np.float32)
    attend(inputs((heads, queries, dim), (key_heads, keys, dim), dim, dtype, seed=number), **options)


def test_the_grid_meets_every_width_with_every_pair():
    numbers = range(len(WIDTHS) * len(PAIRS))
    assert len({(i % len(WIDTHS), i % len(PAIRS)) for i in numbers}) == len(numbers)
    assert {(5 * i) % len(KINDS) for i in numbers} == set(range(len(KINDS)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("queries", "keys"), [(3, 799), (64, 2048), (1, 339), (3, 1024), (64, 800), (16, 20000)])
def test_few_queries_split_the_keys(queries, keys, dtype):
    arrays = inputs((6, queries, 59), (2, keys, 59), 59, dtype)
    for options in ({"causal": True}, {}, {"window": (keys // 4, -1)}):
        attend(arrays, **options)


# ---- PyTorch: masks of two and four axes, rows that are all hidden, the cross attention of image generation ----


@pytest.mark.parametrize("kind", ["bool", "float32", "float with -inf", "rows of -inf"])
@pytest.mark.parametrize("axes", [2, 4])
@pytest.mark.parametrize(("batch", "heads", "dim"), [(2, 1, 8), (12, 3, 16), (2, 3, 40)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 267), (267, 1), (32, 103), (129, 200)])
def test_masks(queries, keys, batch, heads, dim, axes, kind):
    rng = np.random.default_rng(queries + keys)
    shape = (queries, keys) if axes == 2 else (batch, 1, queries, keys)
    mask = rng.random(shape) < 0.7 if kind == "bool" else rng.standard_normal(shape, np.float32)
    if kind == "float with -inf":
        mask[rng.random(shape) < 0.4] = -np.inf
    if kind == "rows of -inf":
        mask[..., ::3, :] = -np.inf
    for dtype in TYPES:
        attend(inputs((batch, heads, queries, dim), (batch, heads, keys, dim), dim, dtype), attn_mask=mask)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("queries", "keys", "dim"), [(4096, 77, 40), (1024, 77, 80), (256, 77, 160), (1024, 1024, 80)])
def test_cross_attention_of_image_generation(queries, keys, dim, dtype):
    attend(inputs((2, 4, queries, dim), (2, 4, keys, dim), dim, dtype))


# ---- llama.cpp: storage types, key widths other than value widths, permuted strides, groups of up to 16 ----


WIDTH_PAIRS = [(40, 40), (64, 64), (72, 72), (80, 80), (96, 96), (128, 128), (192, 128), (576, 512)]


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize(("dim", "value_dim"), WIDTH_PAIRS)
@pytest.mark.parametrize("queries", [1, 3, 32, 75])
def test_permuted_strides(queries, dim, value_dim, group):
    """Arrays of (length, heads, width) seen as (heads, length, width)."""
    mask = np.where(normal(7, queries, 113) > 0.5, np.float32(-np.inf), normal(8, queries, 113))
    for number, dtype in enumerate(TYPES):
        shapes = (queries, 2 * group, dim), (113, 2, dim), (113, 2, value_dim)
        arrays = [normal((number, i), *shape, dtype=dtype).swapaxes(0, 1) for i, shape in enumerate(shapes)]
        sinks = {"softcap": 10.0, "sink_logits": normal(9, 2 * group)}
        attend(arrays, **({"attn_mask": mask}, sinks, {"alibi_slopes": slopes_of(2 * group)})[(number + queries) % 3])


#: A cache's type -> how far a step may be from the same in float64, by its size; sealed rows alone are codes.
STORED = {"float32": 2e-6, "bfloat16": 0.01, "int8": 0.01, "int4": 0.2}


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("dim", "value_dim"), WIDTH_PAIRS)
@pytest.mark.parametrize("keys", [113, 512, 1024])
def test_types_of_stored_keys(keys, dim, value_dim, dtype):
    query, key, value = inputs((4, 3, dim), (2, keys, dim), value_dim)
    for added in ({}, {"softcap": 10.0}, {"sink_logits": normal(9, 4)}):
        cache = icecore.KVCache(2, dim, value_dim=value_dim, dtype=dtype, window=64)
        cache.append(key, value)
        expected, _ = reference.attention(*(as_four(decode(a)) for a in (query, key, value)), causal=True, **added)
        assert head_error(cache.attend(query, **added), expected[0]).max() <= STORED[dtype]
