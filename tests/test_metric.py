"""The metric in which keys lie near one another: second moments of the queries that look at them."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, clusters, decode, mean_row_error, normal
from hypothesis import given
from hypothesis import strategies as st

import icecore
from icecore import _cost_model

HEADS, KEY_HEADS, LENGTH, DIM = 4, 2, 900, 16
#: What the queries of the two key heads are scaled by.
SCALES = np.exp2(np.stack([np.linspace(-2, 2, DIM), np.linspace(1, -1, DIM)]))


def skewed():
    """Queries and keys whose scores are alike in all components, though neither of them are."""
    factor = np.repeat(SCALES, HEADS // KEY_HEADS, axis=0)[:, None]
    query = (normal(0, HEADS, LENGTH, DIM) * factor).astype(np.float32)
    key = (2 * np.stack([clusters(head, LENGTH, DIM) for head in range(KEY_HEADS)]) / SCALES[:, None]).astype(np.float32)
    return query, key, normal(3, KEY_HEADS, LENGTH, DIM)


def near_far(*arrays, causal=True, window=64, **options):
    with _cost_model.use(_cost_model.NearFarAlways()):
        return icecore.attention(*arrays, causal=causal, window=window if causal else None, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.uint16])
def test_it_is_the_second_moments_of_queries(dtype):
    query = skewed()[0].astype(ml_dtypes.bfloat16)
    query = query.view(np.uint16) if dtype is np.uint16 else query.astype(dtype)
    metric = icecore.query_metric(query, KEY_HEADS)
    assert metric.dtype == np.float32
    rows = decode(query).reshape(KEY_HEADS, -1, DIM)
    np.testing.assert_allclose(metric, np.einsum("hni,hnj->hij", rows, rows) / rows.shape[1], rtol=1e-5, atol=1e-5)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3000), st.integers(1, 20), st.integers(0, 2**32))
def test_at_most_1024_queries_of_a_head_are_looked_at(key_heads, group, length, dim, seed):
    """Spread evenly over all of its positions; the identity for fewer than 64 rows of a key head."""
    query = np.random.default_rng(seed).standard_normal((2, key_heads * group, length, dim)).astype(np.float32)
    sampled = query[:, :, :: max(1, -(-length // 1024))].astype(np.float64)
    assert sampled.shape[2] <= 1024
    rows = sampled.reshape(2, key_heads, -1, dim).swapaxes(0, 1).reshape(key_heads, -1, dim)
    expected = np.einsum("hni,hnj->hij", rows, rows) / max(rows.shape[1], 1) if rows.shape[1] >= 64 else np.eye(dim)
    metric = icecore.query_metric(query, key_heads)
    assert metric.shape == (key_heads, dim, dim)
    np.testing.assert_allclose(metric, np.broadcast_to(expected, metric.shape), rtol=1e-5, atol=1e-5)


def test_queries_that_say_nothing_give_the_identity():
    query = normal(0, 2, 100, 8) * np.float32([1, 2, 4, 8, 16, 32, 64, 128])
    for spoiled in (0.0, np.nan, np.inf, 1e30):
        one = query.copy()
        one[0] = spoiled
        metric = icecore.query_metric(one, 2)
        np.testing.assert_array_equal(metric[0], np.eye(8))
        assert metric[1, 7, 7] > 1000 * metric[1, 0, 0]
    np.testing.assert_array_equal(icecore.query_metric(query[:, :63], 2), [np.eye(8)] * 2)
    assert icecore.query_metric(query[:, :32], 1)[0, 7, 7] > 1000  # two heads of 32 rows each


BUDGETS = ({"k": 40}, {"tolerance": 0.1})


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("causal", [True, False])
def test_components_that_no_query_uses_do_no_harm(budget, causal):
    """Moments of a lower rank: with the metric, or where the call finds them itself."""
    query, key, value = skewed()
    query[..., 3:7] = 0
    query[..., 9] = query[..., 10]
    exact = icecore.attention(query, key, value, causal=causal)
    metric = icecore.query_metric(query, KEY_HEADS)
    assert not metric[:, 3:7].any()
    given, own = (near_far(query, key, value, causal=causal, metric=m, **budget) for m in (metric, None))
    errors = [mean_row_error(out, exact) for out in (given, own)]
    assert max(errors) < 0.5
    assert max(errors) < 1.5 * min(errors) + 0.02


@pytest.mark.parametrize("budget", BUDGETS)
def test_without_causality_attention_takes_that_of_its_queries(budget):
    """The core's own sample of them, about as good as all; float64 by the oracle."""
    arrays = skewed()
    metric = icecore.query_metric(arrays[0], KEY_HEADS)
    exact = icecore.attention(*arrays)
    metrics = None, metric, np.linalg.inv(metric)
    default, given, bad = (mean_row_error(near_far(*arrays, causal=False, metric=m, **budget), exact) for m in metrics)
    assert default < 1.2 * given
    if "tolerance" not in budget:  # which keeps its promise in any metric, only with more keys
        assert given < 0.95 * bad
    wide = [a.astype(np.float64)[..., :100, :] for a in arrays]
    own = icecore.query_metric(wide[0], KEY_HEADS)
    np.testing.assert_array_equal(
        near_far(*wide, causal=False, **budget), near_far(*wide, causal=False, metric=own, **budget)
    )


@pytest.mark.parametrize("budget", BUDGETS)
def test_with_causality_a_row_depends_on_no_later_one(budget):
    query, key, value = skewed()
    whole = near_far(query, key, value, **budget)
    factor = SCALES[::-1].repeat(HEADS // KEY_HEADS, axis=0)[:, None]
    later, earlier = query.copy(), query.copy()
    later[:, 650:] *= factor
    earlier[:, :500] *= factor
    out = near_far(later, key, value, **budget)
    assert mean_row_error(out[:, :650], whole[:, :650]) < 2e-4  # rows that open the same cells are summed together
    out = near_far(earlier, key, value, **budget)
    assert mean_row_error(out[:, 500:], whole[:, 500:]) > 1e-3  # but on earlier ones, so that this says something


@pytest.mark.parametrize("budget", BUDGETS)
def test_later_queries_that_are_not_finite_do_no_harm(budget):
    """Nor do they reach the metric of rows that did not see them, or the threshold."""
    query, key, value = skewed()
    whole = near_far(query, key, value, **budget)
    for garbage in (np.nan, np.inf):
        spoiled = query.copy()
        spoiled[:, 650:] = garbage
        out = near_far(spoiled, key, value, **budget)
        assert mean_row_error(out[:, :650], whole[:, :650]) < 2e-4


def test_it_makes_the_error_smaller():
    arrays = skewed()
    exact = icecore.attention(*arrays, causal=True)
    metrics = icecore.query_metric(arrays[0], KEY_HEADS), np.ones((KEY_HEADS, DIM))
    with_it, without = (near_far(*arrays, k=60, metric=metric) for metric in metrics)
    assert mean_row_error(with_it, exact) < 0.9 * mean_row_error(without, exact)


def test_by_default_the_error_is_as_small():
    """Each segment in the metric of the queries that stand at its keys."""
    arrays = skewed()
    exact = icecore.attention(*arrays, causal=True)
    metrics = None, np.ones((KEY_HEADS, DIM)), SCALES**-2.0
    errors = [mean_row_error(near_far(*arrays, k=100, metric=metric), exact) for metric in metrics]
    assert errors[0] < 0.9 * errors[1]
    assert errors[1] < 0.9 * errors[2]


def test_a_diagonal_is_a_metric():
    arrays = skewed()
    for budget in BUDGETS:
        full = near_far(*arrays, metric=np.stack([np.diag(s**2) for s in SCALES]), **budget)
        assert_same_bits(near_far(*arrays, metric=SCALES**2, **budget), full)


def test_its_size_does_not_matter():
    arrays = skewed()
    metric = icecore.query_metric(arrays[0], KEY_HEADS)
    for budget in BUDGETS:
        expected = near_far(*arrays, metric=metric, **budget)
        assert mean_row_error(near_far(*arrays, metric=metric * np.float32(1024), **budget), expected) < 1e-3


def test_a_key_that_stands_out_where_no_other_differs_is_found():
    """It is not among those that are looked at for the metric and the variance of components."""
    key = normal(0, 1, 8192, 64) * np.float32(0.02)
    key[..., 63] *= np.float32(1e-3)
    key[0, 1001, 63] = 10
    query = np.zeros((1, 8192, 64), np.float32)
    query[..., 63] = 10  # nine parts of ten of the mass are the key's
    value = normal(1, 1, 8192, 64)
    value[0, 1001] = 5
    exact = icecore.attention(query, key, value, causal=True)[:, 2048:]
    for metric, bound in ((None, 0.05), (np.ones((1, 64)), 0.1)):  # in a bad one some windows end before it has been measured
        out = near_far(query, key, value, tolerance=0.05, metric=metric)[:, 2048:]
        assert mean_row_error(out, exact) < bound


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("metric", ["own", "given"])
@pytest.mark.parametrize("chunk", [1, 100, 333])
def test_chunks_are_as_good_as_the_whole(metric, budget, chunk):
    """The same with a metric and k. A chunk knows no queries before its own: it has other cells and measures other rows."""
    query, key, value = skewed()
    exact = icecore.attention(query, key, value, causal=True)
    options = budget | {"metric": None if metric == "own" else icecore.query_metric(query, KEY_HEADS)}
    whole, parts, rows = near_far(query, key, value, **options), [], []
    for first in range(0, LENGTH, chunk * 7):
        end = min(first + chunk, LENGTH)
        rows.append(np.arange(first, end))
        parts.append(near_far(query[:, first:end], key[:, :end], value[:, :end], **options))
    parts, rows = np.concatenate(parts, axis=1), np.concatenate(rows)
    if metric == "given" and "k" in budget:
        assert mean_row_error(parts, whole[:, rows]) < 0.02  # bfloat16
    elif "k" in budget:
        assert mean_row_error(parts, exact[:, rows]) < 1.7 * mean_row_error(whole[:, rows], exact[:, rows])
    else:
        assert mean_row_error(parts, exact[:, rows]) < 1.3 * budget["tolerance"]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_is_attention_in_its_metric(dtype, own, tmp_path):
    """Given, or that of the queries that it has seen: of a window enough to say something."""
    arrays = [a.astype(ml_dtypes.bfloat16).astype(np.float32) for a in skewed()]
    query, key, value = arrays
    metric = None if own else icecore.query_metric(query, KEY_HEADS)
    cache = icecore.KVCache(KEY_HEADS, DIM, dtype=dtype, k=40, window=256, metric=metric)
    out = []
    for first, end in ((0, 300), (300, 301), (301, 850), (850, LENGTH)):
        cache.append(key[:, first:end], value[:, first:end])
        out.append(cache.attend(query[:, first:end]))
    whole = near_far(*(a.astype(ml_dtypes.bfloat16) for a in arrays), k=40, window=256, metric=metric).astype(np.float32)
    assert mean_row_error(np.concatenate(out, axis=1)[:, 512:], whole[:, 512:]) < 0.02

    last = cache.attend(query[:, -1:])
    cache.save(tmp_path / "cache")
    others = [icecore.KVCache.load(tmp_path / "cache"), icecore.KVCache.view(tmp_path / "cache")]
    twins = [*others, pickle.loads(pickle.dumps(cache)), cache.fork()]
    for other in twins:
        assert other.metric is None if own else np.array_equal(other.metric, metric)
        assert_same_bits(other.attend(query[:, -1:]), last)
        other.truncate(600)  # segments are made anew
    fresh = icecore.KVCache(KEY_HEADS, DIM, dtype=dtype, k=40, window=256, metric=metric)
    fresh.append(key[:, :600], value[:, :600], query[:, :600])
    first, *others, expected = (other.attend(query[:, 599:600]) for other in (*twins, fresh))
    for other in others:
        assert_same_bits(other, first)
    if own:  # the first window keeps the metric of the two that it had been merged with
        exact = icecore.attention(query[:, 599:600], key[:, :600], value[:, :600])
        assert mean_row_error(first, exact) < 1.5 * mean_row_error(expected, exact) + 0.02
    else:
        assert_same_bits(first, expected)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (np.ones((KEY_HEADS, DIM + 1)), ValueError, r"metric has shape \(2, 17\); expected \(2, 16, 16\), .* or \(2, 16\)"),
        (np.ones((KEY_HEADS, DIM, 1)), ValueError, r"metric has shape \(2, 16, 1\); expected \(2, 16, 16\)"),
        (np.ones(DIM), ValueError, r"metric has shape \(16,\); expected \(2, 16, 16\)"),
        (np.zeros((KEY_HEADS, DIM)), ValueError, r"metric must have diagonals of at least 0, not all 0 in a head, got 0\.0"),
        (-np.ones((KEY_HEADS, DIM)), ValueError, r"metric must have diagonals of at least 0, .* got -1\.0"),
        (np.full((KEY_HEADS, DIM), np.nan), ValueError, "metric must be finite, got nan"),
        (np.full((KEY_HEADS, DIM, DIM), np.inf), ValueError, "metric must be finite, got inf"),
        (np.full((KEY_HEADS, DIM), 1e300), ValueError, "metric must be finite, got inf"),
        (np.broadcast_to(np.tri(DIM), (KEY_HEADS, DIM, DIM)), ValueError, "metric must be symmetric"),
        ("queries", TypeError, "metric must be an array of numbers, got str"),
        ({}, TypeError, "metric must be an array of numbers, got dict"),
        (np.ones((KEY_HEADS, DIM)) * 1j, TypeError, "metric must be an array of numbers, got an array of complex128"),
    ],
)
def test_bad_metrics(metric, error, message):
    arrays = skewed()
    with pytest.raises(error, match=message):
        icecore.attention(*arrays, k=40, metric=metric)
    with pytest.raises(error, match=message):
        icecore.KVCache(KEY_HEADS, DIM, metric=metric)


@pytest.mark.parametrize("dtype", [np.complex64, object, bool])
def test_moments_of_what_are_no_real_numbers_are_refused(dtype):
    with pytest.raises(TypeError, match=f"query has dtype {np.dtype(dtype)}; expected float32, float16"):
        icecore.query_metric(np.ones((2, 100, 4)).astype(dtype), 1)


def test_what_a_metric_does_not_go_with():
    arrays = skewed()
    ones = np.ones((KEY_HEADS, DIM))
    with pytest.raises(ValueError, match="metric needs k or tolerance"):
        icecore.attention(*arrays, metric=ones)
    plan = icecore.calibrate([(0, *arrays)], tolerance=0.1, windows=(128,), cell_sizes=(16,))
    with pytest.raises(ValueError, match=r"plan replaces k, tolerance, .* and metric; got metric="):
        icecore.attention(*arrays, plan=plan[0], causal=True, metric=ones)
    with pytest.raises(ValueError, match=r"plan replaces .* got metric="):
        icecore.KVCache(KEY_HEADS, DIM, plan=plan[0], metric=ones)
    for shape, heads in (((3, 10, 8), 2), ((10, 8), 1)):
        with pytest.raises(ValueError, match=r"query has shape .*; expected .*, heads a multiple of"):
            icecore.query_metric(np.ones(shape, np.float32), heads)
    with pytest.raises(ValueError, match="num_kv_heads"):
        icecore.query_metric(arrays[0], 0)
