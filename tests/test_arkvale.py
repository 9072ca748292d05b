"""attention(selector=ArkVale()): pages by boxes as wide as their keys are on average, against the oracle."""

from functools import cache

import numpy as np
import pytest
from chosen_keys import clustered
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pages import are_clear

import icecore
from icecore import reference
from icecore.reference.pages import arkvale_bounds, mean_box, page_bounds, whole_box
from icecore.selectors import ArkVale, Pages

CASES = {
    "prefill": ((3, 1, 700, 700, 32), {"k": 160, "page": 32, "causal": True}),
    "small pages": ((4, 2, 130, 600, 16), {"k": 100, "page": 16, "causal": True}),
    "pages of one key": ((2, 1, 60, 300, 16), {"k": 30, "page": 1, "causal": True}),
    "odd pages, both ways": ((4, 2, 130, 900, 7), {"k": 150, "page": 23}),
    "few keys per query": ((2, 1, 130, 900, 16), {"k": 1, "page": 32, "causal": True}),
    "more queries than keys": ((2, 2, 500, 400, 16), {"k": 150, "page": 32, "causal": True}),
    "a page that no query sees whole": ((2, 1, 50, 90, 16), {"k": 30, "page": 100}),
    "a step of decoding": ((3, 1, 1, 1000, 64), {"k": 256, "page": 32, "causal": True}),
    "another scale": ((2, 1, 100, 500, 9), {"k": 160, "page": 32, "scale": -0.4}),
    "a soft cap and sink logits": ((2, 1, 100, 500, 16), {"k": 160, "page": 32, "softcap": 2.0, "sink_logits": (1.0, -2.0)}),
}


def arkvale(arrays, k, page, **options):
    """(out, lse, info)"""
    return icecore.attention(*arrays, selector=ArkVale(k, page), return_lse=True, return_info=True, **options)


def assert_equal(arrays, expected, k, page, atol=2e-5, **options):
    """Where pages are clearly told apart; returns the share of these rows."""
    out, lse, info = arkvale(arrays, k, page, **options)
    expected, expected_lse, near = expected
    query, key = (a.astype(np.float32) * np.sign(options.get("scale", 1)) for a in arrays[:1]), arrays[1].astype(np.float32)
    clear = are_clear(*query, key, k, options.get("causal", False), arkvale_bounds, page)[None]
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_allclose(out[clear].astype(np.float64), expected[clear], atol=atol)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=2e-5)
    return clear.mean()


@cache
def case_of(case):
    """(arrays, oracle's results, options), once for all instruction sets."""
    shape, options = CASES[case]
    arrays = clustered(np.random.default_rng(1), *shape)
    return arrays, reference.arkvale_attention(*arrays, **options), options


@pytest.mark.parametrize("case", CASES)
def test_arkvale_equals_its_oracle(isa, case):
    arrays, expected, options = case_of(case)
    assert assert_equal(arrays, expected, **options) > 0.9


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 130), st.integers(-50, 300),
       st.sampled_from([1, 7, 64]), st.integers(1, 200), st.integers(1, 40), st.booleans())
def test_arkvale_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, k, page, causal):
    arrays = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    options = {"k": k, "page": page, "causal": causal}
    if k < arrays[1].shape[2]:  # else exact
        assert_equal(arrays, reference.arkvale_attention(*arrays, **options), **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_arkvale_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    arrays = [a.astype(dtype) for a in clustered(np.random.default_rng(2), 4, 2, 100, 600, 32)]
    if layout != "contiguous":
        arrays = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in arrays]
    options = {"k": 160, "page": 32, "causal": True}
    expected = reference.arkvale_attention(*(a.astype(np.float32) for a in arrays), **options)
    assert assert_equal(arrays, expected, atol=0.03, **options) > 0.9


def test_boxes_are_quests_shrunk_about_their_centre():
    pages = np.random.default_rng(3).normal(size=(50, 32, 16))
    (low, high), (inner_low, inner_high) = whole_box(pages), mean_box(pages)
    np.testing.assert_allclose(inner_low + inner_high, low + high)
    assert np.all((low < inner_low) & (inner_high < high))


def test_scores_of_boxes_rank_pages_better_than_bounds_do():
    """Of the pages with the most mass more are found."""
    rng, found = np.random.default_rng(4), {arkvale: 0, Pages: 0}
    query, key, _ = clustered(rng, 1, 1, 100, 2048, 32)
    for row in query[0, 0]:
        mass = np.exp(key[0, 0] @ row / np.sqrt(32)).reshape(-1, 16).sum(axis=1)
        best = set(np.argsort(-mass)[:10])
        for name, box in ((arkvale, mean_box), (Pages, whole_box)):
            found[name] += len(best & set(np.argsort(-page_bounds(row, key[0, 0], 16, box))[:10]))
    assert found[arkvale] > found[Pages] > 200


def test_the_first_pages_and_the_newest_are_always_chosen():
    """Values of 1 there, and keys that no query looks for."""
    q, k, v = clustered(np.random.default_rng(5), 1, 1, 1, 1000, 16)
    k[:, :, :32], k[:, :, 976:] = -10 * q, -10 * q
    near = {page: arkvale((q, k, v), 64, page, causal=True)[2].near_keys[0, 0, 0] for page in (16, 32)}
    assert near == {16: 4 * 16 + 8, 32: 3 * 32 + 8}  # k=64: of 16 one more page, of 32 these three
    one = np.zeros_like(v)
    one[:, :, :32], one[:, :, 976:] = 1, 1
    ranked = arkvale((q, k, one), 48, 16, causal=True)
    np.testing.assert_allclose(ranked[0], 1, atol=1e-6)
    assert ranked[2].near_keys == 48 + 8


@settings(max_examples=15)
@given(st.integers(0, 599), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_arkvale(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 600, 600, 16)
    whole = arkvale((q, k, v), 100, 16, causal=True)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = arkvale((q, k, v), 100, 16, causal=True)[0]
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_page_that_is_not_finite_is_attended_to(isa, number):
    q, k, v = clustered(np.random.default_rng(6), 2, 1, 500, 500, 16)
    k[0, 0, 100, 3] = number
    out = arkvale((q, k, v), 64, 16, causal=True)[0]
    spoiled = (np.isnan(number) | (q[..., 3] * number > 0)) & (np.arange(500) >= 112)
    np.testing.assert_array_equal(np.isnan(out).any(axis=-1)[..., 112:], spoiled[..., 112:])
    assert np.isfinite(out[:, :, :100]).all()
