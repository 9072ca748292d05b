"""attention(selector=VAttention()): the largest scores and a sample of the rest, against its oracle and its promise."""

from functools import cache

import numpy as np
import pytest
from chosen_keys import arrays, clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference
from icecore.reference.dense import visible_count
from icecore.reference.vattention import base_size, wanted_size
from icecore.selectors import VAttention

LOOSE = {"k": 20, "sinks": 4, "window": 16, "epsilon": 0.2, "delta": 0.2}
CASES = {
    "causal": ((4, 2, 200, 900, 32), {"causal": True}),
    "both ways": ((3, 1, 60, 1500, 16), {}),
    "no sinks and no window": ((2, 1, 100, 900, 16), {"sinks": 0, "window": 0, "causal": True}),
    "one key": ((2, 2, 60, 700, 64), {"k": 1, "causal": True}),
    "more queries than keys": ((2, 1, 500, 400, 16), {"causal": True}),
    "a step of decoding": ((3, 1, 1, 3000, 64), {"causal": True}),
    "a sample of everything": ((2, 1, 60, 700, 16), {"epsilon": 1e-9, "causal": True}),
    "another seed and scale": ((2, 1, 60, 1500, 9), {"seed": 2**64 - 1, "scale": -0.3}),
    "a soft cap and sink logits": ((2, 1, 60, 900, 16), {"softcap": 2.0, "sink_logits": (0.5, -2.0), "epsilon": 0.05}),
}


def vattention(given, k, sinks, window, epsilon, delta, **options):
    """(out, lse, info)"""
    selector = VAttention(k, sinks, window, epsilon, delta)
    return icecore.attention(*given, selector=selector, return_lse=True, return_info=True, **options)


def assert_clear_equal(actual, expected, atol=5e-5):
    """Where keys and sizes are clearly chosen; returns the share of these rows."""
    out, lse, info = actual
    expected, expected_lse, near, margin = expected
    clear = margin > 5e-5
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_allclose(out[clear].astype(np.float64), expected[clear], atol=atol)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=5e-5)
    return clear.mean()


@cache
def case_of(name):
    """(arrays, options, oracle's results), once for all instruction sets."""
    shape, options = CASES[name]
    given = clustered(np.random.default_rng(60), *shape)
    options = LOOSE | options
    return given, options, reference.vattention_attention(*given, return_margin=True, **options)


@pytest.mark.parametrize("case", CASES)
def test_vattention_equals_its_oracle(isa, case):
    given, options, expected = case_of(case)
    actual = vattention(given, **options)
    assert actual[2].path == "vattention"
    assert assert_clear_equal(actual, expected) > 0.8


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (3, 1), (4, 2)]), st.integers(1, 130), st.integers(-50, 600),
       st.sampled_from([1, 7, 64]), st.integers(1, 100), st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 0.9),
       st.booleans())
def test_vattention_of_odd_shapes_equals_its_oracle(seed, heads, queries, more, dim, k, sinks, window, epsilon, causal):
    given_arrays = clustered(np.random.default_rng(seed), *heads, queries, max(queries + more, 1), dim)
    options = {"k": k, "sinks": sinks, "window": window, "epsilon": epsilon, "delta": 0.1, "causal": causal, "seed": seed}
    if k + sinks + window < given_arrays[1].shape[2]:  # else exact
        expected = reference.vattention_attention(*given_arrays, return_margin=True, **options)
        assert_clear_equal(vattention(given_arrays, **options), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads"])
def test_vattention_of_every_type(isa, layout, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    given = [a.astype(dtype) for a in clustered(np.random.default_rng(61), 4, 2, 70, 900, 32)]
    if layout != "contiguous":
        given = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in given]
    wide = [a.astype(np.float32) for a in given]
    expected = reference.vattention_attention(*wide, causal=True, return_margin=True, **LOOSE)
    assert assert_clear_equal(vattention(given, causal=True, **LOOSE), expected, atol=0.03) > 0.7


# ---- What is promised ----


@pytest.mark.parametrize(("epsilon", "delta", "spread"), [(0.05, 0.1, 1.0), (0.1, 0.2, 1.0), (0.02, 0.3, 0.5)])
def test_the_sum_of_weights_is_within_epsilon_but_for_a_share_delta(epsilon, delta, spread):
    """Of 3200 samples, each of a seed and a row of its own.

    What fails is at most the share delta, with four standard errors of a binomial count, and a tenth of it for what the normal
    law says of sums of skew weights. Sampling without replacement fails less often than the bound supposes.
    """
    query, key, value = arrays(np.random.default_rng(62), 1, 1, 16, 4000, 64, 4)
    given = [query * np.float32(spread), key, value]  # scores of this standard deviation
    exact, exact_lse = icecore.attention(*given, return_lse=True)
    errors, counts, outs = [], [], []
    for seed in range(200):
        out, lse, info = vattention(given, 32, 4, 16, epsilon, delta, seed=seed)
        errors.append(np.exp((lse - exact_lse).astype(np.float64)) - 1)
        counts.append(info.near_keys)
        outs.append(out)
    errors, samples = np.concatenate(errors).ravel(), 3200
    failing = (np.abs(errors) > epsilon).mean()
    assert failing < 1.1 * delta + 4 * np.sqrt(delta * (1 - delta) / samples)
    assert failing > delta / 10  # the samples are no larger than the promise needs
    assert np.max(counts) < 3500
    assert abs(errors.mean()) < 5 * errors.std() / np.sqrt(samples) + epsilon**2  # unbiased, but for the choice of the size
    mean = np.mean(outs, axis=0)
    assert np.abs(mean - exact).mean() < 0.2 * np.abs(outs - exact).mean()  # outputs scatter around the exact ones


def test_a_finer_promise_takes_more_keys():
    given = clustered(np.random.default_rng(63), 2, 1, 60, 3000, 32)
    exact = icecore.attention(*given)
    found = [vattention(given, 20, 4, 16, epsilon, 0.1) for epsilon in (0.5, 0.1, 0.02)]
    counts = [info.near_keys for _, _, info in found]
    errors = [np.abs(out - exact).mean() for out, _, _ in found]
    assert np.all(counts[0] <= counts[1]) and np.all(counts[1] <= counts[2]) and counts[0].sum() < counts[2].sum()
    assert errors[0] > errors[1] > errors[2]


def test_the_size_of_a_sample():
    fixed, first = np.log([8.0, 2.0]), np.log([1.0, 3.0])  # D = 10 + 100 * 2, s = sqrt(2)
    size = wanted_size(fixed, first, 100, 0.1, 0.3173105)  # z = 1
    assert size == pytest.approx((100 * np.sqrt(2) / (0.1 * 210)) ** 2, rel=1e-5)
    assert [base_size(n) for n in (0, 10, 32, 1000, 1281, 4000)] == [0, 10, 32, 32, 33, 100]


def test_equal_scores_need_the_first_sample_alone():
    """And any sample of them gives the exact sum."""
    q, k, v = clustered(np.random.default_rng(64), 1, 1, 20, 4020, 16)
    k[:] = k[:, :, :1]
    _, lse, info = vattention((q, k, v), 10, 4, 6, 0.01, 0.01)
    assert np.all(info.near_keys == 20 + 100)
    np.testing.assert_allclose(lse, icecore.attention(q, k, v, return_lse=True)[1], atol=1e-5)


# ---- What it depends on ----


def test_seeds_positions_and_heads_have_samples_of_their_own():
    q, k, v = clustered(np.random.default_rng(65), 2, 1, 30, 2000, 16)
    q[:] = q[:, :1, :1]  # all queries the same
    first, again, other = (vattention((q, k, v), seed=seed, **LOOSE)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert len(np.unique(first.reshape(60, -1), axis=0)) == 60


@settings(max_examples=15)
@given(st.integers(0, 899), st.integers(0, 100), st.sampled_from([np.nan, np.inf, 100.0]))
def test_later_keys_change_no_row(first, seed, number):
    q, k, v = clustered(np.random.default_rng(seed), 2, 1, 900, 900, 16)
    whole = vattention((q, k, v), causal=True, **LOOSE)[0]
    k[:, :, first:], v[:, :, first:] = number, np.inf
    again = vattention((q, k, v), causal=True, **LOOSE)[0]
    np.testing.assert_array_equal(again[:, :, :first], whole[:, :, :first])


def test_rows_of_a_chunk_are_those_of_the_whole():
    q, k, v = clustered(np.random.default_rng(66), 2, 1, 700, 700, 16)
    _, whole, info = vattention((q, k, v), causal=True, **LOOSE)
    for begin, end in ((50, 333), (333, 700)):
        _, lse, part = vattention((q[:, :, begin:end], k[:, :, :end], v[:, :, :end]), causal=True, **LOOSE)
        same = part.near_keys == info.near_keys[:, :, begin:end]
        assert same.mean() > 0.98  # rounding may change a size
        np.testing.assert_allclose(lse[same], whole[:, :, begin:end][same], atol=1e-5)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_key_that_is_not_finite_is_among_the_largest(isa, number, softcap):
    q, k, v = clustered(np.random.default_rng(67), 2, 1, 300, 900, 16)
    k[0, 0, 620, 3] = number
    out, _, info = vattention((q, k, v), causal=True, softcap=softcap, **LOOSE)
    sees = np.arange(600, 900) >= 620
    spoiled = sees & (np.isnan(number) | ((softcap is None) & (q[0, ..., 3] * number > 0)))
    np.testing.assert_array_equal(np.isnan(out[0]).any(axis=-1), spoiled)
    near = reference.vattention_attention(q, k, v, causal=True, softcap=softcap, return_margin=True, **LOOSE)
    clear = near[3] > 5e-5
    np.testing.assert_array_equal(info.near_keys[clear], near[2][clear])


@pytest.mark.parametrize("number", [0.0, 1e25, -np.inf, np.nan])
def test_keys_of_nothing_else_end(number):
    q, k, v = clustered(np.random.default_rng(68), 1, 1, 60, 600, 16)
    k[:] = number
    _, _, info = vattention((q, k, v), causal=True, **LOOSE)
    assert np.all(info.near_keys >= 40) and np.all(info.near_keys[0, 0] <= visible_count(60, 600, True))


@pytest.mark.parametrize(("make", "error", "named"), [
    (lambda: VAttention(k=0), ValueError, "k must be at least 1, got 0"),
    (lambda: VAttention(sinks=-1), ValueError, "sinks must be at least 0, got -1"),
    (lambda: VAttention(window=1.5), TypeError, "window must be an integer, got float"),
    (lambda: VAttention(epsilon=0), ValueError, "epsilon must be above 0 and below 1, got 0"),
    (lambda: VAttention(epsilon=np.nan), ValueError, "epsilon must be above 0 and below 1, got nan"),
    (lambda: VAttention(delta=1.0), ValueError, "delta must be above 0 and below 1, got 1.0"),
    (lambda: VAttention(delta="0.1"), TypeError, "delta must be a number, got str"),
])
def test_wrong_parameters_are_refused(make, error, named):
    with pytest.raises(error, match=named):
        make()
