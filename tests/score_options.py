"""What the tests of options of scores share (soft caps, sink logits, ALiBi): random problems, lists of keys, caches."""

import numpy as np
from helpers import DTYPES, assert_exact, decode, inputs, normal
from hypothesis import strategies as st

import icecore
from icecore import reference

LENGTHS = (1, 2, 8, 9, 16, 47, 49, 128, 130)


def draw_problem(draw, dims=(3, 32, 64), value_dims=(16,), more_keys=(), windows=()):
    """(query, key, value, options) of up to two entries: options of visibility, to which a test adds its own.

    more_keys: numbers of keys besides LENGTHS and none. windows: strategies besides one number.
    """
    queries, keys = draw(st.sampled_from(LENGTHS)), draw(st.sampled_from([0, *LENGTHS, 300, *more_keys]))
    key_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32))
    dim, value_dim, batch = draw(st.sampled_from(dims)), draw(st.sampled_from(value_dims)), draw(st.integers(1, 2))
    shapes = (batch, key_heads * group, queries, dim), (batch, key_heads, keys, dim)
    options = {
        "causal": draw(st.booleans()),
        "window": draw(st.one_of(st.none(), st.integers(0, 80), *windows)),
        "sinks": draw(st.integers(0, 5)),
    }
    if draw(st.booleans()):
        options["attn_mask"] = normal(seed, queries, keys) > draw(st.sampled_from([-0.5, 0.0]))
    elif draw(st.booleans()):
        options["attn_mask"] = np.where(normal(seed, queries, keys) > 1, np.float32(-np.inf), normal(seed + 1, queries, keys))
    return *inputs(*shapes, value_dim, dtype, seed), options


def assert_equals_the_oracle(query, key, value, options):
    assert_exact(icecore.attention(query, key, value, return_lse=True, **options), query, key, value, **options)


def assert_listed_keys_equal_the_oracle(draw, option):
    """attend_indices with random lists; option: of a number of heads, the strategy of the options under test."""
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32))
    heads, key_heads = draw(st.sampled_from([(2, 2), (4, 2), (12, 1)]))
    query, key, value = inputs((heads, 9, 32), (key_heads, 200, 32), 16, dtype, seed)
    indices = np.random.default_rng(seed).integers(-1, 200, (heads, 9, draw(st.sampled_from([0, 3, 150]))))
    options = draw(option(heads)) | {"causal": draw(st.booleans())}
    out, lse = icecore.attend_indices(query, key, value, indices, return_lse=True, **options)
    expected, expected_lse = reference.attend_indices(*(decode(a)[None] for a in (query, key, value)), indices[None], **options)
    tolerance = {"float32": 1e-5, "float16": 2e-3}.get(np.dtype(query.dtype).name, 3e-2)
    np.testing.assert_allclose(decode(out), expected[0], atol=tolerance)
    np.testing.assert_allclose(lse, expected_lse[0], atol=2e-5, rtol=1e-6)


def attended_in_chunks(cache, query, key, value, chunk, **options):
    """(out, lse) of a text whose chunks are appended and attended one after another."""
    outs, lses = [], []
    for first in range(0, key.shape[-2], chunk):
        tokens = np.s_[..., first : first + chunk, :]
        cache.append(key[tokens], value[tokens])
        out, lse = cache.attend(query[tokens], return_lse=True, **options)
        outs.append(out)
        lses.append(lse)
    return np.concatenate(outs, axis=-2), np.concatenate(lses, axis=-1)
