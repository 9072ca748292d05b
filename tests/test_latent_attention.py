"""One latent row per token for all query heads (DeepSeek's multi-head latent attention): keys of 576 components of which the
first 512 are the values, on every path."""

import numpy as np
import pytest
from helpers import DTYPES, assert_exact, assert_same_bits, decode, head_error, inputs, near_far

import icecore
from icecore import reference

DIM, VALUE_DIM = 576, 512


def latent(heads, queries, keys, dtype="float32", seed=0):
    """(query, key, value), the value a view of the key."""
    query, key, _ = inputs((heads, queries, DIM), (1, keys, DIM), 1, dtype, seed)
    return query, key, key[..., :VALUE_DIM]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "queries", "keys"), [(2, 1, 300), (16, 3, 130), (128, 1, 200), (4, 60, 70)])
def test_exact_attention_equals_the_oracle(isa, dtype, heads, queries, keys):
    query, key, value = latent(heads, queries, keys, dtype)
    result = icecore.attention(query, key, value, causal=True, scale=192**-0.5, return_lse=True)
    assert_exact(result, query, key, value, causal=True, scale=192**-0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [2, 16])
def test_a_view_gives_the_bits_of_a_copy(isa, dtype, heads):
    query, key, value = latent(heads, 1, 500, dtype)
    assert_same_bits(icecore.attention(query, key, value), icecore.attention(query, key, value.copy()))


def test_steps_of_many_heads_split_their_keys(isa):
    query, key, value = latent(64, 1, 5000)
    one, two = (icecore.attention(query, key, value, return_lse=True, num_threads=n) for n in (1, 2))
    for own, other in zip(one, two, strict=True):
        assert_same_bits(own, other)
    assert_exact(one, query, key, value)


@pytest.mark.parametrize("rounding", [False, True])
def test_near_far_attention_keeps_its_tolerance(isa, rounding):
    query, key, value = latent(4, 1500, 1500)
    query *= np.float32(0.3)
    out = near_far(query, key, value, tolerance=0.1, causal=True, block=256, cell_size=16, sinks=4, rounding=rounding).out
    expected, _ = reference.attention(*(a[None] for a in (query, key, value)), causal=True)
    assert head_error(out, expected).max() < 0.13


def test_listed_keys(isa):
    query, key, value = latent(64, 3, 400)
    indices = np.random.default_rng(0).integers(0, 400, (1, 3, 100))
    out = icecore.attend_indices(query, key, value, indices, causal=True)
    lists = np.broadcast_to(indices, (1, 64, 3, 100))
    expected, _ = reference.attend_indices(*(a[None] for a in (query, key, value)), lists, causal=True)
    np.testing.assert_allclose(out, expected[0], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_cache_gives_what_one_call_gives(isa, dtype):
    query, key, value = latent(8, 150, 150)
    cache = icecore.KVCache(1, DIM, value_dim=VALUE_DIM, dtype=dtype, k=150, window=32, sinks=2)
    parts = []
    for first in range(0, 150, 50):
        tokens = slice(first, first + 50)
        cache.append(key[:, tokens], value[:, tokens])
        parts.append(cache.attend(query[:, tokens]))
    expected, _ = reference.attention(*(a[None] for a in (query, key, value)), causal=True)
    tolerance = {"float32": 1e-5, "bfloat16": 5e-2, "int8": 1e-1}[dtype]
    np.testing.assert_allclose(decode(np.concatenate(parts, axis=1)), expected[0], atol=tolerance)


def test_pytorch_tensors_are_views_as_well():
    torch = pytest.importorskip("torch")
    from icecore.torch import attention

    query, key, value = latent(8, 2, 100)
    given = torch.from_numpy(key)
    out = attention(torch.from_numpy(query), given, given[..., :VALUE_DIM])
    assert_same_bits(out.numpy(), icecore.attention(query, key, value))
