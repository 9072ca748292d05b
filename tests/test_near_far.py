"""attention() with k: equal to its float64 oracle, causal, reproducible, better than dropping the tail."""


import numpy as np
import pytest
from helpers import (
    NATIVE_BFLOAT16,
    NearFar,
    as_four,
    assert_exact,
    assert_same_bits,
    core_tree,
    decode,
    encode,
    inputs,
    mean_row_error,
    near_far,
    relative_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import _cost_model, _native, reference
from icecore._settings import CELL_SIZE
from icecore.selectors import PDCI, Pages

CAUSAL = {"causal": True, "block": 32, "sinks": 4, "cell_size": 8, "k": 24}
BOTH_WAYS = {"sinks": 4, "cell_size": 8, "k": 24}
SETTINGS = [CAUSAL, BOTH_WAYS]
RISKY = {"k": 1, "threshold": 0.02}  # instead of a count
#: Second moments of queries, for two key heads.
DIAGONAL = np.stack([np.diag(4.0 ** np.random.default_rng((4, head)).integers(-3, 4, 16)) for head in range(2)])
MIXED = np.random.default_rng(5).standard_normal((2, 16, 16)) * np.exp2(np.linspace(-2, 2, 16))
MOMENTS = MIXED.swapaxes(1, 2) @ MIXED / 16
each_setting = pytest.mark.parametrize("options", SETTINGS, ids=["causal", "both"])
#: Measured thresholds, in the metric that a call finds itself.
MEASURED = [CAUSAL | {"k": 1, "tolerance": 0.1}, BOTH_WAYS | {"k": 1, "tolerance": 0.1}]


def clustered(query_shape, key_shape, value_dim, dtype="float32", seed=0):
    """Random inputs whose keys lie around a few centres, so that cells mean something."""
    query, key, value = inputs(query_shape, key_shape, value_dim, "float32", seed)
    generator = np.random.default_rng((seed, 3))
    centres = 2 * generator.standard_normal((12, key_shape[-1]), np.float32)
    key = centres[generator.integers(12, size=key_shape[:-1])] + 0.5 * key
    return encode(2 * query, dtype), encode(key, dtype), encode(value, dtype)


# ---- Against the oracle ----

ORACLE_CASES = {
    "causal": ((1, 3, 200, 16), (1, 1, 200, 16), 16, CAUSAL),
    "both ways": ((1, 3, 150, 16), (1, 1, 200, 16), 16, BOTH_WAYS),
    "batch, heads, other value dim": ((2, 4, 90, 9), (2, 2, 170, 9), 21, CAUSAL | {"scale": 0.2}),
    "values wider than panels": ((1, 2, 60, 5), (1, 2, 170, 5), 130, BOTH_WAYS | {"scale": -0.5}),
    "more queries than keys": ((1, 1, 250, 16), (1, 1, 200, 16), 16, CAUSAL),
    "sinks beyond the first block": ((1, 2, 200, 16), (1, 1, 200, 16), 16, CAUSAL | {"sinks": 45}),
    "blocks of one key": ((1, 2, 90, 16), (1, 1, 90, 16), 16, CAUSAL | {"block": 1}),
    "cells of one key": ((1, 2, 90, 16), (1, 1, 90, 16), 16, BOTH_WAYS | {"cell_size": 1}),
    "one cell": ((1, 2, 90, 16), (1, 1, 90, 16), 16, BOTH_WAYS | {"cell_size": 1000}),
    "causal, by threshold": ((1, 3, 200, 16), (1, 1, 200, 16), 16, CAUSAL | RISKY),
    "both ways, by threshold": ((1, 3, 150, 16), (1, 1, 200, 16), 16, BOTH_WAYS | RISKY),
    "parents": ((1, 3, 60, 16), (1, 1, 3000, 16), 16, BOTH_WAYS | {"k": 10}),
    "parents, by threshold": ((1, 3, 60, 16), (1, 1, 2000, 16), 16, BOTH_WAYS | RISKY),
    "parents, causal, by threshold": ((1, 3, 100, 16), (1, 1, 1500, 16), 16, CAUSAL | RISKY | {"block": 128}),
    "blocks of most keys": ((1, 1, 40, 3), (1, 1, 140000, 3), 2, CAUSAL | {"block": 40000, "cell_size": 500}),
    "thresholds of heads": ((1, 4, 100, 16), (1, 2, 400, 16), 16, BOTH_WAYS | {"k": 1, "threshold": (0.3, 0.02, 1e-3, 0.1)}),
    "thresholds of heads, causal": ((2, 3, 200, 16), (2, 1, 200, 16), 16, CAUSAL | {"k": 1, "threshold": (0.3, 0.02, 1e-3)}),
    "cells of heads": ((1, 4, 100, 16), (1, 2, 400, 16), 16, BOTH_WAYS | {"cell_size": (8, 25)}),
    "cells of heads, causal": ((2, 4, 200, 16), (2, 2, 200, 16), 16, CAUSAL | RISKY | {"cell_size": (32, 8)}),
    "diagonal moments": ((1, 4, 100, 16), (1, 2, 400, 16), 16, BOTH_WAYS | {"moments": DIAGONAL}),
    "moments": ((1, 4, 100, 16), (1, 2, 400, 16), 16, BOTH_WAYS | {"moments": MOMENTS}),
    "moments, causal, by threshold": ((2, 4, 200, 16), (2, 2, 200, 16), 16, CAUSAL | RISKY | {"moments": MOMENTS}),
    "queries of the last tokens alone": ((1, 2, 30, 16), (1, 1, 400, 16), 16, CAUSAL),
    "a soft cap": ((1, 4, 100, 16), (1, 2, 400, 16), 16, BOTH_WAYS | {"softcap": 5.0}),
    "a soft cap, causal, by threshold": ((1, 3, 200, 16), (1, 1, 200, 16), 16, CAUSAL | RISKY | {"softcap": 2.0}),
    "a soft cap, parents, by threshold": ((1, 3, 60, 16), (1, 1, 2000, 16), 16, BOTH_WAYS | RISKY | {"softcap": 8.0}),
    "sink logits": ((2, 3, 100, 16), (2, 1, 400, 16), 16, BOTH_WAYS | {"sink_logits": (3.0, -np.inf, 9.0)}),
    "sink logits, causal, by threshold": ((1, 2, 200, 16), (1, 1, 200, 16), 16, CAUSAL | RISKY | {"sink_logits": (3.0, 9.0)}),
    "both, causal": ((1, 2, 250, 16), (1, 1, 200, 16), 16, CAUSAL | {"softcap": 5.0, "sink_logits": (3.0, 5.0)}),
    "k of one": ((1, 2, 90, 16), (1, 1, 90, 16), 16, BOTH_WAYS | {"k": 1}),
}


def assert_equals_oracle(result, query, key, value, options):
    """Where cells are clearly told apart; nearly equal risks may swap."""
    expected = reference.near_far_attention(query, key, value, tree_of=core_tree, return_margin=True, **options)
    decided = expected[4] > 1e-4
    assert decided.mean() > 0.99
    expected = NearFar(*expected[:4])
    size = np.linalg.norm(expected.out, axis=-1)
    same = np.linalg.norm(result.out - expected.out, axis=-1) <= 1e-5 * size
    with np.errstate(invalid="ignore"):  # -inf - -inf where nothing is visible
        same &= (np.abs(result.lse - expected.lse) <= 1e-5) | (result.lse == expected.lse)
    same &= np.abs(result.captured_mass - expected.captured_mass) <= 1e-5
    same &= result.near_keys == expected.near_keys
    assert not np.any(decided & ~same)


@pytest.mark.parametrize("case", ORACLE_CASES)
def test_equals_the_float64_oracle(isa, case):
    query_shape, key_shape, value_dim, options = ORACLE_CASES[case]
    arrays = clustered(query_shape, key_shape, value_dim)
    assert_equals_oracle(near_far(*arrays, **options, seed=5), *arrays, options | {"seed": 5})


@each_setting
def test_equals_the_float64_oracle_on_a_language_model(capture, isa, options):
    query, key, value = (a[None, :, :400] for a in capture)
    options = options | {"cell_size": 16}
    assert_equals_oracle(near_far(query, key, value, **options), query, key, value, options)


# ---- Masks ----

def keep_some(*shape, share):
    return np.random.default_rng(7).random(shape) < share


def documents(queries, keys, count):
    """Queries see the keys of their own document."""
    of_query, of_key = np.arange(queries) * count // queries, np.arange(keys) * count // keys
    return of_query[:, None] == of_key


MASKS = {
    "padding": lambda queries, keys: np.arange(keys) < 0.8 * keys,
    "padding in front": lambda queries, keys: np.arange(keys)[None, None] > 0.3 * keys,
    "few keys of each query": lambda queries, keys: keep_some(queries, keys, share=0.98),
    "most keys of each query": lambda queries, keys: keep_some(queries, keys, share=0.2),
    "few keys of each head": lambda queries, keys: keep_some(3, 1, keys, share=0.99),
    "documents": lambda queries, keys: documents(queries, keys, 4),
    "all keys": lambda queries, keys: np.zeros((queries, keys), bool),
    "biased keys": lambda queries, keys: np.where(
        keep_some(queries, keys, share=0.02), np.float32(0.5), np.where(keep_some(keys, share=0.95), 0, -np.inf)
    ).astype(np.float32),
    "every key biased": lambda queries, keys: np.linspace(0, 4, queries * keys, dtype=np.float32).reshape(queries, keys),
}


@pytest.mark.parametrize("risky", [{}, {"threshold": 0.02}], ids=["k", "threshold"])
@pytest.mark.parametrize("mask", MASKS)
@each_setting
def test_masks_equal_the_float64_oracle(isa, options, mask, risky):
    query, key, value = clustered((1, 3, 150, 16), (1, 1, 400, 16), 16)
    options = options | risky | {"attn_mask": MASKS[mask](150, 400)}
    assert_equals_oracle(near_far(query, key, value, **options), query, key, value, options)


@each_setting
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 3e38], ids=str)
def test_what_hidden_keys_hold_does_no_harm(isa, options, garbage):
    """Padding may hold anything; so may single keys among others."""
    query, key, value = clustered((2, 3, 150, 16), (2, 1, 400, 16), 16)
    keep = np.ones((2, 1, 1, 400), bool)
    keep[0, ..., 320:] = keep[1, ..., 5::40] = False
    dirty_key, dirty_value = (np.where(np.moveaxis(keep, -1, -2), a, np.float32(garbage)) for a in (key, value))
    result = near_far(query, dirty_key, dirty_value, **options, attn_mask=keep)
    assert np.isfinite(result.out).all()
    assert np.isfinite(result.lse).all()
    exact = decode(icecore.attention(query, key, value, attn_mask=keep, causal=options.get("causal", False)))
    assert mean_row_error(result.out, exact) < 0.7  # as far as 24 keys of these go; 0.2 to 0.56 measured


@pytest.mark.parametrize("where", ["key", "value"])
@pytest.mark.parametrize("options", [{"k": 24}, RISKY], ids=str)
def test_a_nan_that_some_queries_see_stays_with_them(isa, options, where):
    """Queries of two documents side by side, whose keys lie in different cells."""
    query, key, value = clustered((1, 1, 240, 16), (1, 1, 400, 16), 16)
    key[:, :, :200, 0] += 30
    (key if where == "key" else value)[0, 0, 100, 3] = np.nan
    out = near_far(query, key, value, **options, attn_mask=documents(240, 400, 2)).out
    assert np.isnan(out[0, :, :120]).any()
    assert np.isfinite(out[0, :, 120:]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", [(5, 300), (4, 1, 300), (2, 1, 1, 300)], ids=str)
def test_masks_broadcast_as_on_the_exact_path(dtype, shape):
    query, key, value = clustered((2, 4, 5, 16), (2, 2, 300, 16), 16, dtype)
    mask = np.random.default_rng(1).random(shape) < 0.7
    for attn_mask in (mask, np.where(mask, np.linspace(0, 1, 300), -np.inf)):
        options = {"attn_mask": attn_mask, "return_lse": True}
        with _cost_model.use(_cost_model.NearFarAlways()):  # all keys are near, or a cell of one is its mean
            out, lse = icecore.attention(query, key, value, k=299, **options)
        expected, expected_lse = icecore.attention(query, key, value, **options)
        rounded = dtype == "float32" and _native.isa() in NATIVE_BFLOAT16
        np.testing.assert_allclose(decode(out), decode(expected), atol=2e-2 if rounded or dtype == "bfloat16" else 1e-5)
        np.testing.assert_allclose(lse, expected_lse, atol=5e-2 if rounded else 1e-5)


def test_a_mask_that_keeps_all_changes_no_bit(isa):
    arrays = clustered((1, 3, 150, 16), (1, 1, 400, 16), 16)
    expected = near_far(*arrays, **CAUSAL)
    for mask in (np.ones((150, 400), bool), np.zeros((150, 400), np.float32)):
        result = near_far(*arrays, **CAUSAL, attn_mask=mask)
        for name in NearFar._fields:
            assert_same_bits(getattr(result, name), getattr(expected, name))


def test_bool_and_minus_infinity_agree(isa):
    arrays = clustered((1, 3, 150, 16), (1, 1, 400, 16), 16)
    keep = keep_some(150, 400, share=0.97)
    for options in SETTINGS:
        by_bool = near_far(*arrays, **options, attn_mask=keep)
        by_number = near_far(*arrays, **options, attn_mask=np.where(keep, 0, -np.inf).astype(np.float32))
        np.testing.assert_allclose(by_number.out, by_bool.out, atol=5e-6)
        np.testing.assert_array_equal(by_number.near_keys, by_bool.near_keys)


@pytest.mark.parametrize("chunk", [29, 64])
def test_masked_prefill_in_chunks_equals_prefill_at_once(isa, chunk):
    query, key, value = clustered((1, 6, 200, 16), (1, 2, 200, 16), 16)
    mask, options = documents(200, 200, 3) | keep_some(200, 200, share=0.5), CAUSAL | {"moments": MOMENTS}
    whole = near_far(query, key, value, **options, attn_mask=mask)
    for begin in range(0, 200, chunk):
        end = min(begin + chunk, 200)
        part = near_far(query[:, :, begin:end], key[:, :, :end], value[:, :, :end], **options, attn_mask=mask[begin:end, :end])
        np.testing.assert_allclose(part.out, whole.out[:, :, begin:end], atol=5e-6)
        np.testing.assert_array_equal(part.near_keys, whole.near_keys[:, :, begin:end])


def test_float64_is_computed_by_the_oracle():
    query, key, value = inputs((2, 60, 8), (1, 200, 8), 5, "float64")
    out, lse, info = icecore.attention(query, key, value, k=8, causal=True, window=16, return_lse=True, return_info=True)
    expected = reference.near_far_attention(
        query[None], key[None], value[None], k=8, causal=True, block=16, sinks=16, cell_size=CELL_SIZE
    )
    assert info.path == "reference"
    np.testing.assert_array_equal(out, expected[0][0])
    np.testing.assert_array_equal(lse, expected[1][0].astype(np.float32))
    np.testing.assert_array_equal(info.near_keys, expected[2][0])
    np.testing.assert_array_equal(info.captured_mass, expected[3][0])


# ---- Limits in which the answer is known ----


@pytest.mark.parametrize("options", [{}, {"causal": True}], ids=str)
def test_k_of_all_keys_is_exact(isa, options):
    query, key, value = inputs((4, 100, 16), (2, 300, 16), 24)
    exact = icecore.attention(query, key, value, return_lse=True, **options)
    for k in (300, 301, 10**9):
        out, lse, info = icecore.attention(query, key, value, k=k, return_lse=True, return_info=True, **options)
        assert info.path == "exact"
        assert_same_bits(out, exact[0])
        assert_same_bits(lse, exact[1])


@each_setting
def test_opening_all_cells_is_exact(isa, options):
    query, key, value = inputs((1, 4, 100, 16), (1, 2, 300, 16), 24)
    result = near_far(query, key, value, **options | {"k": 300})
    assert_exact(result[:2], query, key, value, causal=options.get("causal", False))
    np.testing.assert_allclose(result.captured_mass, 1, atol=1e-6)


@pytest.mark.parametrize("budget", [{"k": 4}, {"selector": Pages(4)}, {"selector": PDCI(4)}], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shapes", [((0, 8), (5, 8)), ((5, 8), (0, 8)), ((5, 8), (1, 8))], ids=str)
def test_few_or_no_keys_and_queries(shapes, causal, budget):
    query, key, value = inputs(*shapes, 3)
    options = {"causal": causal, "return_lse": True}
    result = icecore.attention(query, key, value, **budget, **options)
    for actual, expected in zip(result, icecore.attention(query, key, value, **options), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_queries_before_the_first_key_give_zero():
    query, key, value = inputs((250, 8), (200, 8), 5)
    out, lse, near_keys, mass = near_far(query, key, value, **CAUSAL)
    assert not out[0, 0, :50].any()
    assert np.all(lse[0, 0, :50] == -np.inf)
    assert not near_keys[0, 0, :50].any()
    assert not mass[0, 0, :50].any()
    assert np.isfinite(lse[0, 0, 50:]).all()


# ---- Causality ----


@pytest.mark.parametrize("options", [CAUSAL, CAUSAL | RISKY], ids=["k", "threshold"])
@pytest.mark.parametrize("chunk", [1, 29, 64])
def test_prefill_in_chunks_equals_prefill_at_once(isa, chunk, options):
    """With moments: of the queries of its own positions a chunk does not know all."""
    query, key, value = clustered((1, 6, 200, 16), (1, 2, 200, 16), 16)
    options = options | {"moments": MOMENTS}
    whole = near_far(query, key, value, **options)
    for begin in range(0, 200, chunk):
        end = min(begin + chunk, 200)
        part = near_far(query[:, :, begin:end], key[:, :, :end], value[:, :, :end], **options)
        expected = NearFar(*(a[:, :, begin:end] for a in whole))
        # how sums are grouped depends on the last key of a call, hence rounding
        np.testing.assert_allclose(part.out, expected.out, atol=5e-6)
        np.testing.assert_allclose(part.lse, expected.lse, atol=5e-6)
        np.testing.assert_allclose(part.captured_mass, expected.captured_mass, atol=1e-6)
        np.testing.assert_array_equal(part.near_keys, expected.near_keys)


def with_other_keys(first, options, seed):
    """The same queries before and after all keys from `first` on were exchanged: what rows before that give."""
    query, key, value = clustered((1, 6, 200, 16), (1, 2, 200, 16), 16, seed=seed)
    other_key, other_value = key.copy(), value.copy()
    other_key[:, :, first:], other_value[:, :, first:] = 100, -100
    results = near_far(query, key, value, **options), near_far(query, other_key, other_value, **options)
    return (NearFar(*(a[:, :, :first] for a in result)) for result in results)


@settings(max_examples=20)
@given(first=st.integers(0, 199), seed=st.integers(0, 100))
def test_later_keys_change_nothing(first, seed):
    before, after = with_other_keys(first, CAUSAL, seed)
    for name in NearFar._fields:
        assert_same_bits(getattr(after, name), getattr(before, name))


@settings(max_examples=20)
@given(first=st.integers(0, 199), budget=st.sampled_from([RISKY, {"tolerance": 0.1}]), seed=st.integers(0, 100))
def test_later_keys_change_no_threshold(first, budget, seed):
    """Up to rounding: rows that open the same cells are summed together, of which later ones may be some."""
    before, after = with_other_keys(first, CAUSAL | budget, seed)
    np.testing.assert_allclose(after.out, before.out, atol=5e-6)
    np.testing.assert_allclose(after.lse, before.lse, atol=5e-6)
    np.testing.assert_array_equal(after.near_keys, before.near_keys)


LATER = {
    "keys": lambda query, key, value: (query, 100 + 0 * key, -100 + 0 * value),
    "queries": lambda query, key, value: (3 * query[..., ::-1], key, value),
    "queries that are not finite": lambda query, key, value: (query * np.float32(np.nan), key, value),
    "all": lambda query, key, value: (5 * query, 2 * key[..., ::-1], value * np.float32(np.inf)),
}


@settings(max_examples=25)
@given(
    first=st.integers(0, 299), what=st.sampled_from(sorted(LATER)), rounding=st.booleans(), seed=st.integers(0, 100),
    budget=st.sampled_from([{"tolerance": 0.1}, {"tolerance": 0.01}, RISKY, {}]),
)
def test_rows_of_earlier_blocks_keep_their_bits(first, what, rounding, seed, budget):
    """Whatever comes later: no metric, no centre and no threshold of theirs is made of it."""
    arrays = clustered((1, 6, 300, 16), (1, 2, 300, 16), 16, seed=seed)
    pairs = zip(arrays, LATER[what](*arrays), strict=True)
    changed = [np.concatenate([a[:, :, :first], b[:, :, first:]], axis=2) for a, b in pairs]
    options = CAUSAL | budget | {"rounding": rounding}
    before, after = near_far(*arrays, **options), near_far(*changed, **options)
    rows = slice(0, first // 32 * 32)
    for name in NearFar._fields:
        assert_same_bits(getattr(after, name)[:, :, rows], getattr(before, name)[:, :, rows])


# ---- Reproducibility ----


@pytest.mark.parametrize("options", [*SETTINGS, *MEASURED], ids=str)
def test_same_seed_same_bits_for_any_number_of_threads(isa, options):
    arrays = clustered((2, 4, 300, 16), (2, 2, 300, 16), 16)
    options = options | {"seed": 3, "rounding": True, "return_measured": True}
    one, two, again = (near_far(*arrays, threads=threads, **options) for threads in (1, 2, 2))
    for other in (two, again):
        for actual, expected in zip((*other[0], *other[1]), (*one[0], *one[1]), strict=True):
            assert_same_bits(actual, expected)


def test_another_seed_is_another_approximation_of_the_same_quality(capture):
    exact = icecore.attention(*capture, causal=True)
    results = [near_far(*capture, **CAUSAL | {"block": 128, "seed": seed}) for seed in (0, 1, 2**64 - 1)]
    assert not np.array_equal(results[0].out, results[1].out)
    errors = [mean_row_error(result.out[0, :, 256:], decode(exact[:, 256:])) for result in results]
    assert max(errors) < 1.5 * min(errors)


# ---- Accuracy ----


LATE_ROWS = slice(1024, 2048, 7)


class TestOnALanguageModel:
    """One head group of a real model, its last 1024 queries, by the mean relative error of output rows."""

    def error(self, capture, out):
        exact = icecore.attention(*capture, causal=True)
        return mean_row_error(out[..., LATE_ROWS, :], decode(exact[:, LATE_ROWS]))

    def near_far(self, capture, k, **options):
        options = {"causal": True, "block": 128, "sinks": 16, "cell_size": 16, **options}
        return self.error(capture, near_far(*capture, k=k, **options).out[0])

    def top_k(self, capture, k):
        """The paper's ceiling: the k largest scores of all that is visible, nothing else."""
        query, key, value = (as_four(a) for a in capture)
        out = np.zeros((3, 2048, 64))
        for i in range(2048)[LATE_ROWS]:
            rows = query[:, :, i : i + 1], key[:, :, : i + 1], value[:, :, : i + 1]
            out[:, i] = reference.top_k_attention(*rows, k=k)[0][0, :, 0]
        return self.error(capture, out)

    def test_error_falls_as_k_grows(self, capture, isa):
        errors = [self.near_far(capture, k) for k in (16, 64, 256, 1024)]
        assert errors[0] < 0.035  # 0.0226 measured; halving at least with every second step of k
        assert errors[1] < 0.85 * errors[0]
        assert errors[2] < 0.6 * errors[1]
        assert errors[3] < 0.3 * errors[2]

    @pytest.mark.parametrize("k", [16, 64, 128])
    def test_error_is_below_exact_top_k(self, capture, k):
        # measured 0.18, 0.43 and 0.64 of it
        assert self.near_far(capture, k) < 0.8 * self.top_k(capture, k)



def test_input_without_structure_stays_sane(isa):
    """iid Gaussian keys form no cells: dropping the tail is worse than answering 0, the far field is not."""
    query, key, value = inputs((1, 1, 256, 64), (1, 1, 2048, 64), 64)
    exact, exact_lse = icecore.attention(query, key, value, return_lse=True)
    far = near_far(query, key, value, k=64, cell_size=16)
    top = icecore.attention(query, key, value, selector=PDCI(64, 2048), return_lse=True)
    dropped = NearFar(*top, None, None)
    assert relative_error(far.out, decode(exact)) < 1  # 0.79 measured
    assert relative_error(dropped.out, decode(exact)) > 2  # 3.4 measured
    for result in (far, dropped):
        assert np.all(result.out <= value.max(axis=-2, keepdims=True) + 1e-5)  # an average of values
        assert np.all(result.out >= value.min(axis=-2, keepdims=True) - 1e-5)
        assert np.all(result.lse <= exact_lse + 1e-5)  # Jensen: a cell's mean never weighs more than its keys


# ---- Rounding to bfloat16 ----


@each_setting
def test_rounding_costs_little(isa, options, capture):
    """Cells of nearly equal risk swap; the error stays what it is."""
    causal = options.get("causal", False)
    exact = icecore.attention(*capture, causal=causal)
    options = options | {"block": 256, "cell_size": 16, "sinks": 16}
    plain, rounded = (near_far(*capture, **options, rounding=rounding).out[0] for rounding in (False, True))
    if isa in NATIVE_BFLOAT16:
        assert not np.array_equal(rounded, plain)
        assert mean_row_error(rounded, exact) < 1.05 * mean_row_error(plain, exact) + 0.01
    else:
        assert_same_bits(rounded, plain)


def test_rounded_inputs_are_as_if_they_had_been_given(isa):
    arrays = clustered((1, 4, 200, 16), (1, 2, 200, 16), 16, "bfloat16")
    wide = [decode(a).astype(np.float32) for a in arrays]
    rounded, given = near_far(*wide, **CAUSAL, rounding=True), near_far(*arrays, **CAUSAL)
    if isa in NATIVE_BFLOAT16:
        assert_same_bits(rounded.lse, given.lse)
        assert_same_bits(rounded.near_keys, given.near_keys)


# ---- The public face ----


@pytest.mark.parametrize(("queries", "keys"), [(1, 300), (64, 64), (1, 3000)])
@pytest.mark.parametrize("causal", [True, False])
def test_short_inputs_are_computed_exactly(queries, keys, causal):
    query, key, value = inputs((2, queries, 64), (1, keys, 64), 64)
    out, lse, info = icecore.attention(query, key, value, k=32, causal=causal, return_lse=True, return_info=True)
    exact = icecore.attention(query, key, value, causal=causal, return_lse=True, return_info=True)
    assert info.path == "exact"
    assert_same_bits(out, exact[0])
    assert_same_bits(lse, exact[1])
    assert_same_bits(info.near_keys, exact[2].near_keys)
    assert_same_bits(info.captured_mass, exact[2].captured_mass)


LONG = {
    "both ways": ({}, {"block": 1}),
    "causal": ({"causal": True, "window": 256}, {"causal": True, "block": 256, "sinks": 16}),
    "sinks": ({"causal": True, "window": 256, "sinks": 3}, {"causal": True, "block": 256, "sinks": 3}),
}


@pytest.mark.parametrize("case", LONG)
def test_long_inputs_take_the_near_far_path(case):
    public, core = LONG[case]
    query, key, value = clustered((2, 8192, 8), (1, 8192, 8), 8)
    out, lse, info = icecore.attention(query, key, value, k=32, seed=4, return_lse=True, return_info=True, **public)
    assert info.path == "near_far"
    expected = near_far(query, key, value, k=32, seed=4, cell_size=CELL_SIZE, rounding=True, **core)
    for actual, wanted in zip((out, lse, info.near_keys, info.captured_mass), expected, strict=True):
        assert_same_bits(actual, wanted[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bits"])
@each_setting
def test_16_bit_inputs(isa, options, dtype):
    """As float32 on the same numbers, up to the rounding of weights and results."""
    arrays = clustered((1, 4, 200, 16), (1, 2, 200, 16), 16, dtype)
    result = near_far(*arrays, **options)
    expected = near_far(*(decode(a).astype(np.float32) for a in arrays), **options)
    assert result.out.dtype == arrays[0].dtype
    if dtype != "float16" and isa in NATIVE_BFLOAT16:
        # means are rounded too, and cells of nearly equal risk swap
        close = np.linalg.norm(decode(result.out) - expected.out, axis=-1) <= 0.02 * np.linalg.norm(expected.out, axis=-1)
        assert close.mean() > 0.95
        assert mean_row_error(decode(result.out), expected.out) < 0.02
        assert np.mean(result.near_keys == expected.near_keys) > 0.95
        return
    roundoff = 2.0**-11 if dtype == "float16" else 2.0**-8
    np.testing.assert_allclose(decode(result.out), expected.out, atol=2 * roundoff * np.abs(decode(arrays[2])).max())
    np.testing.assert_allclose(result.lse, expected.lse, atol=1e-5)
    np.testing.assert_array_equal(result.near_keys, expected.near_keys)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bits"])
@pytest.mark.parametrize("causal", [True, False])
def test_strides_and_out(causal, dtype):
    arrays = clustered((2, 4, 70, 16), (2, 2, 300, 16), 16, dtype)
    options = {"selector": PDCI(8, 40), "causal": causal}
    expected, info = icecore.attention(*arrays, return_info=True, **options)
    assert info.path == "pdci"
    views = [np.ascontiguousarray(a.swapaxes(1, 2)[..., ::-1]).swapaxes(1, 2)[..., ::-1] for a in arrays]
    assert_same_bits(icecore.attention(*views, **options), expected)
    out = np.zeros_like(expected).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    assert icecore.attention(*views, out=out, **options) is out
    assert_same_bits(out, expected)
