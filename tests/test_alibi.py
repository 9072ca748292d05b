"""alibi_slopes=: scores fall by a slope of each query head times the distance of query and key."""

import numpy as np
import pytest
from helpers import DTYPES, assert_exact, assert_same_bits, decode, encode, head_error, inputs, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from score_options import assert_equals_the_oracle, attended_in_chunks, draw_problem

import icecore
from icecore import _cost_model, reference
from icecore._arrays import check_problem, check_scores
from icecore._call import Call
from icecore._settings import Settings


def published(heads):
    """The slopes of ALiBi for a power of two of heads."""
    return np.float32(2.0 ** (-8.0 * np.arange(1, heads + 1) / heads))


@st.composite
def problems(draw):
    """(query, key, value, options)."""
    query, key, value, options = draw_problem(draw, more_keys=[700], windows=[st.just((30, 5))])
    heads = query.shape[1]
    slopes = st.sampled_from([0.0, 1e-9, 2.0**-8, 0.1, 0.5, 3.0])
    return query, key, value, options | {
        "alibi_slopes": np.float32([draw(slopes) for _ in range(heads)]),
        "softcap": draw(st.none() | st.sampled_from([0.5, 50.0])),
        "sink_logits": draw(st.none() | st.just(np.arange(heads) - 1.0)),
    }


@settings(max_examples=60)
@given(problems())
def test_equals_the_float64_oracle(isa, problem):
    assert_equals_the_oracle(*problem)


@pytest.mark.parametrize("causal", [False, True])
def test_the_oracle_is_an_additive_mask(causal):
    query, key, value = (normal(i, 1, 2, n, 4, dtype="float64") for i, n in enumerate((3, 5, 5)))
    bias = np.empty((2, 3, 5))
    for head, slope in enumerate((0.5, 0.25)):
        for i in range(3):
            for j in range(5):
                bias[head, i, j] = -slope * abs(i + 2 - j)
    expected, expected_lse = reference.attention(query, key, value, attn_mask=bias, causal=causal)
    for function in (reference.attention, lambda *a, **o: icecore.attention(*a, return_lse=True, **o)):
        out, lse = function(query, key, value, alibi_slopes=np.array([0.5, 0.25]), causal=causal)
        np.testing.assert_allclose(out, expected, rtol=1e-12)
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [2, 60])
def test_no_slope_is_no_bias(isa, dtype, queries):
    query, key, value = inputs((2, queries, 64), (2, 500, 64), 16, dtype)
    flat = icecore.attention(query, key, value, causal=True, alibi_slopes=np.zeros(2))
    np.testing.assert_allclose(decode(flat), decode(icecore.attention(query, key, value, causal=True)), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("queries", [1, 24])
def test_near_keys_keep_their_distances_in_long_inputs(isa, dtype, tolerance, queries):
    query, key, value = inputs((4, queries, 32), (1, 70_000, 32), 16, dtype)
    slopes = published(4)
    out = decode(icecore.attention(query, key, value, causal=True, alibi_slopes=slopes))
    expected, _ = reference.attention(*(decode(a)[None] for a in (query, key, value)), causal=True, alibi_slopes=slopes)
    np.testing.assert_allclose(out, expected[0], atol=tolerance)


def test_a_step_of_decoding_is_the_last_row_of_a_prompt(isa):
    query, key, value = inputs((8, 300, 32), (2, 300, 32), 16)
    slopes = published(8)
    whole = icecore.attention(query, key, value, causal=True, alibi_slopes=slopes)
    step = icecore.attention(query[:, -1:], key, value, causal=True, alibi_slopes=slopes)
    np.testing.assert_allclose(step, whole[:, -1:], atol=1e-6)


def test_entries_of_a_batch_have_positions_of_their_own(isa):
    query, key, value = inputs((2, 4, 50, 32), (2, 2, 50, 32), 16)
    slopes, lengths = published(4), [50, 20]
    out = icecore.attention(query, key, value, causal=True, alibi_slopes=slopes, lengths=lengths, padding_side="left")
    alone = icecore.attention(query[1, :, 30:], key[1, :, 30:], value[1, :, 30:], causal=True, alibi_slopes=slopes)
    assert_same_bits(out[1, :, 30:], alone)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_hidden_has_no_effect(isa, dtype, number):
    query, key, value = inputs((2, 60, 32), (2, 60, 32), 16, dtype)
    slopes = np.float32([0.5, 0.01])
    clean = icecore.attention(query, key, value, causal=True, alibi_slopes=slopes)
    key, value = key.copy(), value.copy()
    for array in (key, value):
        array[:, 40] = np.float32(number) if array.dtype != np.uint16 else np.float32(number).view(np.uint32) >> 16
    out = icecore.attention(query, key, value, causal=True, alibi_slopes=slopes)
    np.testing.assert_allclose(decode(out[:, :40]), decode(clean[:, :40]), atol=2e-2, rtol=2e-2)


def test_the_same_bits_for_any_number_of_threads(isa):
    query, key, value = inputs((4, 300, 32), (2, 300, 32), 16)
    one, two = (icecore.attention(query, key, value, alibi_slopes=published(4), num_threads=n) for n in (1, 2))
    assert_same_bits(one, two)


def test_slopes_far_too_steep_leave_the_query_s_own_key(isa):
    query, key, value = inputs((2, 60, 32), (2, 60, 32), 16)
    np.testing.assert_allclose(icecore.attention(query, key, value, alibi_slopes=[1e6, 1e6]), value, rtol=1e-6)


@pytest.mark.parametrize(
    ("slopes", "error", "message"),
    [
        ([0.5], ValueError, r"alibi_slopes has shape \(1,\); expected \(2,\), one for each query head"),
        ([[0.5, 0.5]], ValueError, r"alibi_slopes has shape \(1, 2\); expected \(2,\)"),
        ([0.5, -0.25], ValueError, r"alibi_slopes\[1\] is -0.25; expected 0 to 1e\+06"),
        ([np.nan, 0.5], ValueError, r"alibi_slopes\[0\] is nan"),
        ([0.5, 2e6], ValueError, r"alibi_slopes\[1\] is 2000000.0"),
        ([0.5, 1e300], ValueError, r"alibi_slopes\[1\] is inf"),
        ([0, 1], TypeError, "alibi_slopes has dtype int64; expected a float for each query head"),
    ],
)
def test_bad_ones_are_refused(slopes, error, message):
    array = np.ones((2, 3, 4), np.float32)
    with pytest.raises(error, match=message):
        icecore.attention(array, array, array, alibi_slopes=slopes)


# ---- Near/far attention ----


def by_position(query, key, value, slopes, **settings):
    """The call's near/far path, however short the input: (out, lse)."""
    problem = check_problem(query, key, value)
    scores = check_scores(None, None, None, query.shape[-3], query.shape[-1], slopes)
    out, lse = np.empty(problem.out_shape, problem.dtype), np.empty(problem.shape[:3], np.float32)
    settings = {"k": 1, "window": 64, "sinks": 4, **settings}
    call = Call(problem, scores, out[(None,) * (4 - out.ndim)], lse, causal=True, settings=Settings(**settings))
    call._near_far_by_position()
    return out, lse.reshape(out.shape[:-1])


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_near_far_with_all_keys_near_is_exact(isa, dtype):
    query, key, value = inputs((4, 300, 32), (2, 300, 32), 16, dtype)
    slopes = np.float32([0.0, 0.004, 0.1, 0.5])
    out, lse = by_position(query, key, value, slopes, k=300)
    four = (decode(a)[None] for a in (query, key, value))
    expected, expected_lse = reference.attention(*four, causal=True, alibi_slopes=slopes)
    tolerance = {"float16": 2e-3, "float32": 2e-5, "float64": 1e-12}.get(dtype, 2e-2)
    np.testing.assert_allclose(decode(out), expected[0], atol=tolerance)
    np.testing.assert_allclose(lse, expected_lse[0], atol=1e-4)


@pytest.mark.parametrize("tolerance", [0.03, 0.1])
def test_near_far_keeps_its_tolerance_on_a_language_model(capture, isa, tolerance):
    slopes = np.float32([0.3, 0.01, 2.0**-8])
    exact = icecore.attention(*capture, causal=True, alibi_slopes=slopes)
    out, _ = by_position(*capture, slopes, tolerance=tolerance, window=128, sinks=16)
    assert (head_error(out, exact) < 1.3 * tolerance).all()


def test_cells_know_distances(capture, isa):
    slopes = np.full(3, 0.3, np.float32)
    exact = icecore.attention(*capture, causal=True, alibi_slopes=slopes)
    out, _ = by_position(*capture, slopes, k=32, window=128, sinks=16)
    assert head_error(out, exact).max() < 1e-3  # what is far has hardly any weight


def test_a_long_call_takes_the_near_far_path(isa):
    query, key, value = inputs((2, 6000, 32), (1, 6000, 32), 16)
    query *= np.float32(0.1)
    options = {"causal": True, "alibi_slopes": np.float32([0.01, 0.001]), "return_lse": True}
    with _cost_model.use(_cost_model.NearFarAlways()):
        out, lse, info = icecore.attention(query, key, value, k=64, return_info=True, **options)
    expected, expected_lse = icecore.attention(query, key, value, **options)
    assert info.path == "near_far"
    assert head_error(out, expected).max() < 0.1
    np.testing.assert_allclose(lse, expected_lse, atol=0.1)


@pytest.mark.parametrize("slope", [20.0, 1e6])
def test_slopes_that_hide_scores_in_float32_are_attended_exactly(slope):
    query, key, value = inputs((2, 8192, 32), (1, 8192, 32), 16)
    options = {"causal": True, "alibi_slopes": np.float32([slope, 0.001]), "return_lse": True}
    out, lse, info = icecore.attention(query, key, value, tolerance=0.05, return_info=True, **options)
    assert info.path == "exact"
    for array, expected in zip((out, lse), icecore.attention(query, key, value, **options), strict=True):
        assert_same_bits(array, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"k": 1}, "alibi_slopes with k or tolerance needs causal=True"),
        ({"tolerance": 0.1, "causal": True, "softcap": 5.0}, "alibi_slopes with softcap: expected exact attention, or"),
        ({"k": 1, "causal": True, "sink_logits": [0.0, 0.0]}, "alibi_slopes with sink_logits"),
        ({"selector": "top_k"}, "alibi_slopes with selector"),
    ],
)
def test_ways_that_know_no_distances_refuse_them(how, message, dtype):
    array = np.ones((2, 3, 4), dtype)
    with pytest.raises(ValueError, match=message):
        icecore.attention(array, array, array, alibi_slopes=[0.5, 0.25], **how)


def test_near_far_needs_room_for_positions():
    array = np.ones((1, 3, 576), np.float32)
    with pytest.raises(ValueError, match="query has a last axis of 576; expected at most 575 with alibi_slopes"):
        icecore.attention(array, array, array, causal=True, k=1, alibi_slopes=[0.5])


# ---- Caches ----


@pytest.mark.parametrize("chunk", [1, 47, 130])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_a_cache_gives_what_one_call_gives(isa, dtype, chunk):
    query, key, value = inputs((4, 130, 32), (2, 130, 32), 16)
    slopes = np.float32([0.0, 0.004, 0.1, 0.5])
    cache = icecore.KVCache(2, 32, value_dim=16, dtype=dtype, window=16, sinks=2)
    out, lse = attended_in_chunks(cache, query, key, value, chunk, alibi_slopes=slopes)
    expected, expected_lse = reference.attention(*(a[None] for a in (query, key, value)), causal=True, alibi_slopes=slopes)
    tolerance = {"float32": 1e-5, "float16": 5e-3}.get(dtype, 5e-2)
    np.testing.assert_allclose(out, expected[0], atol=tolerance)
    np.testing.assert_allclose(lse, expected_lse[0], atol=tolerance)
    assert cache.stats["sealed"] == 0


def test_a_cache_takes_a_cap_and_sinks_with_slopes(isa):
    query, key, value = inputs((4, 50, 32), (2, 50, 32), 16)
    options = {"alibi_slopes": published(4), "softcap": 2.0, "sink_logits": np.float32([0.0, 1.0, -np.inf, 3.0])}
    result = attended_in_chunks(icecore.KVCache(2, 32, value_dim=16), query, key, value, 50, **options)
    assert_exact(result, query, key, value, causal=True, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_in_a_cache_stay_exact_in_long_texts(isa, dtype):
    tokens, slopes = 1_000_000, np.float32([1.0, 0.01])
    key, value = (encode(np.zeros((1, tokens, 1), np.float32), dtype) for _ in range(2))
    value[0, -100:] = encode(np.arange(100, dtype=np.float32)[:, None] % 7, dtype)
    cache = icecore.KVCache(1, 1, dtype=dtype)
    cache.append(key, value)
    query = encode(np.zeros((2, 1, 1), np.float32), dtype)
    out, lse = cache.attend(query, alibi_slopes=slopes, return_lse=True)
    weights = np.exp(-np.float64(slopes)[:, None] * np.arange(tokens)[::-1])
    expected = (weights * decode(value)[0, :, 0]).sum(axis=1) / weights.sum(axis=1)
    np.testing.assert_allclose(decode(out)[:, 0, 0], expected, rtol=1e-5 if dtype == "float32" else 1e-2)
    np.testing.assert_allclose(lse[:, 0], np.log(weights.sum(axis=1)), rtol=1e-5)


@pytest.mark.parametrize("way", ["fork", "truncate", "save", "view"])
def test_copies_of_a_cache_keep_positions(tmp_path, way):
    query, key, value = inputs((4, 90, 32), (2, 90, 32), 16)
    cache = icecore.KVCache(2, 32, value_dim=16, window=16)
    attended_in_chunks(cache, query[:, :80], key[:, :80], value[:, :80], 40, alibi_slopes=published(4))
    if way == "fork":
        cache = cache.fork()
    elif way == "truncate":
        cache.append(key[:, :5], value[:, :5])
        cache.truncate(80)
    else:
        cache.save(tmp_path / "cache")
        cache = icecore.KVCache.load(tmp_path / "cache") if way == "save" else icecore.KVCache.view(tmp_path / "cache")
    assert cache.evict(60) == 0  # nothing is sealed, and so all stays
    cache.append(key[:, 80:], value[:, 80:])
    out = cache.attend(query[:, 80:], alibi_slopes=published(4))
    whole = icecore.attention(query, key, value, causal=True, alibi_slopes=published(4))
    np.testing.assert_allclose(out, whole[:, 80:], atol=1e-5)


def test_sequences_of_a_batch_have_positions_of_their_own(isa):
    query, key, value = inputs((2, 4, 50, 32), (2, 2, 50, 32), 16)
    cache, alone = icecore.KVCache(2, 32, value_dim=16, batch=2), icecore.KVCache(2, 32, value_dim=16)
    cache.append(key, value, lengths=[50, 20], padding_side="left")
    alone.append(key[1, :, 30:], value[1, :, 30:])
    options = {"alibi_slopes": published(4), "return_lse": True, "return_info": True}
    out, lse, info = cache.attend(query[:, :, 40:], lengths=[10, 3], padding_side="left", **options)
    own, own_lse, own_info = alone.attend(query[1, :, 47:], **options)
    assert_same_bits(out[1, :, 7:], own)
    assert_same_bits(lse[1, :, 7:], own_lse)
    assert not out[1, :, :7].any()
    np.testing.assert_array_equal(info.near_keys[1, :, 7:], own_info.near_keys)
    np.testing.assert_array_equal(own_info.near_keys[0], [18, 19, 20])


def test_a_cache_with_sealed_tokens_refuses_slopes():
    query, key, value = inputs((2, 100, 8), (2, 100, 8), 8)
    cache = icecore.KVCache(2, 8, window=16, sinks=2)
    cache.append(key, value)
    cache.attend(query)
    with pytest.raises(ValueError, match=r"alibi_slopes needs all tokens as they came, but \d+ are sealed in the cache"):
        cache.attend(query[:, -1:], alibi_slopes=[0.5, 0.25])


def test_a_cache_refuses_bad_slopes():
    array = np.ones((2, 3, 4), np.float32)
    cache = icecore.KVCache(2, 4)
    cache.append(array, array)
    with pytest.raises(ValueError, match=r"alibi_slopes has shape \(1,\); expected \(2,\), one for each query head"):
        cache.attend(array, alibi_slopes=[0.5])
