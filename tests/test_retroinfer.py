"""attention(selector=RetroInfer()): clusters in three zones, against the oracle with the same clusters to begin with."""

from functools import cache
from itertools import count

import numpy as np
import pytest
from chosen_keys import clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.random import sample_without_replacement
from icecore.reference.retroinfer import spherical_clusters
from icecore.selectors import RetroInfer

USUAL = {"retrieval": 0.1, "estimation": 0.3, "segment": 100, "sinks": 4, "local": 20}
CASES = {
    "causal": ((3, 1, 300, 500, 32), {"causal": True}),
    "both ways": ((4, 2, 130, 400, 16), {}),
    "more queries than keys": ((2, 2, 400, 300, 16), {"causal": True}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"causal": True, "local": 64}),
    "one segment": ((2, 1, 60, 600, 16), {"segment": 555, "causal": True}),
    "segments of fewer keys than a panel": ((2, 1, 200, 300, 16), {"segment": 17, "causal": True}),
    "one cluster per segment": ((2, 1, 100, 300, 16), {"segment": 12, "retrieval": 0.2}),
    "no steady zone": ((2, 1, 150, 200, 16), {"segment": 50, "sinks": 0, "local": 0, "causal": True}),
    "all estimated": ((2, 1, 60, 300, 16), {"retrieval": 1e-9, "estimation": 1 - 1e-9}),
    "another seed": ((2, 1, 60, 300, 9), {"seed": 2**64 - 1}),
    "a scale": ((2, 1, 60, 300, 9), {"scale": -0.4}),
    "a soft cap": ((2, 1, 60, 300, 16), {"softcap": 2.0, "causal": True}),
    "sink logits": ((2, 1, 60, 300, 16), {"sink_logits": (0.5, -2.0)}),
}


def retroinfer(arrays, retrieval, estimation, segment, sinks, local, **options):
    """(out, lse, info)"""
    selector = RetroInfer(retrieval, estimation, segment, sinks, local)
    return icecore.attention(*arrays, selector=selector, return_lse=True, return_info=True, **options)


def assert_equal(actual, expected, atol=5e-5, lse_atol=5e-5):
    """Where clusters are clearly told apart, and keys in clusters; returns the share of these rows."""
    (out, lse, info), (expected, expected_lse, near, margin) = actual, expected
    clear = margin > 1e-5
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_allclose(out[clear].astype(np.float64), expected[clear], atol=atol)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=lse_atol)
    return clear.mean()


@cache
def case_of(case):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = CASES[case]
    arrays, options = clustered(np.random.default_rng(3), *shape), USUAL | options
    return arrays, options, reference.retroinfer_attention(*arrays, return_margin=True, **options)


@pytest.mark.parametrize("case", CASES)
def test_retroinfer_equals_its_oracle(isa, case):
    arrays, options, expected = case_of(case)
    actual = retroinfer(arrays, **options)
    assert actual[2].path == "retroinfer"
    assert assert_equal(actual, expected) > 0.8
    assert (actual[2].near_keys < arrays[1].shape[2]).any()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 100), st.integers(-50, 300),
       st.sampled_from([2, 7, 64]), st.integers(1, 130), st.integers(0, 20), st.integers(0, 90),
       st.sampled_from([(0.018, 0.232), (0.3, 0.7), (0.5, 0.1)]), st.booleans())
def test_retroinfer_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, segment, sinks, local, shares, causal):
    arrays = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    options = {"segment": segment, "sinks": sinks, "local": local, "causal": causal, "seed": seed}
    options |= dict(zip(("retrieval", "estimation"), shares, strict=True))
    if sinks + segment + local <= arrays[1].shape[2]:  # else exact
        expected = reference.retroinfer_attention(*arrays, return_margin=True, **options)
        assert_equal(retroinfer(arrays, **options), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_retroinfer_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    arrays = [a.astype(dtype) for a in clustered(np.random.default_rng(4), 4, 2, 100, 400, 32)]
    if layout != "contiguous":
        arrays = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in arrays]
    wide = [a.astype(np.float32) for a in arrays]
    expected = reference.retroinfer_attention(*wide, return_margin=True, causal=True, **USUAL)
    assert assert_equal(retroinfer(arrays, causal=True, **USUAL), expected, atol=0.03, lse_atol=1e-3) > 0.8


def test_keys_of_one_direction_are_a_cluster_whatever_their_lengths():
    rng, group = np.random.default_rng(3), np.repeat(np.arange(6), 16)
    directions = np.linalg.qr(rng.normal(size=(8, 8)))[0][:5]
    directions = np.r_[directions, -directions.sum(axis=0)[None]]  # of the mean 0
    key = directions[group] * np.tile(rng.uniform(0.5, 2, size=16), 6)[:, None] + 100
    seed = next(s for s in count() if len({group[i] for i in sample_without_replacement(96, 6, s)}) == 6)
    members, margin = spherical_clusters(key, seed)
    assert margin > 0.1
    assert sorted(tuple(group[own]) for own in members) == [(g,) * 16 for g in range(6)]


def test_estimated_clusters_take_the_place_of_their_keys():
    """Values that are alike in a cluster, and short queries: the error is of second order; dropped they are missed."""
    q, k, v = clustered(np.random.default_rng(4), 2, 1, 40, 500, 16)
    q *= 0.1
    exact, exact_lse = icecore.attention(q, k, v, return_lse=True)
    estimated, lse, info = retroinfer((q, k, v), 0.01, 0.99, 480, 4, 0)
    dropped, dropped_lse, _ = retroinfer((q, k, v), 0.01, 0.01, 480, 4, 0)
    assert info.near_keys.mean() < 60
    assert np.all(lse <= exact_lse + 1e-5)  # by Jensen
    assert np.abs(lse - exact_lse).max() < 0.1 < np.abs(dropped_lse - exact_lse).min()
    assert np.abs(estimated - exact).mean() < 0.2 * np.abs(dropped - exact).mean()


def test_retrieving_all_clusters_is_exact_attention():
    arrays = clustered(np.random.default_rng(5), 4, 2, 300, 500, 16)
    exact, exact_lse = icecore.attention(*arrays, causal=True, return_lse=True)
    out, lse, info = retroinfer(arrays, 1 - 1e-9, 1e-9, 100, 4, 20, causal=True)
    np.testing.assert_allclose(out, exact, atol=2e-5)
    np.testing.assert_allclose(lse, exact_lse, atol=2e-5)
    np.testing.assert_array_equal(info.near_keys, np.broadcast_to(np.arange(201, 501), info.near_keys.shape))


@settings(max_examples=15)
@given(st.integers(0, 599), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_retroinfer(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 600, 600, 16)
    whole = retroinfer((q, k, v), causal=True, **USUAL)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = retroinfer((q, k, v), causal=True, **USUAL)[0]
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_decoding_sees_the_clusters_of_prefill():
    q, k, v = clustered(np.random.default_rng(6), 2, 1, 600, 600, 16)
    whole, _, info = retroinfer((q, k, v), causal=True, **USUAL)
    for begin, end in ((130, 131), (299, 320), (330, 600)):
        part, _, own = retroinfer((q[:, :, begin:end], k[:, :, :end], v[:, :, :end]), causal=True, **USUAL)
        np.testing.assert_array_equal(own.near_keys, info.near_keys[:, :, begin:end])
        np.testing.assert_allclose(part, whole[:, :, begin:end], atol=2e-5)


def test_an_offset_of_all_keys_changes_no_cluster():
    q, k, v = clustered(np.random.default_rng(7), 2, 1, 50, 400, 16)
    out, _, info = retroinfer((q, k, v), **USUAL)
    moved, _, moved_info = retroinfer((q, k + np.float32(2), v), **USUAL)
    same = info.near_keys == moved_info.near_keys
    assert same.mean() > 0.9
    np.testing.assert_allclose(moved[same], out[same], atol=1e-3)


@pytest.mark.parametrize("of", ["key", "value"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_segment_that_is_not_finite_is_exact(isa, number, of):
    arrays = clustered(np.random.default_rng(8), 2, 1, 200, 400, 16)
    arrays[1 if of == "key" else 2][0, 0, 250, 3] = number
    out, _, info = retroinfer(arrays, causal=True, **USUAL)
    expected, _, near, margin = reference.retroinfer_attention(*arrays, return_margin=True, causal=True, **USUAL)
    clear = margin > 1e-5
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_array_equal(np.isfinite(out[clear]), np.isfinite(expected[clear]))
    finite = clear & np.isfinite(expected).all(axis=-1)
    np.testing.assert_allclose(out[finite], expected[finite], atol=5e-5)
    assert np.isfinite(out[:, :, :50]).all()
    assert (~np.isfinite(out[:, :, 50:])).any()


def test_queries_that_are_not_finite_stay_alone():
    q, k, v = clustered(np.random.default_rng(9), 2, 1, 200, 400, 16)
    q[0, 0, 150, 3], q[0, 1, 90] = np.nan, np.inf
    wrong = np.isnan(retroinfer((q, k, v), causal=True, **USUAL)[0])
    assert wrong[0, 0, 150].all() and wrong[0, 1, 90].all()
    wrong[0, 0, 150], wrong[0, 1, 90] = False, False
    assert not wrong.any()


def test_equal_huge_tiny_and_empty_inputs():
    for factor in (0.0, 1e-38, 1e18):
        q, k, v = clustered(np.random.default_rng(10), 1, 1, 20, 300, 16)
        for arrays in ((q * np.float32(factor), k, v), (q, k * np.float32(factor), v), (q, np.repeat(k[:, :, :1], 300, 2), v)):
            out, lse, _ = retroinfer(arrays, causal=True, **USUAL)
            assert np.isfinite(out).all() and np.isfinite(lse).all()
            assert np.abs(out).max() <= np.abs(v).max() * 1.001
    none = [np.ones((1, 1, n, 4), np.float32) for n in (0, 300, 300)]
    assert retroinfer(none, **USUAL)[0].shape == (1, 1, 0, 4)


@pytest.mark.parametrize(("make", "error", "named"), [
    (lambda: RetroInfer(0), ValueError, "retrieval must be above 0 and below 1, got 0"),
    (lambda: RetroInfer(estimation=1.0), ValueError, "estimation must be above 0 and below 1, got 1.0"),
    (lambda: RetroInfer(0.6, 0.5), ValueError, "retrieval \\+ estimation must be at most 1, got 0.6 \\+ 0.5"),
    (lambda: RetroInfer("all"), TypeError, "retrieval must be a number, got str"),
    (lambda: RetroInfer(segment=0), ValueError, "segment must be at least 1, got 0"),
    (lambda: RetroInfer(sinks=-1), ValueError, "sinks must be at least 0, got -1"),
    (lambda: RetroInfer(local=-1), ValueError, "local must be at least 0, got -1"),
    (lambda: RetroInfer(segment=100.0), TypeError, "segment must be an integer, got float"),
])
def test_wrong_parameters_are_refused(make, error, named):
    with pytest.raises(error, match=named):
        make()
