"""sink_logits=: one more key of each query head, of that score and without a value, joins every softmax, on every path."""

import numpy as np
import pytest
from helpers import DTYPES, assert_exact, assert_same_bits, inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from score_options import assert_equals_the_oracle, assert_listed_keys_equal_the_oracle, attended_in_chunks, draw_problem

import icecore
from icecore import reference

logits = st.one_of(st.sampled_from([-np.inf, -1e30, -50.0, 0.0, 30.0, 1e30]), st.floats(-5, 10, width=32))


@st.composite
def sinks_of(draw, heads):
    return {"sink_logits": np.float32([draw(logits) for _ in range(heads)])}


@st.composite
def problems(draw):
    """(query, key, value, options)."""
    query, key, value, options = draw_problem(draw)
    options |= draw(sinks_of(query.shape[1]))
    return query, key, value, options | {"softcap": draw(st.none() | st.sampled_from([0.5, 50.0]))}


@settings(max_examples=60)
@given(problems())
def test_equals_the_float64_oracle(isa, problem):
    assert_equals_the_oracle(*problem)


def test_it_is_attention_with_one_more_key_of_value_0(isa):
    query, key, value = inputs((2, 60, 16), (2, 100, 16), 8)
    sinks = np.array([1.5, -0.5])
    out, lse = icecore.attention(query, key, value, sink_logits=sinks, return_lse=True)
    own, own_lse = icecore.attention(query, key, value, return_lse=True)
    share = np.exp(own_lse) / (np.exp(own_lse) + np.exp(sinks)[:, None])
    np.testing.assert_allclose(out, share[..., None] * own, atol=1e-6)
    np.testing.assert_allclose(lse, np.logaddexp(own_lse, sinks[:, None]), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_sink_is_minus_inf(isa, dtype):
    query, key, value = inputs((2, 60, 16), (2, 100, 16), 8, dtype)
    none = icecore.attention(query, key, value, sink_logits=np.full(2, -np.inf))
    assert_same_bits(none, icecore.attention(query, key, value))


@pytest.mark.parametrize("rows", [2, 60])
def test_a_query_that_sees_nothing_gives_0_and_its_sink(isa, rows):
    query, key, value = inputs((2, rows, 16), (2, 1, 16), 8)
    nothing = np.zeros((rows, 1), bool)
    out, lse = icecore.attention(query, key, value, attn_mask=nothing, sink_logits=[3.0, -np.inf], return_lse=True)
    assert not out.any()
    np.testing.assert_allclose(lse, np.repeat([[3.0], [-np.inf]], rows, axis=1))


def test_of_merged_parts_one_has_the_sinks():
    query, key, value = inputs((2, 20, 16), (2, 100, 16), 8)
    sinks = np.float32([2.0, 5.0])
    one = icecore.attention(query, key[:, :40], value[:, :40], sink_logits=sinks, return_lse=True)
    other = icecore.attention(query, key[:, 40:], value[:, 40:], return_lse=True)
    whole = icecore.attention(query, key, value, sink_logits=sinks, return_lse=True)
    for merged, expected in zip(icecore.merge_states(*zip(one, other, strict=True)), whole, strict=True):
        np.testing.assert_allclose(merged, expected, atol=2e-6)


@settings(max_examples=30)
@given(st.data())
def test_listed_keys_equal_the_oracle(isa, data):
    assert_listed_keys_equal_the_oracle(data.draw, sinks_of)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_gives_what_one_call_gives(isa, dtype, options):
    query, key, value = inputs((4, 300, 32), (2, 300, 32), 16)
    options = options | {"sink_logits": np.float32([2.0, -np.inf, 7.0, 0.0])}
    cache = icecore.KVCache(2, 32, value_dim=16, dtype=dtype, k=300, window=20, sinks=2)
    out, lse = attended_in_chunks(cache, query, key, value, 15, **options)
    expected, expected_lse = reference.attention(*(a[None] for a in (query, key, value)), causal=True, **options)
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    np.testing.assert_allclose(out, expected[0], atol=tolerance)
    np.testing.assert_allclose(lse, expected_lse[0], atol=10 * tolerance)


def test_a_nan_stays_with_its_row(isa):
    query, key, value = inputs((1, 60, 16), (1, 100, 16), 8)
    query[0, 7, 3] = np.nan
    out = icecore.attention(query, key, value, sink_logits=[1.0])
    assert np.isnan(out[0, 7]).all()
    assert np.isfinite(np.delete(out, 7, axis=1)).all()


@pytest.mark.parametrize("options", [{}, {"k": 30}, {"tolerance": 0.1}, {"selector": icecore.selectors.Pages(64)}])
def test_the_same_bits_for_any_number_of_threads(isa, options):
    query, key, value = inputs((2, 600, 32), (1, 600, 32), 16)
    call = {"causal": True, "sink_logits": [2.0, 6.0], **options}
    assert_same_bits(*(icecore.attention(query, key, value, num_threads=n, **call) for n in (1, 2)))


def test_split_keys_count_a_sink_once(isa):
    query, key, value = inputs((2, 1, 16), (1, 9000, 16), 8)
    sinks = np.float32([8.0, 12.0])
    assert_exact(icecore.attention(query, key, value, sink_logits=sinks, return_lse=True), query, key, value, sink_logits=sinks)


@pytest.mark.parametrize(
    ("sinks", "error", "message"),
    [
        ([0.0], ValueError, r"sink_logits has shape \(1,\); expected \(2,\), one for each query head"),
        ([[0.0, 0.0]], ValueError, r"sink_logits has shape \(1, 2\); expected \(2,\)"),
        (0.0, ValueError, r"sink_logits has shape \(\); expected \(2,\)"),
        ([0.0, np.nan], ValueError, r"sink_logits\[1\] is nan; expected magnitudes up to 1e\+30, or -inf for none"),
        ([np.inf, 0.0], ValueError, r"sink_logits\[0\] is inf"),
        ([0.0, -2e30], ValueError, r"sink_logits\[1\] is -2e\+30"),
        ([0, 1], TypeError, "sink_logits has dtype int64; expected a float for each query head"),
        (["a", "b"], TypeError, "sink_logits has dtype"),
    ],
)
def test_bad_ones_are_refused(sinks, error, message):
    query = np.ones((2, 3, 4), np.float32)
    with pytest.raises(error, match=message):
        icecore.attention(query, query, query, sink_logits=sinks)
    with pytest.raises(error, match=message):
        icecore.attend_indices(query, query, query, [0], sink_logits=sinks)
    cache = icecore.KVCache(2, 4)
    cache.append(query, query)
    with pytest.raises(error, match=message):
        cache.attend(query, sink_logits=sinks)
