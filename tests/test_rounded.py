"""The rounded path: exact attention on bfloat16 numbers where sampled rows keep the tolerance, else exact as given."""

import os

import ml_dtypes
import numpy as np
import pytest
from helpers import NATIVE_BFLOAT16, as_four, assert_same_bits, head_error, inputs, normal

import icecore
from icecore import _cost_model, _native, reference

QUERIES, KEYS = 150, 700

OPTIONS = [
    {},
    {"causal": True},
    {"softcap": 4.0},
    {"causal": True, "sink_logits": np.float32([0.5, -1.0, 2.0, -np.inf])},
    {"attn_mask": normal(1, QUERIES, KEYS) > -0.5},
    {"attn_mask": np.where(normal(1, QUERIES, KEYS) > 1, np.float32(-np.inf), normal(2, QUERIES, KEYS))},
    {"key_ranges": np.sort(np.random.default_rng(3).integers(0, KEYS + 1, (1, QUERIES, 2)))},
]


SETS = [isa for isa in _native.usable_isas() if isa in NATIVE_BFLOAT16]


@pytest.fixture(autouse=True, params=SETS)
def always_rounded(request, monkeypatch):
    """On each instruction set that multiplies bfloat16."""
    if os.environ.get("ICECORE_ISA", request.param) != request.param:
        pytest.skip("ICECORE_ISA names another set")
    before = _native.isa()
    icecore.set_isa(request.param)
    monkeypatch.setattr(_cost_model, "choose", lambda *_: "rounded")
    yield
    icecore.set_isa(before)


def attend(arrays, tolerance=0.04, **options):
    return icecore.attention(*arrays, tolerance=tolerance, return_lse=True, return_info=True, **options)


def rounded(array):
    return array.astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "all")
def test_is_exact_attention_of_rounded_numbers(options, dtype):
    arrays = inputs((4, QUERIES, 64), (2, KEYS, 64), 32, dtype)
    out, lse, info = attend(arrays, **options)
    expected, expected_lse = reference.attention(*(as_four(rounded(a)) for a in arrays), **options)
    assert info.path == "rounded"
    assert out.dtype == arrays[0].dtype
    assert (head_error(as_four(out.astype(np.float64)), expected) <= 2.0**-8).all()  # of rounding the weights
    seen = np.isfinite(expected_lse[0])
    np.testing.assert_allclose(lse[seen], expected_lse[0][seen], atol=2e-3)
    assert not out[~seen].any()
    assert info.summaries is None
    assert info.seconds is None
    np.testing.assert_array_equal(info.captured_mass, seen)


def test_tells_the_error():
    arrays = inputs((6, 900, 64), (2, 900, 64), 64)
    out, lse, info = attend(arrays, causal=True)
    truth, true_lse = reference.attention(*(as_four(a) for a in arrays), causal=True)
    distance, size = np.linalg.norm(out - truth[0], axis=-1), np.linalg.norm(truth[0], axis=-1)
    true_error = np.hypot(distance, 0.5 * np.expm1(lse - true_lse[0]) * size).sum(axis=-1) / size.sum(axis=-1)
    assert info.error.shape == info.error_rows.shape == (6,)
    assert (info.error_rows == 16).all()
    assert (np.abs(np.log(info.error / true_error)) <= np.log(1.5)).all()
    assert (info.error_standard_error < 0.3 * info.error).all()


def test_heads_that_rounding_would_spoil_are_exact():
    """Key head 1: large components that drift, which no centre takes off, and that queries look at."""
    query, key, value = inputs((4, 300, 64), (2, 800, 64), 32)
    key[1, :, :4] += np.linspace(-400, 400, 800, dtype=np.float32)[:, None]
    query[2:, :, :4] *= 0.3
    out, lse, info = attend((query, key, value), tolerance=0.02)
    exact, exact_lse = icecore.attention(query, key, value, return_lse=True)
    np.testing.assert_allclose(out[2:], exact[2:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse[2:], exact_lse[2:], rtol=1e-6, atol=1e-4)
    assert (info.error[2:] == 0).all()
    assert (info.error[:2] > 0).all()
    assert (np.abs(out[:2] - exact[:2]) > 1e-4).any()


def test_a_constant_in_all_keys_is_no_matter():
    arrays = inputs((4, 300, 64), (2, 800, 64), 32)
    arrays[1][..., [3, 17]] += 300.0
    out, lse, info = attend(arrays, tolerance=0.02)
    truth, true_lse = reference.attention(*(as_four(a) for a in arrays))
    assert (info.error > 0).all()
    assert (head_error(as_four(out.astype(np.float64)), truth) <= 0.02).all()
    np.testing.assert_allclose(lse, true_lse[0], atol=0.02)


def test_each_head_has_a_tolerance():
    """A plan's: one that rounding does not keep makes its key head exact, and no other."""
    arrays = inputs((4, 300, 64), (2, 800, 64), 32)
    given = _native.NearFar(near_keys=1, head_tolerance=np.float32([1e-4, 0.1, 0.1, 0.1]), rounding=True)
    from icecore._arrays import NO_MASK, Scores, check_problem, native_problem

    problem = check_problem(*arrays)
    out = np.empty((1, 4, 300, 32), np.float32)
    errors = np.empty((1, 4), np.float32)
    native = native_problem(problem, out, None, Scores(0.125), NO_MASK, causal=False, sinks=0, sides=(-1, -1), threads=0)
    _native.attend_rounded(native, given, _native.Report(error=errors))
    assert (errors[0, :2] == 0).all()
    assert (errors[0, 2:] > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(bad):
    """Where sampled rows meet them, their heads are exact; no other row changes by more than rounding."""
    for place in range(3):
        arrays = inputs((4, 300, 64), (2, 800, 64), 32)
        arrays[place][1, 40, 5] = bad
        out, _, _ = attend(arrays)
        exact = icecore.attention(*arrays)
        np.testing.assert_array_equal(np.isfinite(out), np.isfinite(exact))
        fine = np.isfinite(exact)
        assert np.abs(out[fine] - exact[fine]).max() < 0.05


def test_batches_and_few_queries():
    for queries in (1, 3, 49):
        arrays = inputs((3, 4, queries, 32), (3, 2, 500, 32), 16)
        out, _, info = attend(arrays, tolerance=0.05)
        expected, _ = reference.attention(*(rounded(a) for a in arrays))
        assert info.error.shape == (3, 4)
        assert (head_error(out.astype(np.float64), expected) <= 2.0**-7).all()


def test_queries_that_see_no_key_may_hold_anything():
    """Their lse is -inf although the score of the centre, which is added to it, is no number."""
    rng = np.random.default_rng(4)
    query, key, value = (rng.standard_normal((2, 3000, 64)).astype(np.float32) for _ in range(3))
    key[..., 0] += 100.0
    query[:, 5], query[:, 7, 3] = np.nan, np.inf
    ranges = np.tile([0, 3000], (3000, 1))
    ranges[[5, 7]] = 0
    out, lse, info = icecore.attention(query, key, value, key_ranges=ranges, tolerance=0.05, return_lse=True, return_info=True)
    assert info.path == "rounded"
    assert not out[:, [5, 7]].any() and (lse[:, [5, 7]] == -np.inf).all()
    assert np.isfinite(np.delete(lse, [5, 7], axis=1)).all()


def test_same_bits_for_any_threads():
    arrays = inputs((4, 500, 64), (2, 800, 64), 64)
    results = []
    for threads in (1, 2, 5):
        out, lse, info = attend(arrays, num_threads=threads)
        results.append((out, lse, info.error))
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert_same_bits(other, one)


def test_what_the_core_refuses():
    from icecore._arrays import NO_MASK, Scores, check_problem, native_problem

    def call(arrays, **options):
        problem = check_problem(*arrays)
        out = np.empty((1, 2, 9, 32), problem.dtype)
        native = native_problem(problem, out, None, Scores(0.125), NO_MASK, causal=False, sinks=0, sides=(-1, -1), threads=0)
        _native.attend_rounded(native, _native.NearFar(near_keys=1, **options), _native.Report())

    arrays = inputs((2, 9, 64), (2, 40, 64), 32)
    call(arrays, tolerance=0.05)
    with pytest.raises(ValueError, match="core"):
        call(arrays)  # no tolerance
    with pytest.raises(ValueError, match="core"):
        call(tuple(a.astype(ml_dtypes.bfloat16) for a in arrays), tolerance=0.05)
    with pytest.raises(ValueError, match="core"):
        call(inputs((2, 9, 33), (2, 40, 33), 32), tolerance=0.05)  # a width that panels do not multiply in bfloat16
