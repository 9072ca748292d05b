"""attention(selector=): other methods of choosing keys, against their oracles."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.dense import per_query_head, visible_count, visible_keys
from icecore.reference.pages import PAGE, page_bounds
from icecore.selectors import (
    PDCI,
    ArkVale,
    BlockSparse,
    MagicPIG,
    MInference,
    Pages,
    RetroInfer,
    SparQ,
    TopK,
    VAttention,
    XAttention,
    Zeta,
)


def arrays(rng, heads, key_heads, queries, keys, dim, value_dim):
    return [rng.normal(size=shape).astype(np.float32)
            for shape in ((1, heads, queries, dim), (1, key_heads, keys, dim), (1, key_heads, keys, value_dim))]


def are_clear(query, key, k, causal, bounds=page_bounds, page=PAGE):
    """(H, L): whether rounding cannot change which pages a row opens."""
    end, wanted = visible_count(query.shape[2], key.shape[2], causal), -(-k // page)
    clear = np.ones(query.shape[1:3], bool)
    for h, i in np.ndindex(clear.shape):
        seen = key[0, h // (len(clear) // key.shape[1]), : end[i]].astype(np.float64)
        ranked = np.sort(bounds(query[0, h, i], seen, page))
        if wanted < len(ranked):
            with np.errstate(invalid="ignore"):  # those that are always chosen are infinite
                gap = ranked[-wanted] - ranked[-wanted - 1]
            clear[h, i] = not gap <= 1e-5 * np.abs(ranked[np.isfinite(ranked)]).max(initial=0)
    return clear


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 130), st.integers(0, 200),
       st.sampled_from([1, 7, 32, 64]), st.integers(1, 100), st.booleans(), st.sampled_from([None, 0.5, 30.0]), st.booleans())
def test_pages_equal_their_oracle(seed, heads, queries, more, dim, k, causal, softcap, with_sinks):
    q, k_, v = arrays(np.random.default_rng(seed), *heads, queries, queries + more, dim, 24)
    options = {"causal": causal, "softcap": softcap, "sink_logits": np.arange(heads[0]) - 1.0 if with_sinks else None}
    out, lse, info = icecore.attention(q, k_, v, selector=Pages(k), return_lse=True, return_info=True, **options)
    expected, expected_lse, near = reference.pages_attention(q, k_, v, k=k, **options)
    clear = are_clear(q, k_, k, causal)[None]
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_allclose(out[clear], expected[clear], atol=2e-5)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=2e-5)


@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_pages_of_16_bits(dtype, layout):
    dtype = np.dtype(dtype) if dtype == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    rng = np.random.default_rng(0)
    q, k, v = (a.astype(dtype) for a in arrays(rng, 4, 2, 70, 500, 64, 64))
    if layout != "contiguous":
        q, k, v = (np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (q, k, v))
    out = icecore.attention(q, k, v, selector=Pages(64), causal=True)
    expected, _, _ = reference.pages_attention(*(a.astype(np.float32) for a in (q, k, v)), k=64, causal=True)
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=0.02)


def test_later_keys_change_no_row_of_pages():
    q, k, v = arrays(np.random.default_rng(1), 2, 1, 200, 200, 32, 32)
    whole = icecore.attention(q, k, v, selector=Pages(32), causal=True)
    k[:, :, 150:], v[:, :, 150:] = np.nan, np.inf
    again = icecore.attention(q, k, v, selector=Pages(32), causal=True)
    np.testing.assert_array_equal(again[:, :, :150], whole[:, :, :150])


def test_a_nan_in_a_page_reaches_the_rows_that_see_it():
    q, k, v = arrays(np.random.default_rng(2), 1, 1, 256, 256, 16, 16)
    k[0, 0, 40, 3] = np.nan
    out = icecore.attention(q, k, v, selector=Pages(16), causal=True)
    assert np.isfinite(out[0, 0, :40]).all() and np.isnan(out[0, 0, 48:]).all()


def test_pages_give_the_same_bits_for_any_number_of_threads():
    q, k, v = arrays(np.random.default_rng(3), 6, 2, 300, 700, 48, 48)
    one, two = (icecore.attention(q, k, v, selector=Pages(100), causal=True, num_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


# ---- Exact top-k ----


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


def test_top_k_gives_the_same_bits_for_any_number_of_threads(isa):
    q, k, v = clustered(np.random.default_rng(19), 6, 2, 300, 1700, 48)
    one, two = (icecore.attention(q, k, v, selector=TopK(50), causal=True, num_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


# ---- Vertical and slash lines: MInference ----


MINFERENCE_CASES = {
    "prefill": ((3, 1, 500, 500, 32), {"vertical": 60, "slash": 130}),
    "a chunk": ((4, 2, 130, 900, 16), {"vertical": 50, "slash": 120}),
    "more queries than keys": ((2, 2, 300, 200, 16), {"vertical": 40, "slash": 110}),
    "lines that are always there": ((2, 1, 400, 400, 7), {"vertical": 30, "slash": 100}),
    "one line of each": ((2, 1, 200, 400, 7), {"vertical": 1, "slash": 1}),
    "fewer queries than vote": ((6, 2, 20, 700, 16), {"vertical": 70, "slash": 120}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"vertical": 100, "slash": 130}),
    "a scale": ((2, 1, 300, 500, 16), {"vertical": 60, "slash": 120, "scale": -0.4}),
    "a soft cap": ((2, 1, 300, 500, 16), {"vertical": 60, "slash": 120, "softcap": 2.0}),
    "sink logits": ((2, 1, 300, 500, 16), {"vertical": 60, "slash": 120, "sink_logits": (0.5, -2.0)}),
}


def minference(arrays, vertical, slash, **options):
    """(out, lse, info)"""
    options |= {"selector": MInference(vertical, slash), "causal": True}
    return icecore.attention(*arrays, return_lse=True, return_info=True, **options)


@cache
def minference_case(case):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = MINFERENCE_CASES[case]
    given = clustered(np.random.default_rng(21), *shape)
    return given, options, reference.minference_attention(*given, return_margin=True, **options)


def assert_clear_equal(actual, expected, atol=5e-5):
    """Where lines or blocks are clearly chosen; returns the share of these heads or rows."""
    out, lse, info = actual
    expected, expected_lse, near, margin = expected
    clear = margin > 1e-4
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_allclose(out[clear].astype(np.float64), expected[clear], atol=atol)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=5e-5)
    return clear.mean()


@pytest.mark.parametrize("case", MINFERENCE_CASES)
def test_minference_equals_its_oracle(isa, case):
    given, options, expected = minference_case(case)
    actual = minference(given, **options)
    assert actual[2].path == "minference"
    assert assert_clear_equal(actual, expected) >= 0.5


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 200), st.integers(-50, 300),
       st.sampled_from([1, 7, 64]), st.integers(1, 200), st.integers(1, 300))
def test_minference_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, vertical, slash):
    given = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    if max(vertical, slash) < given[1].shape[2]:  # else exact
        expected = reference.minference_attention(*given, vertical=vertical, slash=slash, return_margin=True)
        assert_clear_equal(minference(given, vertical, slash), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_minference_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    given = [a.astype(dtype) for a in clustered(np.random.default_rng(22), 4, 2, 300, 400, 32)]
    if layout != "contiguous":
        given = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in given]
    wide = [a.astype(np.float32) for a in given]
    expected = reference.minference_attention(*wide, vertical=50, slash=120, return_margin=True)
    assert assert_clear_equal(minference(given, 50, 120), expected, atol=0.03) >= 0.5


def test_all_lines_are_exact_attention():
    given = clustered(np.random.default_rng(23), 2, 1, 300, 300, 16)
    exact = icecore.attention(*given, causal=True)
    for vertical, slash in ((300, 1), (1, 300), (299, 299)):
        np.testing.assert_allclose(minference(given, vertical, slash)[0], exact, atol=2e-5)


def test_every_entry_of_a_batch_elects_its_own_lines():
    entries = [clustered(np.random.default_rng(seed), 2, 1, 200, 300, 16) for seed in (24, 25)]
    given = [np.concatenate(each) for each in zip(*entries, strict=True)]
    both = icecore.attention(*given, selector=MInference(40, 110), causal=True)
    for entry in range(2):
        alone = icecore.attention(*(a[entry : entry + 1] for a in given), selector=MInference(40, 110), causal=True)
        np.testing.assert_array_equal(both[entry], alone[0])


def test_a_key_without_votes_is_dropped_whatever_it_holds():
    """Queries that see the NaN do not vote; among the others some elect lines that pass it by."""
    q, k, v = clustered(np.random.default_rng(26), 1, 1, 300, 300, 16)
    k[0, 0, 270] = np.nan
    options = {"vertical": 40, "slash": 101}
    expected, _, near = reference.minference_attention(q, k, v, **options)
    out, _, info = minference((q, k, v), **options)
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    assert np.isfinite(out[0, 0, :270]).all() and np.isnan(out[0, 0, 270:]).all()


def test_minference_gives_the_same_bits_for_any_number_of_threads(isa):
    given = clustered(np.random.default_rng(27), 6, 2, 300, 500, 48)
    one, two = (minference(given, 50, 120, num_threads=n)[0] for n in (1, 2))
    np.testing.assert_array_equal(one, two)


# ---- Blocks by their means ----


BLOCK_SPARSE_CASES = {
    "prefill": ((3, 1, 700, 700, 32), {"k": 128, "causal": True}),
    "a chunk": ((4, 2, 130, 900, 16), {"k": 100, "causal": True}),
    "both ways": ((4, 2, 130, 900, 16), {"k": 65}),
    "more queries than keys": ((2, 2, 500, 400, 16), {"k": 1, "causal": True}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"k": 256, "causal": True}),
    "another scale": ((2, 1, 300, 500, 7), {"k": 128, "scale": -0.4}),
    "a soft cap and sink logits": ((2, 1, 300, 500, 16), {"k": 64, "softcap": 2.0, "sink_logits": (1.0, -2.0)}),
}


def block_sparse(arrays, k, **options):
    """(out, lse, info)"""
    return icecore.attention(*arrays, selector=BlockSparse(k), return_lse=True, return_info=True, **options)


@cache
def block_sparse_case(case):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = BLOCK_SPARSE_CASES[case]
    given = clustered(np.random.default_rng(28), *shape)
    return given, options, reference.block_sparse_attention(*given, return_margin=True, **options)


@pytest.mark.parametrize("case", BLOCK_SPARSE_CASES)
def test_block_sparse_equals_its_oracle(isa, case):
    given, options, expected = block_sparse_case(case)
    actual = block_sparse(given, **options)
    assert actual[2].path == "block_sparse"
    assert assert_clear_equal(actual, expected) > 0.9


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 200), st.integers(-50, 400),
       st.sampled_from([1, 7, 64]), st.integers(1, 300), st.booleans())
def test_block_sparse_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, k, causal):
    given = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    if k < given[1].shape[2]:  # else exact
        expected = reference.block_sparse_attention(*given, k=k, causal=causal, return_margin=True)
        assert_clear_equal(block_sparse(given, k, causal=causal), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_block_sparse_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    given = [a.astype(dtype) for a in clustered(np.random.default_rng(29), 4, 2, 300, 700, 32)]
    if layout != "contiguous":
        given = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in given]
    wide = [a.astype(np.float32) for a in given]
    expected = reference.block_sparse_attention(*wide, k=128, causal=True, return_margin=True)
    assert assert_clear_equal(block_sparse(given, 128, causal=True), expected, atol=0.03) > 0.9


@settings(max_examples=15)
@given(st.integers(0, 899), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_block_sparse(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 900, 900, 16)
    whole = block_sparse((q, k, v), 100, causal=True)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = block_sparse((q, k, v), 100, causal=True)[0]
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_a_nan_in_a_block_reaches_the_rows_that_see_it():
    q, k, v = clustered(np.random.default_rng(30), 2, 1, 500, 500, 16)
    k[0, 0, 200, 3] = np.nan
    out = block_sparse((q, k, v), 64, causal=True)[0]
    assert np.isfinite(out[:, :, :200]).all() and np.isnan(out[:, :, 200:]).all()


def test_block_sparse_gives_the_same_bits_for_any_number_of_threads(isa):
    given = clustered(np.random.default_rng(31), 6, 2, 300, 700, 48)
    one, two = (block_sparse(given, 128, causal=True, num_threads=n)[0] for n in (1, 2))
    np.testing.assert_array_equal(one, two)


# ---- IceFormer's method: P-DCI ----


def clustered(rng, heads, key_heads, queries, keys, dim, value_dim=24):
    """Keys and queries around 40 centres: some keys matter much more than others."""
    centres = 2 * rng.normal(size=(40, dim))
    query, key, value = arrays(rng, heads, key_heads, queries, keys, dim, value_dim)
    return [(centres[rng.integers(40, size=a.shape[:-1])] + a).astype(np.float32) for a in (query, key)] + [value]


def assert_pdci_equals(expected, arrays, options):
    """Where keys are clearly told apart; returns the share of these rows."""
    selector, others = PDCI(options["k"], options["visit"]), {n: o for n, o in options.items() if n not in ("k", "visit")}
    out, lse, info = icecore.attention(*arrays, selector=selector, return_lse=True, return_info=True, **others)
    expected, expected_lse, near, margin = expected
    clear = margin > 1e-5
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_allclose(out[clear], expected[clear], atol=2e-5)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=2e-5)
    return clear.mean()


PDCI_CASES = {
    "causal": ((2, 1, 600, 1700, 16), {"k": 20, "visit": 60, "causal": True}),
    "last rows of many keys": ((3, 1, 20, 6000, 32), {"k": 32, "visit": 300, "causal": True}),
    "both ways": ((4, 2, 30, 1500, 16), {"k": 20, "visit": 100}),
    "one key": ((1, 1, 30, 3000, 64), {"k": 1, "visit": 1}),
    "one component": ((2, 1, 30, 900, 1), {"k": 9, "visit": 10, "causal": True}),
    "another seed and scale": ((2, 1, 30, 1500, 9), {"k": 20, "visit": 100, "seed": 2**64 - 1, "scale": -0.3}),
    "more queries than keys": ((1, 1, 700, 600, 8), {"k": 20, "visit": 100, "causal": True}),
    "an offset": ((1, 1, 30, 1500, 16), {"k": 20, "visit": 100}),
    "a soft cap and sink logits": ((2, 1, 30, 1500, 16), {"k": 20, "visit": 100, "softcap": 2.0, "sink_logits": (0.5, -2.0)}),
}


@cache
def pdci_case(case):
    """(oracle's results, arrays, options), once for all instruction sets."""
    shape, options = PDCI_CASES[case]
    q, k, v = clustered(np.random.default_rng(5), *shape)
    k += np.float32(30 if case == "an offset" else 0)
    return reference.pdci_attention(q, k, v, return_margin=True, **options), (q, k, v), options


@pytest.mark.parametrize("case", PDCI_CASES)
def test_pdci_equals_its_oracle(isa, case):
    assert assert_pdci_equals(*pdci_case(case)) > 0.5


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 30), st.integers(0, 1300),
       st.sampled_from([1, 7, 32, 64]), st.integers(1, 100), st.integers(0, 100), st.booleans())
def test_pdci_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, k, visit, causal):
    q, k_, v = clustered(np.random.default_rng(seed), *heads, queries, queries + more, dim)
    options = {"k": k, "visit": k + visit, "causal": causal}
    assert_pdci_equals(reference.pdci_attention(q, k_, v, return_margin=True, **options), (q, k_, v), options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_visiting_all_keys_is_the_exact_top_k(isa, dtype, causal):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    q, k, v = (a.astype(dtype) for a in clustered(np.random.default_rng(6), 4, 2, 100, 1100, 16))
    out, lse, info = icecore.attention(
        q, k, v, selector=PDCI(7, 1100), causal=causal, return_lse=True, return_info=True
    )
    expected, expected_lse, _ = reference.top_k_attention(*(a.astype(np.float32) for a in (q, k, v)), k=7, causal=causal)
    assert info.path == "pdci"
    assert np.all(info.near_keys == 7)
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=2e-5 if dtype == np.float32 else 0.03)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5)


@pytest.mark.parametrize("selector", [PDCI(7, 200), TopK(7)])
def test_of_equal_scores_as_many_are_kept_as_k_says(isa, selector):
    """Every key four times, and one value for all: the top seven scores are four equal ones and three of the next."""
    q, k, _ = arrays(np.random.default_rng(7), 2, 1, 60, 50, 16, 3)
    k, v = np.repeat(k, 4, axis=2), np.ones((1, 1, 200, 3), np.float32)
    out, lse, info = icecore.attention(q, k, v, selector=selector, return_lse=True, return_info=True)
    scores = np.sort((q / 4) @ k.swapaxes(-1, -2), axis=-1)[..., -7:]
    assert np.all(info.near_keys == 7)
    np.testing.assert_allclose(out, 1, atol=1e-6)
    np.testing.assert_allclose(lse, np.log(np.exp(scores).sum(axis=-1)), atol=1e-5)


def test_the_usual_number_of_visited_keys():
    q, k, v = clustered(np.random.default_rng(8), 2, 1, 50, 3000, 16)
    for near, visit in ((200, 1600), (20, 1024)):
        usual = icecore.attention(q, k, v, selector=PDCI(near))
        np.testing.assert_array_equal(usual, icecore.attention(q, k, v, selector=PDCI(near, visit)))


def test_visiting_more_keys_finds_more_of_the_best():
    q, k, v = clustered(np.random.default_rng(9), 2, 1, 100, 4000, 32)
    top = reference.top_k_attention(q, k, v, k=16)[0]
    errors = [np.abs(icecore.attention(q, k, v, selector=PDCI(16, n)) - top).mean() for n in (16, 128, 1024, 3000)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.01 * errors[0]


@settings(max_examples=15)
@given(st.integers(0, 1599), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_pdci(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 1600, 1600, 16)
    whole = icecore.attention(q, k, v, selector=PDCI(16, 64), causal=True)
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = icecore.attention(q, k, v, selector=PDCI(16, 64), causal=True)
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_rows_of_a_chunk_are_those_of_the_whole():
    q, k, v = clustered(np.random.default_rng(10), 2, 1, 1600, 1600, 16)
    options = {"selector": PDCI(16, 64), "causal": True}
    whole = icecore.attention(q, k, v, **options)
    for begin, end in ((0, 1), (500, 600), (1023, 1024), (1024, 1600)):
        part = icecore.attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], **options)
        np.testing.assert_array_equal(part, whole[:, :, begin:end])


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_pdci_finds_a_key_that_is_not_finite(isa, number):
    """NaN in any case, infinity where the score is infinite."""
    q, k, v = clustered(np.random.default_rng(11), 1, 1, 200, 1300, 16)
    k[0, 0, 300, 3] = number
    out = icecore.attention(q, k, v, selector=PDCI(16, 64))
    spoiled = (q[0, 0, :, 3] > 0) | np.isnan(number)
    assert np.isnan(out[0, 0, spoiled]).all()
    assert np.isfinite(out[0, 0, ~spoiled]).all()


@pytest.mark.parametrize("causal", [False, True])
def test_pdci_gives_the_same_bits_for_any_number_of_threads(isa, causal):
    q, k, v = clustered(np.random.default_rng(12), 6, 2, 300, 1700, 48)
    options = {"selector": PDCI(50, 100), "causal": causal}
    one, two, again = (icecore.attention(q, k, v, num_threads=n, **options) for n in (1, 2, 2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(two, again)


@pytest.mark.parametrize("selector", [TopK(9), Pages(32), ArkVale(128, 16), MInference(40, 110), BlockSparse(64)])
def test_float64_is_computed_by_the_oracles(selector):
    wide = [a.astype(np.float64) for a in clustered(np.random.default_rng(20), 2, 1, 20, 600, 8)]
    out, info = icecore.attention(*wide, selector=selector, causal=True, return_info=True)
    narrow = icecore.attention(*(a.astype(np.float32) for a in wide), selector=selector, causal=True)
    assert info.path == "reference"
    np.testing.assert_allclose(out, narrow, atol=2e-5)


def test_float64_is_computed_by_the_oracle():
    q, k, v = (a.astype(np.float64) for a in clustered(np.random.default_rng(13), 2, 1, 20, 600, 8))
    out, info = icecore.attention(q, k, v, selector=PDCI(9, 20), seed=3, return_info=True)
    assert info.path == "reference"
    np.testing.assert_allclose(out, reference.pdci_attention(q, k, v, k=9, visit=20, seed=3)[0], atol=1e-12)


def test_the_last_queries_may_attend_exactly():
    q, k, v = clustered(np.random.default_rng(14), 2, 1, 300, 900, 16)
    plain, out = (icecore.attention(q, k, v, selector=PDCI(9, 20), causal=True, last_exact=n) for n in (0, 40))
    np.testing.assert_array_equal(out[:, :, :260], plain[:, :, :260])
    exact = icecore.attention(q, k, v, causal=True)
    np.testing.assert_allclose(out[:, :, 260:], exact[:, :, 260:], atol=1e-5)


def test_far_field_is_deprecated():
    q, k, v = clustered(np.random.default_rng(15), 2, 1, 20, 900, 16)
    with pytest.warns(FutureWarning, match=r"selector=icecore.selectors.PDCI\(k, visit\) now"):
        dropped = icecore.attention(q, k, v, k=9, visit=20, far_field=False)
    np.testing.assert_array_equal(dropped, icecore.attention(q, k, v, selector=PDCI(9, 20)))
    with pytest.warns(FutureWarning, match="are deprecated"):
        same = icecore.attention(q, k, v, k=9, far_field=True)
    np.testing.assert_array_equal(same, icecore.attention(q, k, v, k=9))
    for wrong, named in (
        ({"selector": "pages", "k": 9, "far_field": False}, "got selector='pages'"),
        ({"far_field": False}, "k=None"),
        ({"k": 9, "sinks": 4, "far_field": False}, "no sinks"),
        ({"k": 9, "visit": 20}, "visit=20 needs far_field=False"),
    ):
        with pytest.warns(FutureWarning), pytest.raises(ValueError, match=named):
            icecore.attention(q, k, v, **wrong)


# ---- Bad calls ----


@pytest.mark.parametrize(("options", "named"), [
    ({"selector": "page"}, "must be one of top_k, minference, .* or made by .*, got 'page'"),
    ({"selector": 4}, "selector must be one of .* or made by a class of icecore.selectors, got 4"),
    ({"selector": "pages", "k": 4}, "takes no k"),
    ({"selector": "pdci", "tolerance": 0.1}, "tolerance"),
    ({"selector": "pdci", "window": 3, "causal": True}, "takes no window"),
    ({"selector": "pdci", "metric": np.ones((1, 4))}, "metric"),
    ({"selector": "minference"}, "needs causal=True"),
    ({"selector": "pages", "sinks": 1}, "sinks"),
    ({"selector": "pages", "attn_mask": np.ones((5, 9), bool)}, "attn_mask"),
])
def test_what_a_selector_does_not_take_is_refused(options, named):
    q, k, v = arrays(np.random.default_rng(4), 1, 1, 5, 9, 4, 4)
    with pytest.raises(ValueError, match=named):
        icecore.attention(q, k, v, **options)


@pytest.mark.parametrize(("make", "error", "named"), [
    (lambda: Pages(0), ValueError, "k must be at least 1, got 0"),
    (lambda: TopK(0), ValueError, "k must be at least 1, got 0"),
    (lambda: MInference(vertical=0), ValueError, "vertical must be at least 1, got 0"),
    (lambda: MInference(slash=2.5), TypeError, "slash must be an integer, got float"),
    (lambda: BlockSparse(0), ValueError, "k must be at least 1, got 0"),
    (lambda: Pages(k=True), TypeError, "k must be an integer, got a bool"),
    (lambda: ArkVale(0), ValueError, "k must be at least 1, got 0"),
    (lambda: ArkVale(page=0), ValueError, "page must be at least 1, got 0"),
    (lambda: ArkVale(page=16.0), TypeError, "page must be an integer, got float"),
    (lambda: PDCI(4, 3), ValueError, "visit must be at least k=4, got 3"),
    (lambda: PDCI(4, visit=4.0), TypeError, "visit must be an integer, got float"),
])
def test_wrong_parameters_are_refused(make, error, named):
    with pytest.raises(error, match=named):
        make()


@pytest.mark.parametrize("selector", [
    TopK, MInference, BlockSparse, XAttention, Pages, ArkVale, PDCI, SparQ, MagicPIG, RetroInfer, VAttention, Zeta,
])
def test_a_name_stands_for_the_defaults(selector):
    q, k, v = clustered(np.random.default_rng(16), 2, 1, 20, 1600, 8)
    by_name, made = (icecore.attention(q, k, v, selector=each, causal=True) for each in (selector.name, selector()))
    np.testing.assert_array_equal(by_name, made)
