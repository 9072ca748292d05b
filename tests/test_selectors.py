"""attention(selector=): other methods of choosing keys, against their oracles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import icecore
from icecore import reference


def arrays(rng, heads, key_heads, queries, keys, dim, value_dim):
    return [rng.normal(size=shape).astype(np.float32)
            for shape in ((1, heads, queries, dim), (1, key_heads, keys, dim), (1, key_heads, keys, value_dim))]


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 130), st.integers(0, 200),
       st.sampled_from([1, 7, 32, 64]), st.integers(1, 100), st.booleans())
def test_pages_equal_their_oracle(seed, heads, queries, more, dim, k, causal):
    q, k_, v = arrays(np.random.default_rng(seed), *heads, queries, queries + more, dim, 24)
    out, lse, info = icecore.attention(q, k_, v, k=k, selector="pages", causal=causal, return_lse=True, return_info=True)
    expected, expected_lse, near = reference.pages_attention(q, k_, v, k=k, causal=causal)
    np.testing.assert_array_equal(info.near_keys, near)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5)


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


@pytest.mark.parametrize(("options", "named"), [
    ({"selector": "page", "k": 4}, "selector must be one of pages, got 'page'"),
    ({"selector": "pages"}, "needs k="),
    ({"selector": "pages", "k": 4, "window": 3, "causal": True}, "window"),
    ({"selector": "pages", "k": 4, "sinks": 1}, "sinks"),
    ({"selector": "pages", "k": 4, "attn_mask": np.ones((5, 9), bool)}, "attn_mask"),
    ({"selector": "pages", "k": 4, "far_field": False}, "far_field"),
])
def test_what_a_selector_does_not_take_is_refused(options, named):
    q, k, v = arrays(np.random.default_rng(4), 1, 1, 5, 9, 4, 4)
    with pytest.raises(ValueError, match=named):
        icecore.attention(q, k, v, **options)
