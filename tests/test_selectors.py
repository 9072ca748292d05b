"""attention(selector=): other methods of choosing keys, against their oracles."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.dense import visible_count
from icecore.reference.pages import PAGE, page_bounds


def arrays(rng, heads, key_heads, queries, keys, dim, value_dim):
    return [rng.normal(size=shape).astype(np.float32)
            for shape in ((1, heads, queries, dim), (1, key_heads, keys, dim), (1, key_heads, keys, value_dim))]


def are_clear(query, key, k, causal):
    """(H, L): whether rounding cannot change which pages a row opens."""
    end, wanted = visible_count(query.shape[2], key.shape[2], causal), -(-k // PAGE)
    clear = np.ones(query.shape[1:3], bool)
    for h, i in np.ndindex(clear.shape):
        bounds = np.sort(page_bounds(query[0, h, i], key[0, h // (len(clear) // key.shape[1]), : end[i]].astype(np.float64)))
        if wanted < len(bounds):
            gap = bounds[-wanted] - bounds[-wanted - 1]
            clear[h, i] = gap > 1e-5 * np.abs(bounds).max()
    return clear


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 130), st.integers(0, 200),
       st.sampled_from([1, 7, 32, 64]), st.integers(1, 100), st.booleans(), st.sampled_from([None, 0.5, 30.0]), st.booleans())
def test_pages_equal_their_oracle(seed, heads, queries, more, dim, k, causal, softcap, with_sinks):
    q, k_, v = arrays(np.random.default_rng(seed), *heads, queries, queries + more, dim, 24)
    options = {"k": k, "causal": causal, "softcap": softcap, "sink_logits": np.arange(heads[0]) - 1.0 if with_sinks else None}
    out, lse, info = icecore.attention(q, k_, v, selector="pages", return_lse=True, return_info=True, **options)
    expected, expected_lse, near = reference.pages_attention(q, k_, v, **options)
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
    out = icecore.attention(q, k, v, k=64, selector="pages", causal=True)
    expected, _, _ = reference.pages_attention(*(a.astype(np.float32) for a in (q, k, v)), k=64, causal=True)
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=0.02)


def test_later_keys_change_no_row_of_pages():
    q, k, v = arrays(np.random.default_rng(1), 2, 1, 200, 200, 32, 32)
    whole = icecore.attention(q, k, v, k=32, selector="pages", causal=True)
    k[:, :, 150:], v[:, :, 150:] = np.nan, np.inf
    again = icecore.attention(q, k, v, k=32, selector="pages", causal=True)
    np.testing.assert_array_equal(again[:, :, :150], whole[:, :, :150])


def test_a_nan_in_a_page_reaches_the_rows_that_see_it():
    q, k, v = arrays(np.random.default_rng(2), 1, 1, 256, 256, 16, 16)
    k[0, 0, 40, 3] = np.nan
    out = icecore.attention(q, k, v, k=16, selector="pages", causal=True)
    assert np.isfinite(out[0, 0, :40]).all() and np.isnan(out[0, 0, 48:]).all()


def test_pages_give_the_same_bits_for_any_number_of_threads():
    q, k, v = arrays(np.random.default_rng(3), 6, 2, 300, 700, 48, 48)
    one, two = (icecore.attention(q, k, v, k=100, selector="pages", causal=True, num_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


# ---- IceFormer's method: P-DCI ----


def clustered(rng, heads, key_heads, queries, keys, dim, value_dim=24):
    """Keys and queries around 40 centres: some keys matter much more than others."""
    centres = 2 * rng.normal(size=(40, dim))
    query, key, value = arrays(rng, heads, key_heads, queries, keys, dim, value_dim)
    return [(centres[rng.integers(40, size=a.shape[:-1])] + a).astype(np.float32) for a in (query, key)] + [value]


def assert_pdci_equals(expected, arrays, options):
    """Where keys are clearly told apart; returns the share of these rows."""
    out, lse, info = icecore.attention(*arrays, selector="pdci", return_lse=True, return_info=True, **options)
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
        q, k, v, k=7, selector="pdci", visit=1100, causal=causal, return_lse=True, return_info=True
    )
    expected, expected_lse = reference.top_k_attention(*(a.astype(np.float32) for a in (q, k, v)), k=7, causal=causal)
    assert info.path == "pdci"
    assert np.all(info.near_keys == 7)
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=2e-5 if dtype == np.float32 else 0.03)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5)


def test_of_equal_scores_as_many_are_kept_as_k_says(isa):
    """Every key four times, and one value for all: the top seven scores are four equal ones and three of the next."""
    q, k, _ = arrays(np.random.default_rng(7), 2, 1, 60, 50, 16, 3)
    k, v = np.repeat(k, 4, axis=2), np.ones((1, 1, 200, 3), np.float32)
    out, lse, info = icecore.attention(q, k, v, k=7, selector="pdci", visit=200, return_lse=True, return_info=True)
    scores = np.sort((q / 4) @ k.swapaxes(-1, -2), axis=-1)[..., -7:]
    assert np.all(info.near_keys == 7)
    np.testing.assert_allclose(out, 1, atol=1e-6)
    np.testing.assert_allclose(lse, np.log(np.exp(scores).sum(axis=-1)), atol=1e-5)


def test_the_usual_number_of_visited_keys():
    q, k, v = clustered(np.random.default_rng(8), 2, 1, 50, 3000, 16)
    for near, visit in ((200, 1600), (20, 1024)):
        usual = icecore.attention(q, k, v, k=near, selector="pdci")
        np.testing.assert_array_equal(usual, icecore.attention(q, k, v, k=near, selector="pdci", visit=visit))


def test_visiting_more_keys_finds_more_of_the_best():
    q, k, v = clustered(np.random.default_rng(9), 2, 1, 100, 4000, 32)
    top, _ = reference.top_k_attention(q, k, v, k=16)
    errors = [np.abs(icecore.attention(q, k, v, k=16, selector="pdci", visit=n) - top).mean() for n in (16, 128, 1024, 3000)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.01 * errors[0]


@settings(max_examples=15)
@given(st.integers(0, 1599), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row_of_pdci(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 1600, 1600, 16)
    whole = icecore.attention(q, k, v, k=16, visit=64, selector="pdci", causal=True)
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = icecore.attention(q, k, v, k=16, visit=64, selector="pdci", causal=True)
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_rows_of_a_chunk_are_those_of_the_whole():
    q, k, v = clustered(np.random.default_rng(10), 2, 1, 1600, 1600, 16)
    options = {"k": 16, "visit": 64, "selector": "pdci", "causal": True}
    whole = icecore.attention(q, k, v, **options)
    for begin, end in ((0, 1), (500, 600), (1023, 1024), (1024, 1600)):
        part = icecore.attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], **options)
        np.testing.assert_array_equal(part, whole[:, :, begin:end])


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_pdci_finds_a_key_that_is_not_finite(isa, number):
    """NaN in any case, infinity where the score is infinite."""
    q, k, v = clustered(np.random.default_rng(11), 1, 1, 200, 1300, 16)
    k[0, 0, 300, 3] = number
    out = icecore.attention(q, k, v, k=16, visit=64, selector="pdci")
    spoiled = (q[0, 0, :, 3] > 0) | np.isnan(number)
    assert np.isnan(out[0, 0, spoiled]).all()
    assert np.isfinite(out[0, 0, ~spoiled]).all()


@pytest.mark.parametrize("causal", [False, True])
def test_pdci_gives_the_same_bits_for_any_number_of_threads(isa, causal):
    q, k, v = clustered(np.random.default_rng(12), 6, 2, 300, 1700, 48)
    options = {"k": 50, "visit": 100, "selector": "pdci", "causal": causal}
    one, two, again = (icecore.attention(q, k, v, num_threads=n, **options) for n in (1, 2, 2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(two, again)


def test_float64_is_computed_by_the_oracle():
    q, k, v = (a.astype(np.float64) for a in clustered(np.random.default_rng(13), 2, 1, 20, 600, 8))
    out, info = icecore.attention(q, k, v, k=9, visit=20, selector="pdci", seed=3, return_info=True)
    assert info.path == "reference"
    np.testing.assert_allclose(out, reference.pdci_attention(q, k, v, k=9, visit=20, seed=3)[0], atol=1e-12)


def test_the_last_queries_may_attend_exactly():
    q, k, v = clustered(np.random.default_rng(14), 2, 1, 300, 900, 16)
    plain, out = (icecore.attention(q, k, v, k=9, selector="pdci", visit=20, causal=True, last_exact=n) for n in (0, 40))
    np.testing.assert_array_equal(out[:, :, :260], plain[:, :, :260])
    exact = icecore.attention(q, k, v, causal=True)
    np.testing.assert_allclose(out[:, :, 260:], exact[:, :, 260:], atol=1e-5)


def test_far_field_is_deprecated():
    q, k, v = clustered(np.random.default_rng(15), 2, 1, 20, 900, 16)
    with pytest.warns(FutureWarning, match="far_field=False is selector='pdci'"):
        dropped = icecore.attention(q, k, v, k=9, visit=20, far_field=False)
    np.testing.assert_array_equal(dropped, icecore.attention(q, k, v, k=9, visit=20, selector="pdci"))
    with pytest.warns(FutureWarning, match="far_field is deprecated"):
        same = icecore.attention(q, k, v, k=9, far_field=True)
    np.testing.assert_array_equal(same, icecore.attention(q, k, v, k=9))
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="got selector='pages' as well"):
        icecore.attention(q, k, v, k=9, far_field=False, selector="pages")
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="takes no sinks"):
        icecore.attention(q, k, v, k=9, far_field=False, sinks=4)


# ---- Bad calls ----


@pytest.mark.parametrize(("options", "named"), [
    ({"selector": "page", "k": 4}, "selector must be one of pages, pdci, got 'page'"),
    ({"selector": "pages"}, "needs k="),
    ({"selector": "pdci"}, "needs k="),
    ({"selector": "pdci", "k": 4, "tolerance": 0.1}, "tolerance"),
    ({"selector": "pdci", "k": 4, "window": 3, "causal": True}, "takes no window"),
    ({"selector": "pdci", "k": 4, "metric": np.ones((1, 4))}, "metric"),
    ({"selector": "pdci", "k": 4, "visit": 3}, "visit must be at least k=4, got 3"),
    ({"selector": "pages", "k": 4, "visit": 8}, "visit=8 needs selector='pdci'"),
    ({"selector": "pages", "k": 4, "window": 3, "causal": True}, "window"),
    ({"selector": "pages", "k": 4, "sinks": 1}, "sinks"),
    ({"selector": "pages", "k": 4, "attn_mask": np.ones((5, 9), bool)}, "attn_mask"),
])
def test_what_a_selector_does_not_take_is_refused(options, named):
    q, k, v = arrays(np.random.default_rng(4), 1, 1, 5, 9, 4, 4)
    with pytest.raises(ValueError, match=named):
        icecore.attention(q, k, v, **options)
