"""indexer_top_k: the keys that a lightning indexer chooses, and attention to them."""

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, decode, encode, normal
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference


def arrays(heads, queries, keys, dim, dtype="float32", seed=0, batch=2):
    """(query, key, weights)."""
    query, key = normal((seed, 0), batch, heads, queries, dim, dtype=dtype), normal((seed, 1), batch, keys, dim, dtype=dtype)
    return query, key, normal((seed, 2), batch, queries, heads)


def assert_chosen(indices, query, key, weights, k, **options):
    """Ascending lists of the largest scores; any of those that rounding cannot tell apart."""
    expected, scores = reference.indexer_top_k(decode(query), decode(key), weights, k, return_scores=True, **options)
    assert indices.dtype == np.int32
    assert indices.shape == expected.shape
    np.testing.assert_array_equal(indices < 0, expected < 0)
    size = np.einsum("blh,bhls->bls", np.abs(weights), np.abs(decode(query)) @ np.abs(decode(key))[:, None].swapaxes(-1, -2))
    rounding = 1e-6 * size.max(axis=-1, initial=0.0)
    for at in np.ndindex(scores.shape[:2]):
        own, wanted = (a[at[0], 0, at[1]] for a in (indices, expected))
        own, wanted = own[own >= 0], wanted[wanted >= 0]
        assert (np.diff(own) > 0).all()
        if len(own):
            assert scores[at][own].min() >= scores[at][wanted].min() - rounding[at]


@settings(max_examples=40)
@given(st.data())
def test_equals_the_oracle(isa, data):
    heads, dim = data.draw(st.sampled_from([1, 3, 8, 47, 64, 100])), data.draw(st.sampled_from([3, 32, 64, 128]))
    queries, keys = data.draw(st.sampled_from([1, 2, 17, 40])), data.draw(st.sampled_from([0, 1, 30, 128, 300]))
    dtype, k = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([1, 7, 200]))
    seed = data.draw(st.integers(0, 2**32))
    options = {"causal": data.draw(st.booleans())}
    query, key, weights = arrays(heads, queries, keys, dim, dtype, seed)
    assert_chosen(icecore.indexer_top_k(query, key, weights, k, **options), query, key, weights, k, **options)


def test_the_oracle_is_the_formula():
    query, key, weights = (decode(a) for a in arrays(3, 4, 6, 5))
    chosen = reference.indexer_top_k(query, key, weights, 2, causal=True)
    for b, i in np.ndindex(2, 4):
        scores = [sum(weights[b, i, h] * max(0.0, query[b, h, i] @ key[b, j]) for h in range(3)) for j in range(3 + i)]
        assert chosen[b, 0, i].tolist() == sorted(sorted(range(3 + i), key=lambda j: (-scores[j], j))[:2])
    assert_same_bits(icecore.indexer_top_k(query, key, weights, 2, causal=True), chosen)


def test_many_keys_are_shared_by_tasks(isa):
    query, key, weights = arrays(64, 3, 5000, 32)
    one, two = (icecore.indexer_top_k(query, key, weights, 100, num_threads=n) for n in (1, 2))
    assert_same_bits(one, two)
    assert_chosen(one, query, key, weights, 100)


def test_one_sequence_needs_no_batch(isa):
    query, key, weights = arrays(4, 5, 50, 16)
    alone = icecore.indexer_top_k(query[1], key[1], weights[1], 7)
    assert_same_bits(alone, icecore.indexer_top_k(query, key, weights, 7)[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_arrays(isa, dtype):
    query, key, weights = arrays(4, 20, 60, 16, dtype)
    wide = np.zeros((*key.shape[:2], 40), key.dtype)
    wide[..., 8:24] = key
    across = np.ascontiguousarray(query.swapaxes(1, 2)).swapaxes(1, 2)
    assert_same_bits(icecore.indexer_top_k(across, wide[..., 8:24], weights[:, :, ::-1][:, :, ::-1], 9),
                     icecore.indexer_top_k(query, key, weights, 9))


def test_equal_scores_leave_the_first_keys(isa):
    query, key, weights = arrays(2, 3, 40, 8)
    nothing = icecore.indexer_top_k(query, key, -np.abs(weights) * 0, 4)
    np.testing.assert_array_equal(nothing, np.broadcast_to(np.arange(4), (2, 1, 3, 4)))


def test_a_nan_is_chosen(isa):
    query, key, weights = arrays(5, 20, 300, 16)
    key[:, 77, 3] = np.nan
    assert (icecore.indexer_top_k(query, key, weights, 3) == 77).any(axis=-1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_to_what_it_chooses(isa, dtype):
    query, key, weights = arrays(8, 30, 200, 32)
    chosen = icecore.indexer_top_k(query, key, weights, 20, causal=True)
    q, k = (encode(normal((3, i), *shape), dtype) for i, shape in enumerate([(2, 16, 30, 64), (2, 1, 200, 64)]))
    out = icecore.attend_indices(q, k, k[..., :48], chosen, causal=True)
    lists = np.broadcast_to(chosen, (2, 16, 30, 20))
    expected, _ = reference.attend_indices(decode(q), decode(k), decode(k)[..., :48], lists, causal=True)
    np.testing.assert_allclose(decode(out), expected, atol=1e-5 if dtype == "float32" else 3e-2)


QUERY, KEY, WEIGHTS = np.ones((2, 3, 4, 8), np.float32), np.ones((2, 9, 8), np.float32), np.ones((2, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((QUERY[0, 0], KEY[0], WEIGHTS, 1), ValueError, r"query has shape \(4, 8\); expected"),
        ((QUERY[:, :0], KEY, WEIGHTS, 1), ValueError, r"query has shape \(2, 0, 4, 8\); expected at least one head"),
        ((QUERY, KEY[:1], WEIGHTS, 1), ValueError, r"key has shape \(1, 9, 8\); expected \(2, S, 8\), one head for all"),
        ((QUERY, KEY[..., :5], WEIGHTS, 1), ValueError, r"key has shape \(2, 9, 5\)"),
        ((QUERY, KEY.astype(np.float16), WEIGHTS, 1), TypeError, "key has dtype float16, but query has float32"),
        ((QUERY, KEY, WEIGHTS[:, :2], 1), ValueError, r"weights has shape \(2, 2, 3\); expected \(2, 4, 3\)"),
        ((QUERY, KEY, WEIGHTS.astype(int), 1), TypeError, "weights has dtype int64; expected floats"),
        ((QUERY, KEY, WEIGHTS, 0), ValueError, "k must be at least 1, got 0"),
        ((QUERY, KEY, WEIGHTS, 1.5), TypeError, "k must be an integer, got float"),
        ((QUERY[..., :0], KEY[..., :0], WEIGHTS, 1), ValueError, "query has a last axis of 0; expected 1 to 576"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        icecore.indexer_top_k(*arguments)
