"""attention(selector=TopK): exact top-k attention, against the oracle."""

import numpy as np
import pytest
from chosen_keys import arrays, clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.dense import per_query_head, visible_keys
from icecore.selectors import TopK


def tells_apart(scores, k):
    """(..., S), NaN where hidden -> (...): whether rounding cannot change which the k largest are."""
    ranked = -np.sort(np.where(np.isnan(scores), np.inf, -scores), axis=-1)
    with np.errstate(invalid="ignore"):  # -inf: there are no more than k
        return ~(ranked[..., k - 1] - ranked[..., k] <= 1e-5) if k < ranked.shape[-1] else np.ones(ranked.shape[:-1], bool)


def seen_scores(query, key, causal):
    """(1, H, L, S) in float64, NaN where a query does not see a key."""
    scores = query.astype(np.float64) @ per_query_head(key.astype(np.float64), query.shape[1]).swapaxes(-1, -2)
    return np.where(visible_keys(query.shape[2], key.shape[2], causal), scores / np.sqrt(query.shape[-1]), np.nan)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 130), st.integers(0, 1300),
       st.sampled_from([1, 7, 32, 64]), st.integers(1, 700), st.booleans(), st.sampled_from([None, 0.5, 30.0]), st.booleans())
@settings(max_examples=40)
def test_top_k_equals_its_oracle(seed, heads, queries, more, dim, k, causal, softcap, with_sinks):
    q, k_, v = arrays(np.random.default_rng(seed), *heads, queries, queries + more, dim, 24)
    options = {"causal": causal, "softcap": softcap, "sink_logits": np.arange(heads[0]) - 1.0 if with_sinks else None}
    out, lse, info = icecore.attention(q, k_, v, selector=TopK(k), return_lse=True, return_info=True, **options)
    expected, expected_lse, near = reference.top_k_attention(q, k_, v, k=k, **options)
    clear = tells_apart(seen_scores(q, k_, causal), k)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_allclose(out[clear], expected[clear], atol=2e-5)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_top_k_of_every_type(isa, layout, dtype, causal):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    q, k, v = (a.astype(dtype) for a in clustered(np.random.default_rng(17), 4, 2, 70, 1100, 32))
    if layout != "contiguous":
        q, k, v = (np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (q, k, v))
    out, lse, info = icecore.attention(q, k, v, selector=TopK(20), causal=causal, return_lse=True, return_info=True)
    wide = [a.astype(np.float32) for a in (q, k, v)]
    clear = tells_apart(seen_scores(*wide[:2], causal), 20)
    expected, expected_lse, near = reference.top_k_attention(*wide, k=20, causal=causal)
    assert info.path == "top_k"
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_allclose(out[clear].astype(np.float64), expected[clear], atol=2e-5 if dtype == np.float32 else 0.03)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=2e-5)


@settings(max_examples=15)
@given(st.integers(0, 899), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_top_k(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 900, 900, 16)
    whole = icecore.attention(q, k, v, selector=TopK(16), causal=True)
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = icecore.attention(q, k, v, selector=TopK(16), causal=True)
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_top_k_finds_a_key_that_is_not_finite(isa, number, softcap):
    """NaN in any case. Infinity where the score is infinite, which a soft cap bounds."""
    q, k, v = clustered(np.random.default_rng(18), 2, 1, 60, 1300, 16)
    k[0, 0, 300, 3] = number
    out = icecore.attention(q, k, v, selector=TopK(16), softcap=softcap)
    spoiled = np.isnan(number) | (softcap is None) & (q[..., 3] * number > 0)
    np.testing.assert_array_equal(np.isnan(out).any(axis=-1), spoiled)
    expected = reference.top_k_attention(q, k, v, k=16, softcap=softcap)[0]
    clear = ~spoiled & tells_apart(np.delete(seen_scores(q, k, False), 300, axis=-1), 15)
    np.testing.assert_allclose(out[clear], expected[clear], atol=2e-5)
