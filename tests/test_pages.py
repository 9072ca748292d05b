"""attention(selector=Pages): Quest's pages, against the oracle."""

import numpy as np
import pytest
from chosen_keys import arrays
from hypothesis import given
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.dense import visible_count
from icecore.reference.pages import PAGE, page_bounds
from icecore.selectors import Pages


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
