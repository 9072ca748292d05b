"""The metric in which keys lie near one another: that of each segment's keys, or of queries."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, clusters, mean_row_error, normal
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


def near_far(*arrays, causal=True, **options):
    with _cost_model.use(_cost_model.NearFarAlways()):
        return icecore.attention(*arrays, causal=causal, window=64 if causal else None, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.uint16])
def test_it_is_the_root_mean_square_of_components(dtype):
    query = skewed()[0].astype(ml_dtypes.bfloat16)
    query = query.view(np.uint16) if dtype is np.uint16 else query.astype(dtype)
    metric = icecore.query_metric(query, KEY_HEADS)
    assert metric.dtype == np.float32
    exponents = np.log2(metric)
    np.testing.assert_array_equal(exponents, np.round(2 * exponents) / 2)
    np.testing.assert_allclose(exponents, np.log2(SCALES), atol=0.35)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3000), st.integers(1, 20), st.integers(0, 2**32))
def test_queries_alike_in_all_directions_give_ones(key_heads, group, length, dim, seed):
    query = np.random.default_rng(seed).choice([-1.0, 1.0], (2, key_heads * group, length, dim)).astype(np.float32)
    np.testing.assert_array_equal(icecore.query_metric(query, key_heads), np.ones((key_heads, dim)))


def test_queries_that_say_nothing_give_ones():
    query = normal(0, 2, 100, 8) * np.float32([1, 2, 4, 8, 16, 32, 64, 128])
    for spoiled in (0.0, np.nan, np.inf):
        one = query.copy()
        one[0] = spoiled
        metric = icecore.query_metric(one, 2)
        assert np.all(metric[0] == 1)
        assert metric[1, 7] > 8 * metric[1, 0]
    assert np.all(icecore.query_metric(query[:, :63], 2) == 1)
    assert np.all(icecore.query_metric(query[:, :32], 1)[0, 0] != 1)  # two heads of 32 rows each


def test_components_that_are_never_used_are_bounded():
    query = normal(0, 1, 100, 8)
    query[..., 0] = 0
    metric = icecore.query_metric(query, 1)
    assert metric[0, 0] >= 2.0**-6
    assert np.all(metric[0, 1:] >= 1)


BUDGETS = ({"k": 40}, {"tolerance": 0.1}, {"k": 40, "far_field": False, "visit": 80})


@pytest.mark.parametrize("budget", BUDGETS)
def test_without_causality_attention_takes_that_of_its_queries(budget):
    arrays = skewed()
    for these in (arrays, [a.astype(np.float64)[..., :100, :] for a in arrays]):
        metric = icecore.query_metric(these[0], KEY_HEADS)
        default = near_far(*these, causal=False, **budget)
        np.testing.assert_array_equal(default, near_far(*these, causal=False, metric=metric, **budget))


@pytest.mark.parametrize("budget", BUDGETS)
def test_with_causality_a_row_depends_on_no_other(budget):
    """Nor, so, on which chunk of the sequence it comes with."""
    query, key, value = skewed()
    others = query * SCALES[::-1].repeat(HEADS // KEY_HEADS, axis=0)[:, None]
    others[:, 500:650] = query[:, 500:650]
    whole = near_far(query, key, value, **budget)
    rows = slice(500, 650)
    for queries in (query, others):
        out = near_far(queries.astype(np.float32), key, value, **budget)
        assert mean_row_error(out[:, rows], whole[:, rows]) < 2e-4  # rows that open the same cells are summed together
    by_queries = near_far(query, key, value, metric=icecore.query_metric(query, KEY_HEADS), **budget)
    assert mean_row_error(by_queries[:, rows], whole[:, rows]) > 1e-3  # so that this says something


def test_it_makes_the_error_smaller():
    arrays = skewed()
    exact = icecore.attention(*arrays, causal=True)
    metrics = icecore.query_metric(arrays[0], KEY_HEADS), np.ones((KEY_HEADS, DIM))
    with_it, without = (near_far(*arrays, k=60, metric=metric) for metric in metrics)
    assert mean_row_error(with_it, exact) < 0.85 * mean_row_error(without, exact)


def test_that_of_the_keys_makes_the_error_smaller_where_queries_go_with_them():
    query, key, value = skewed()
    arrays = query, (key * SCALES[:, None] ** 2).astype(np.float32), value
    exact = icecore.attention(*arrays, causal=True)
    errors = [mean_row_error(near_far(*arrays, k=100, metric=m), exact) for m in (None, np.ones((KEY_HEADS, DIM)), 1 / SCALES)]
    assert errors[0] < 0.97 * errors[1]
    assert errors[1] < 0.7 * errors[2]


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
    for metric in (None, np.ones((1, 64))):
        out = near_far(query, key, value, tolerance=0.05, metric=metric)[:, 2048:]
        assert mean_row_error(out, exact) < 0.05


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("metric", ["own", "given"])
@pytest.mark.parametrize("chunk", [1, 100, 333])
def test_chunks_equal_the_whole(metric, budget, chunk):
    query, key, value = skewed()
    options = budget | {"metric": None if metric == "own" else icecore.query_metric(query, KEY_HEADS)}
    whole = near_far(query, key, value, **options)
    for first in range(0, LENGTH, chunk * 7):
        end = min(first + chunk, LENGTH)
        part = near_far(query[:, first:end], key[:, :end], value[:, :end], **options)
        assert mean_row_error(part, whole[:, first:end]) < 0.02  # bfloat16


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_is_attention_in_its_metric(dtype, own, tmp_path):
    arrays = [a.astype(ml_dtypes.bfloat16).astype(np.float32) for a in skewed()]
    query, key, value = arrays
    metric = None if own else icecore.query_metric(query, KEY_HEADS)
    cache = icecore.KVCache(KEY_HEADS, DIM, dtype=dtype, k=40, window=64, metric=metric)
    out = []
    for first, end in ((0, 300), (300, 301), (301, 850), (850, LENGTH)):
        cache.append(key[:, first:end], value[:, first:end])
        out.append(cache.attend(query[:, first:end]))
    whole = near_far(*(a.astype(ml_dtypes.bfloat16) for a in arrays), k=40, metric=metric).astype(np.float32)
    assert mean_row_error(np.concatenate(out, axis=1), whole) < 0.02

    last = cache.attend(query[:, -1:])
    cache.save(tmp_path / "cache")
    others = [icecore.KVCache.load(tmp_path / "cache"), icecore.KVCache.view(tmp_path / "cache")]
    for other in (*others, pickle.loads(pickle.dumps(cache)), cache.fork()):
        assert other.metric is None if own else np.array_equal(other.metric, metric)
        assert_same_bits(other.attend(query[:, -1:]), last)
        other.truncate(500)  # segments are made anew
        fresh = icecore.KVCache(KEY_HEADS, DIM, dtype=dtype, k=40, window=64, metric=metric)
        fresh.append(key[:, :500], value[:, :500])
        assert_same_bits(other.attend(query[:, 499:500]), fresh.attend(query[:, 499:500]))


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (np.ones((KEY_HEADS, DIM + 1)), ValueError, r"metric has shape \(2, 17\); expected \(2, 16\): key heads, dim"),
        (np.ones(DIM), ValueError, r"metric has shape \(16,\); expected \(2, 16\)"),
        (np.zeros((KEY_HEADS, DIM)), ValueError, r"metric must be finite and above 0, got 0\.0"),
        (-np.ones((KEY_HEADS, DIM)), ValueError, r"metric must be finite and above 0, got -1\.0"),
        (np.full((KEY_HEADS, DIM), np.nan), ValueError, "metric must be finite and above 0, got nan"),
        (np.full((KEY_HEADS, DIM), 1e300), ValueError, "metric must be finite and above 0, got inf"),
        ("queries", TypeError, "metric must be an array of numbers, got str"),
        ({}, TypeError, "metric must be an array of numbers, got dict"),
    ],
)
def test_bad_metrics(metric, error, message):
    arrays = skewed()
    with pytest.raises(error, match=message):
        icecore.attention(*arrays, k=40, metric=metric)
    with pytest.raises(error, match=message):
        icecore.KVCache(KEY_HEADS, DIM, metric=metric)


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
