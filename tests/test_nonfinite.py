"""NaN, infinity and extreme numbers: hidden ones change nothing, visible ones show, none hangs."""

import numpy as np
import pytest
from helpers import as_four, assert_same_bits, decode, encode, head_error, inputs, near_far

import icecore
from icecore import reference
from icecore.selectors import PDCI

KEYS, DIM = 200, 12
ODD = [np.nan, np.inf, -np.inf]


def exact(query, key, value, **options):
    return icecore.attention(query, key, value, return_lse=True, **options)


def near_far_causal(query, key, value, **options):
    return near_far(query, key, value, k=16, causal=True, block=16, sinks=4, cell_size=8, **options)[:2]


def near_far_both_ways(query, key, value, **options):
    return near_far(query, key, value, k=16, sinks=4, cell_size=8, **options)[:2]


def pdci(query, key, value, **options):
    options.pop("moments", None)  # it has no metric
    return icecore.attention(query, key, value, selector=PDCI(16, 64), return_lse=True, **options)


def tolerance_causal(query, key, value, **options):
    return near_far(query, key, value, tolerance=0.1, causal=True, block=16, sinks=4, cell_size=8, **options)[:2]


def tolerance_both_ways(query, key, value, **options):
    return near_far(query, key, value, tolerance=0.1, sinks=4, cell_size=8, **options)[:2]


PATHS = [exact, near_far_causal, near_far_both_ways, pdci, tolerance_causal, tolerance_both_ways]


def replaced(array, rows, number, components=slice(None)):
    """A copy of (heads, length, dim) with some rows overwritten."""
    copy = array.copy()
    copy[:, rows, components] = encode(
        np.float32(number), "bits" if array.dtype == np.uint16 else array.dtype
    )
    return copy


@pytest.mark.parametrize("number", ODD)
@pytest.mark.parametrize("queries", [3, 60])
@pytest.mark.parametrize("path", PATHS[:4])
def test_an_odd_query_spoils_only_its_own_row(isa, path, queries, number):
    """With moments: it would be missing in those of all."""
    query, key, value = inputs((2, queries, DIM), (1, KEYS, DIM), DIM)
    options = {} if path is exact else {"moments": np.eye(DIM)[None]}
    out, lse = path(query, key, value, **options)
    odd_out, odd_lse = path(replaced(query, 1, number, 0), key, value, **options)
    assert_same_bits(np.delete(odd_out, 1, axis=-2), np.delete(out, 1, axis=-2))
    assert_same_bits(np.delete(odd_lse, 1, axis=-1), np.delete(lse, 1, axis=-1))
    assert np.isnan(odd_out[..., 1, :]).all()  # an infinite query has scores of both infinities
    assert not np.isfinite(odd_lse[..., 1]).any()


@pytest.mark.parametrize("number", ODD)
@pytest.mark.parametrize("path", PATHS[1:])
def test_odd_queries_reach_neither_the_metric_nor_the_thresholds_of_others(isa, path, number):
    query, key, value = inputs((2, KEYS, DIM), (1, KEYS, DIM), DIM)
    query[..., ::2] *= 4
    odd = np.arange(KEYS) % 19 == 4
    out, lse = path(replaced(query, odd, number, 0), key, value)
    assert np.isfinite(out[..., ~odd, :]).all()
    assert np.isfinite(lse[..., ~odd]).all()
    assert np.isnan(out[..., odd, :]).all()
    truth = exact(query, key, value, causal=path in (near_far_causal, tolerance_causal))[0]
    errors = [head_error(a[..., ~odd, :], truth[:, ~odd]).max() for a in (out, path(query, key, value)[0])]
    assert errors[0] < 1.2 * errors[1] + 0.02


@pytest.mark.parametrize("scale", [0.125, 0.3, 1e-3, 7.0])
@pytest.mark.parametrize("size", [3e2, 3e3, 3e4, 3e6, 3e9])
def test_equal_scores_of_any_size_share_the_mass(isa, size, scale):
    """Also where the rounding of a score is a power of two that weights do not reach."""
    query, key, value = inputs((2, 64, 64), (1, 150, 64), 64, "bfloat16")
    query[...], key[...] = size, size
    out, lse = icecore.attention(query, key, value, scale=scale, return_lse=True)
    wanted = value[0].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(out.astype(np.float64), np.broadcast_to(wanted, out.shape), atol=0.02)
    held = float(key[0, 0, 0])
    np.testing.assert_allclose(lse, scale * 64 * held**2 + np.log(150), rtol=1e-5)
    key[:, ::2] = -key[:, ::2]
    out = icecore.attention(query, key, value, scale=scale)
    wanted = value[0, 1::2].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(out.astype(np.float64), np.broadcast_to(wanted, out.shape), atol=0.02)


@pytest.mark.parametrize("number", ODD)
@pytest.mark.parametrize("options", [{"k": 16}, {"tolerance": 0.1}], ids=str)
def test_a_row_that_sees_no_key_has_no_mass_whatever_its_query_is(isa, options, number):
    """Where keys are rounded less their centre, too, whose score is added to lse."""
    query, key, value = inputs((2, 300, 64), (1, 600, 64), 64)
    key[..., 0] += 100.0
    mask = np.ones((300, 600), bool)
    mask[5], query[:, 5, 3] = False, number
    out, lse = near_far(query, key, value, attn_mask=mask, cell_size=8, rounding=True, **options)[:2]
    assert not out[0, :, 5].any() and (lse[0, :, 5] == -np.inf).all()
    assert np.isfinite(np.delete(lse[0], 5, axis=1)).all()


def test_a_query_of_nothing_but_zeros_is_a_query(isa):
    """All queries, or some: every key has the same weight."""
    query, key, value = inputs((2, 60, DIM), (1, KEYS, DIM), DIM)
    for rows in (slice(None), slice(3, 40)):
        query[:, rows] = 0
        for path in PATHS:
            causal = path in (near_far_causal, tolerance_causal)
            out, lse = path(query, key, value)
            seen = np.arange(KEYS - 59, KEYS + 1)[rows] if causal else np.full(60, KEYS)[rows]
            if path is not pdci:
                np.testing.assert_allclose(lse[..., rows], np.broadcast_to(np.log(seen), lse[..., rows].shape), atol=1e-5)
                truth = np.stack([value[0, :n].mean(axis=0) for n in seen])
                np.testing.assert_allclose(out[..., rows, :], np.broadcast_to(truth, out[..., rows, :].shape), atol=2e-6)


def hidden_by(how, queries):
    """Options under which no query sees the keys from 100 to 104."""
    keep = np.ones((queries, KEYS), bool)
    keep[:, 100:105] = False
    return {
        "window": {"window": 60, "causal": True, "sinks": 2},
        "bool mask": {"attn_mask": keep},
        "additive mask": {"attn_mask": np.where(keep, np.float32(0.5), -np.inf)},
    }[how]


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("queries", [3, 30])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bits"])
@pytest.mark.parametrize("how", ["window", "bool mask", "additive mask"])
def test_hidden_keys_may_hold_anything(isa, how, dtype, queries, number):
    query, key, value = inputs((2, queries, DIM), (1, KEYS, DIM), DIM, dtype)
    options = hidden_by(how, queries)
    expected = exact(query, key, value, **options)
    hidden = slice(100, 105)
    with np.errstate(over="ignore"):  # 1e38 is inf in float16
        odd_key, odd_value = replaced(key, hidden, number), replaced(value, hidden, number)
    for actual, wanted in zip(exact(query, odd_key, odd_value, **options), expected, strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bits"])
@pytest.mark.parametrize("queries", [3, 60, KEYS])
@pytest.mark.parametrize("path", [exact, near_far_causal, tolerance_causal])
def test_later_keys_may_hold_anything(isa, path, queries, dtype, number):
    query, key, value = inputs((2, queries, DIM), (1, KEYS, DIM), DIM, dtype)
    options = {"causal": True} if path is exact else {}
    expected = path(query, key, value, **options)
    last = KEYS - queries // 2 - 1  # the last key that half of the queries see
    later = slice(last + 1, KEYS)
    actual = path(query, replaced(key, later, number), replaced(value, later, number), **options)
    seen = slice(0, queries - queries // 2)
    if path is tolerance_causal:  # rows that share a scan decide together in which order it sums
        unit = {"float32": 1e-6, "float16": 2**-10, "bits": 2**-7}[dtype]  # of numbers below 1
        np.testing.assert_allclose(decode(actual[0][..., seen, :]), decode(expected[0][..., seen, :]), rtol=unit, atol=unit / 4)
        np.testing.assert_allclose(actual[1][..., seen], expected[1][..., seen], rtol=1e-6, atol=1e-6)
        return
    assert_same_bits(actual[0][..., seen, :], expected[0][..., seen, :])
    assert_same_bits(actual[1][..., seen], expected[1][..., seen])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bits"])
@pytest.mark.parametrize("queries", [3, 60])
@pytest.mark.parametrize("path", PATHS)
def test_a_visible_nan_key_spoils_the_rows_that_see_it(isa, path, queries, dtype):
    query, key, value = inputs((2, queries, DIM), (1, KEYS, DIM), DIM, dtype)
    out, lse = path(query, replaced(key, 77, np.nan, 3), value)
    assert np.isnan(decode(out)).all()
    assert np.isnan(lse).all()


@pytest.mark.parametrize("number", ODD)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bits"])
@pytest.mark.parametrize("queries", [3, 60])
@pytest.mark.parametrize("path", [path for path in PATHS if path is not pdci])  # which may never visit it
def test_a_visible_odd_value_spoils_its_own_component(isa, path, queries, dtype, number):
    query, key, value = inputs((2, queries, DIM), (1, KEYS, DIM), DIM, dtype)
    out = decode(path(query, key, replaced(value, 77, number, 3))[0])
    if path is exact:
        np.testing.assert_array_equal(out[..., 3], np.full(out.shape[:-1], number))
    else:
        assert not np.isfinite(out[..., 3]).any()
    assert np.isfinite(np.delete(out, 3, axis=-1)).all()


@pytest.mark.parametrize("queries", [3, 60])
def test_odd_masks_act_as_arithmetic_has_it(isa, queries):
    query, key, value = inputs((2, queries, DIM), (1, KEYS, DIM), DIM)
    for number in (np.nan, np.inf):
        mask = np.zeros((queries, KEYS), np.float32)
        mask[1, 5] = number
        out, lse = exact(query, key, value, attn_mask=mask)
        expected, expected_lse = exact(query, key, value)
        assert np.isnan(out[:, 1]).all()
        assert np.isnan(lse[:, 1]).all()
        assert_same_bits(np.delete(out, 1, axis=1), np.delete(expected, 1, axis=1))
        assert_same_bits(np.delete(lse, 1, axis=1), np.delete(expected_lse, 1, axis=1))


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("number", [*ODD, 1e38, -1e38, 1e19])
@pytest.mark.parametrize("path", PATHS)
def test_any_numbers_come_to_an_end(isa, path, number, which):
    """Sums and squares overflow here: there is no right answer, but there is one."""
    arrays = list(inputs((2, 60, DIM), (1, KEYS, DIM), DIM))
    for i in which:
        generator = np.random.default_rng(i)
        arrays[i][generator.random(arrays[i].shape) < 0.05] = number
    out, lse = path(*arrays)
    assert out.shape[-3:] == (2, 60, DIM)
    assert lse.shape[-2:] == (2, 60)


@pytest.mark.parametrize("number", [0.0, 1.0, 1e-40, 3e-20, -2.5])
@pytest.mark.parametrize("path", [near_far_causal, near_far_both_ways, tolerance_causal, tolerance_both_ways])
def test_equal_keys_are_one_cell_and_exact(isa, path, number):
    """All keys equal, zero and subnormal ones included: cells have no spread, so the far field is exact."""
    query, key, value = inputs((2, 60, DIM), (1, KEYS, DIM), DIM)
    key[:] = np.float32(number)
    out, lse = path(query, key, value)
    expected, expected_lse = reference.attention(
        *(as_four(decode(a)) for a in (query, key, value)), causal=path in (near_far_causal, tolerance_causal)
    )
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6, atol=1e-5)


def test_subnormal_inputs_are_numbers(isa):
    """Values below the normal range are averaged like others, by every path."""
    query, key, value = inputs((2, 60, DIM), (1, KEYS, DIM), DIM)
    tiny = (value * np.float32(1e-40)).astype(np.float32)
    expected, _ = reference.attention(*(as_four(decode(a)) for a in (query, key, tiny)))
    np.testing.assert_allclose(exact(query, key, tiny)[0], expected[0], atol=KEYS * 2.0**-149)


@pytest.mark.parametrize("scale", [30.0, -30.0])
@pytest.mark.parametrize("path", PATHS)
def test_scores_far_beyond_the_range_of_exp(isa, path, scale):
    """Scores in the thousands: the softmax is a maximum, and nothing overflows."""
    query, key, value = inputs((2, 60, DIM), (1, KEYS, DIM), DIM)
    out, lse = path(query * 10, key, value, scale=scale)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()
    if path is exact:
        best = (scale * (query * 10 @ key.swapaxes(-1, -2))).max(axis=-1)
        np.testing.assert_allclose(lse, best, rtol=1e-5, atol=np.log(KEYS))
