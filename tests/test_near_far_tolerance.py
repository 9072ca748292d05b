"""attention() with a tolerance: it is kept, and what is measured and reported of it."""

import warnings

import numpy as np
import pytest
from helpers import assert_same_bits, core_tree, decode, encode, head_error, inputs, near_far
from hypothesis import given, settings
from hypothesis import strategies as st
from test_near_far import BOTH_WAYS, CAUSAL, MASKS, MOMENTS, clustered, each_setting

import icecore
from icecore import _cost_model, reference
from icecore.reference import THRESHOLDS
from icecore.reference.measure import mass_scale, row_thresholds
from icecore.reference.near_far import query_moments
from icecore.reference.random import segment_seed


@pytest.mark.parametrize("tolerance", [0.2, 0.1, 0.05, 0.02, 0.005])
def test_a_tolerance_is_met_on_a_language_model(capture, tolerance):
    exact = icecore.attention(*capture, causal=True)
    result = near_far(*capture, tolerance=tolerance, causal=True, block=128, sinks=16, cell_size=16, rounding=tolerance >= 0.01)
    assert head_error(result.out[0, :, 256:], exact[:, 256:]).max() < 1.3 * tolerance


@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.02])
def test_a_tolerance_is_met_where_there_is_nothing_to_exploit(isa, tolerance):
    query, key, value = inputs((1, 2, 64, 64), (1, 1, 2048, 64), 64)
    result = near_far(query, key, value, tolerance=tolerance, cell_size=16, rounding=True)
    assert head_error(result.out, icecore.attention(query, key, value)).max() < 1.3 * tolerance


def measured_by_the_oracle(query, key, value, tolerance, *, sinks, cell_size, softcap=None, sink_logits=None, moments_of=None):
    """Levels (H,), whether all cells are scored (H,), and the curves of each head's rows, which all are measured."""
    (_, heads, _, dim), keys = query.shape, key.shape[2]
    all_queries = query if moments_of is None else moments_of
    moments = query_moments(all_queries[0].astype(np.float64), keys - all_queries.shape[2])
    tree = core_tree(key[0, 0, sinks:], value[0, 0, sinks:], cell_size, segment_seed(0, sinks, keys - sinks), moments)
    arrays = key[0, 0].astype(np.float64), value[0, 0].astype(np.float64), np.zeros(keys), [(sinks, tree)], np.arange(sinks)
    levels, all_cells, curves = np.empty(heads, int), np.zeros(heads, bool), []
    for h in range(heads):
        for scored in (False, True):
            scores = {"scale": dim**-0.5, "softcap": softcap, "sink": -np.inf if sink_logits is None else sink_logits[h]}
            rows = [reference.row_curve(q, *arrays, all_cells=scored, **scores) for q in query[0, h].astype(np.float64)]
            found = reference.choose_level(rows, tolerance, exact=sinks)
            if found is not None:
                break
        levels[h], all_cells[h] = found, scored
        curves.append(rows)
    return levels, all_cells, curves


@pytest.mark.parametrize("scores", [{}, {"softcap": 6.0}, {"sink_logits": (4.0, 8.0, -np.inf)}], ids=["", "softcap", "sinks"])
@pytest.mark.parametrize("tolerance", [0.1, 0.03])
@pytest.mark.parametrize("seed", [0, 1, 3])  # with 2 a key lies as near to one cell as to another, and rounding decides
def test_the_threshold_is_the_one_that_the_oracle_measures(isa, seed, tolerance, scores):
    """Of 32 queries all are measured; their masses are corrected by what the means lack in them together."""
    query, key, value = clustered((1, 3, 32, 16), (1, 1, 2000, 16), 16, seed=seed)
    query, options = query / 2, {"sinks": 4, "cell_size": 8} | scores
    result = near_far(query, key, value, tolerance=tolerance, **options)
    levels, all_cells, curves = measured_by_the_oracle(query, key, value, tolerance, **options)
    out, _, near, _ = reference.near_far_attention(
        query, key, value, k=1, threshold=THRESHOLDS[levels], all_cells=all_cells, tree_of=core_tree, **options
    )
    mass = np.array([[c.summed_mass + mass_scale(rows) * c.mean_mass for c in rows] for rows in curves])  # (H, L, G)
    _, exact_lse = reference.attention(query, key, value, **scores)
    lse = exact_lse[0] + np.log(np.take_along_axis(mass, levels[:, None, None], axis=2)[..., 0])
    same = result.near_keys == near  # nearly equal risks may swap
    assert same.mean() > 0.98
    assert 0 < near.mean() < 1500
    assert (np.linalg.norm(result.out - out, axis=-1) <= 1e-5 * np.linalg.norm(out, axis=-1))[same].all()
    np.testing.assert_allclose(result.lse[same], lse[None][same], atol=1e-4)


@pytest.mark.parametrize("longer", [1.45, 1.55])
def test_rows_of_longer_queries_than_were_measured_open_all(isa, longer):
    """Of 96 queries the odd ones are measured. Whether a query is long is a matter of each head."""
    query, key, value = clustered((1, 3, 96, 16), (1, 1, 1200, 16), 16, seed=1)
    query /= np.linalg.norm(query, axis=-1, keepdims=True)
    query *= np.array([4.0, 1.0, 2.0], np.float32)[:, None, None]
    query[0, :, 10] *= longer
    options = {"tolerance": 0.1, "sinks": 4, "cell_size": 8}
    result = near_far(query, key, value, **options)
    levels, all_cells, _ = measured_by_the_oracle(query[:, :, 1::2], key, value, **options, moments_of=query)
    thresholds = np.array([row_thresholds(q, THRESHOLDS[g], q[1::2]) for q, g in zip(query[0], levels, strict=True)])
    assert (thresholds[:, 10] == 0).all() == (longer > 1.5)
    out, _, near, _ = reference.near_far_attention(
        query, key, value, k=1, threshold=thresholds, all_cells=all_cells, tree_of=core_tree, sinks=4, cell_size=8
    )
    same = result.near_keys == near
    assert same.mean() > 0.98
    assert ((result.near_keys[0, :, 10] == 1196) == (longer > 1.5)).all()
    assert (np.linalg.norm(result.out - out, axis=-1) <= 1e-5 * np.linalg.norm(out, axis=-1))[same].all()


@pytest.mark.parametrize("options", [CAUSAL, BOTH_WAYS], ids=["causal", "both"])
def test_each_head_has_a_tolerance_of_its_own(isa, options):
    arrays, tolerances = clustered((1, 3, 300, 16), (1, 1, 600, 16), 16), np.array([0.3, 0.01, 0.1])
    result = near_far(*arrays, **options, head_tolerance=tolerances)
    exact = icecore.attention(*arrays, causal=options.get("causal", False))
    assert (head_error(result.out, exact)[0] < 1.5 * tolerances).all()
    assert result.near_keys[0, 0].mean() <= result.near_keys[0, 2].mean() <= result.near_keys[0, 1].mean()


@pytest.mark.parametrize("tolerance", [0.1, 0.02])
def test_the_measured_error_is_about_the_true_one(capture, tolerance):
    exact = icecore.attention(*capture, causal=True)
    options = {"causal": True, "block": 128, "sinks": 16, "cell_size": 16}
    result, measured = near_far(*capture, tolerance=tolerance, **options, return_measured=True)
    true = head_error(result.out[0, :, 512:], exact[:, 512:])
    assert (measured.rows >= 32).all()
    assert (np.abs(measured.error[0] - true) < 3 * measured.standard_error[0]).all()
    assert (measured.standard_error[0] < 0.3 * true + 0.5 * tolerance).all()


@pytest.mark.parametrize("tolerance", [0.1, 0.02])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [CAUSAL, BOTH_WAYS], ids=["causal", "both"])
def test_a_tolerance_is_met_under_masks(options, mask, tolerance):
    query, key, value = clustered((1, 3, 300, 16), (1, 1, 600, 16), 16)
    query /= 2
    options = options | {"attn_mask": MASKS[mask](300, 600)}
    exact = decode(icecore.attention(query, key, value, causal="causal" in options, attn_mask=options["attn_mask"]))
    result = near_far(query, key, value, tolerance=tolerance, **options)
    if mask == "all keys":
        assert not result.out.any()
        assert np.isneginf(result.lse).all()
    else:
        assert head_error(result.out, exact).max() < 2 * tolerance  # a document is news to the rows before it


@pytest.mark.parametrize("options", [CAUSAL, BOTH_WAYS], ids=["causal", "both"])
def test_entries_of_a_batch_are_measured_by_themselves(isa, options):
    """One with keys in a few places, one without structure: each as if it were alone, one with more near keys."""
    first, second = clustered((1, 4, 400, 16), (1, 2, 400, 16), 16), inputs((1, 4, 400, 16), (1, 2, 400, 16), 16)
    arrays = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    options = options | {"tolerance": 0.1, "return_measured": True}
    both, measured = near_far(*arrays, **options)
    for i, alone in enumerate((first, second)):
        expected, own = near_far(*alone, **options)
        for actual, wanted in zip((*both, *measured), (*expected, *own), strict=True):
            assert_same_bits(actual[i : i + 1], wanted)
    near = both.near_keys[..., 100:].mean(axis=(1, 2))
    assert near.max() > 1.5 * near.min()


def test_before_anything_is_measured_rows_are_exact():
    """Causal: those of the first two blocks, which see no sealed key, and without queries before them the next ones, too."""
    query, key, value = clustered((1, 3, 400, 16), (1, 1, 400, 16), 16)
    exact = decode(icecore.attention(query, key, value, causal=True))
    whole, measured = near_far(query, key, value, **CAUSAL | {"tolerance": 0.1}, return_measured=True)
    np.testing.assert_allclose(whole.out[:, :, :64], exact[:, :, :64], atol=1e-5)
    assert (measured.rows > 0).all()
    chunk, measured = near_far(query[:, :, -20:], key, value, **CAUSAL | {"tolerance": 0.1}, return_measured=True)
    np.testing.assert_allclose(chunk.out, exact[:, :, -20:], atol=1e-5)
    np.testing.assert_array_equal(chunk.captured_mass, 1)
    assert (chunk.near_keys[..., -16:] == 400 // 32 * 32 - 32 - 4).all()
    np.testing.assert_array_equal(measured.rows, 0)
    assert np.isnan(measured.error).all()


def test_with_one_block_there_is_nothing_to_measure():
    query, key, value = clustered((1, 3, 60, 16), (1, 1, 60, 16), 16)
    for block in (60, 64, 10**6):
        result, measured = near_far(query, key, value, causal=True, block=block, sinks=4, tolerance=0.1, return_measured=True)
        np.testing.assert_allclose(result.out, icecore.attention(query, key, value, causal=True), atol=1e-5)
        assert not result.near_keys.any()
        np.testing.assert_array_equal(measured.rows, 0)


def test_heads_that_would_need_more_than_exact_attention_are_exact():
    """By the prices of near keys and nodes."""
    query, key, value = clustered((1, 3, 600, 16), (1, 1, 600, 16), 16)
    exact = decode(icecore.attention(query, key, value))
    near, dear = (near_far(query, key, value, **BOTH_WAYS, tolerance=0.1, prices=prices) for prices in ((0.01, 0.01), (50, 50)))
    assert (near.near_keys < 500).any()
    np.testing.assert_array_equal(dear.near_keys, 600 - 4)
    np.testing.assert_array_equal(dear.captured_mass, 1)
    np.testing.assert_allclose(dear.out, exact, atol=1e-5)


def test_measuring_starts_from_a_given_threshold():
    """Without a tolerance it stays in force; with one it is tested, and renewed."""
    query, key, value = clustered((1, 3, 400, 16), (1, 1, 400, 16), 16)
    options = CAUSAL | {"moments": MOMENTS[:1]}
    fixed = near_far(query, key, value, **options, threshold=(1e-9, 0.5, 0.5))
    started, measured = near_far(
        query, key, value, **options, threshold=(1e-9, 0.5, 0.5), head_tolerance=(0.01, 0.01, 0.5), return_measured=True,
    )
    first = slice(64, 96)  # the first rows that see sealed keys
    assert (fixed.near_keys[0, 0, first] == 32 - 4).all()
    assert (fixed.near_keys[0, 1, first] < 32 - 4).any()
    assert (measured.rows > 0).all()
    exact = decode(icecore.attention(query, key, value, causal=True))
    errors = head_error(started.out[0, :, 128:], exact[0, :, 128:])
    assert errors[1] < 0.02
    assert errors[2] > errors[1]
    assert started.near_keys[0, 2, 128:].mean() < started.near_keys[0, 1, 128:].mean()


@pytest.mark.parametrize("bad", [0, -0.1, 1, 1.5, np.nan, np.inf])
def test_tolerances_that_cannot_be(bad):
    query, key, value = inputs((5, 8), (5, 8), 3)
    with pytest.raises(ValueError, match="tolerance must be above 0 and below 1, got"):
        icecore.attention(query, key, value, tolerance=bad)


def test_tolerance_stands_alone():
    query, key, value = inputs((5, 8), (5, 8), 3)
    with pytest.raises(ValueError, match=r"tolerance=0\.1 replaces k"):
        icecore.attention(query, key, value, tolerance=0.1, k=3)
    with pytest.raises(TypeError, match="tolerance must be a number, got str"):
        icecore.attention(query, key, value, tolerance="0.1")


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([0.1, 1.0, 5.0]),
    outlier=st.floats(0, 30),
    tolerance=st.sampled_from([0.3, 0.05]),
)
def test_the_bound_on_missed_mass_holds(seed, size, outlier, tolerance):
    """Also for a needle in a cell of other keys, which the risk does not foresee."""
    query, key, value = inputs((1, 1, 40, 8), (1, 1, 12288, 8), 8, seed=seed)
    key *= size
    key[0, 0, seed % 12288] += outlier * query[0, 0, 7] / np.linalg.norm(query[0, 0, 7])
    key, query, value = (decode(encode(a, "bfloat16")).astype(np.float32) for a in (key, query, value))
    _, lse, info = icecore.attention(query, key, value, tolerance=tolerance, return_lse=True, return_info=True)
    if info.path == "exact":
        return
    exact_lse = icecore.attention(query, key, value, return_lse=True)[1].astype(np.float64)
    # mass of the keys summed exactly = captured share of the mass as it was estimated
    exact_mass = info.captured_mass * np.exp(lse.astype(np.float64) - exact_lse)
    assert np.all(1 - exact_mass <= info.missed_mass_bound + 1e-3)
    assert np.all((info.missed_mass_bound >= 0) & (info.missed_mass_bound <= 1))


@pytest.mark.parametrize("queries", [4, 100])
@pytest.mark.parametrize("size", [1e20, 1e25])
def test_the_bound_on_missed_mass_holds_where_radii_overflow(size, queries):
    """Of cells that are opened, and of some that are not."""
    query, key, value = (0.3 * a for a in inputs((1, 4608, 16), (1, 4608, 16), 16))
    query[..., 0] = key[..., 0] = 0
    key[:, 600:2000:100, 0] = size
    cache = icecore.KVCache(1, 16, tolerance=0.2)
    before, last = (slice(None, -queries), slice(-queries, None))
    cache.append(key[:, before], value[:, before], query[:, before])
    cache.append(key[:, last], value[:, last])
    _, lse, info = cache.attend(query[:, last], return_lse=True, return_info=True)
    exact_lse = icecore.attention(query[:, last], key, value, causal=True, return_lse=True)[1].astype(np.float64)
    exact_mass = info.captured_mass * np.exp(lse.astype(np.float64) - exact_lse)
    assert (exact_mass < 0.9).all()
    assert np.all(1 - exact_mass <= info.missed_mass_bound + 1e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("budget", [{"k": 16}, {"k": 64}, {"tolerance": 0.1}], ids=str)
def test_the_info_says_about_how_large_the_error_is(budget, causal):
    """Of the output, and half that of the mass; with k of 32 rows."""
    query, key, value = clustered((2, 4, 1500, 16), (2, 2, 1500, 16), 16)
    query /= 2
    with _cost_model.use(_cost_model.NearFarAlways()):
        out, lse, info = icecore.attention(
            query, key, value, causal=causal, window=64 if causal else None, return_lse=True, return_info=True, **budget,
        )
    exact, exact_lse = icecore.attention(query, key, value, causal=causal, return_lse=True)
    rows = slice(200, None)
    size = np.linalg.norm(exact, axis=-1)[..., rows]
    mass = np.expm1(lse.astype(np.float64) - exact_lse)[..., rows]
    distance = np.hypot(np.linalg.norm(out - exact, axis=-1)[..., rows], 0.5 * size * mass)
    true = distance.sum(axis=-1) / size.sum(axis=-1)
    assert info.error.shape == info.error_standard_error.shape == info.error_rows.shape == (2, 4)
    assert info.error.dtype == info.error_standard_error.dtype == np.float32
    assert info.error_rows.dtype == np.int32
    assert (info.error_rows >= 32).all() if "tolerance" in budget else (info.error_rows == 32).all()
    assert (np.abs(info.error - true) < 4 * info.error_standard_error + 0.2 * true).all()
    assert f"max {info.error.max():.4f}" in str(info)


def test_there_is_no_warning_where_a_tolerance_is_met():
    """Where it is not, there is one: test_hostile_inputs.py."""
    query, key, value = clustered((1, 2, 2048, 16), (1, 1, 2048, 16), 16)
    with _cost_model.use(_cost_model.NearFarAlways()), warnings.catch_warnings():
        warnings.simplefilter("error")
        icecore.attention(query, key, value, tolerance=0.1)
        icecore.attention(query, key, value, k=10, causal=True, window=128, return_info=True)


@pytest.mark.parametrize("last", [0, 1, 37, 300, 5000])
@pytest.mark.parametrize("options", [{"k": 10}, {"tolerance": 0.2}], ids=str)
def test_the_last_queries_may_attend_exactly(last, options):
    query, key, value = clustered((2, 4, 300, 16), (2, 2, 700, 16), 16)
    mask = np.random.default_rng(0).random((2, 1, 300, 700)) < 0.9
    cases = ((True, {"window": 64}), (True, {"window": 64, "attn_mask": mask}), (False, {"attn_mask": mask[0, :, :1]}))
    for causal, more in cases:
        with _cost_model.use(_cost_model.NearFarAlways()):
            call = {"causal": causal, "return_lse": True, "return_info": True} | more | options
            plain, out = (icecore.attention(query, key, value, **call | {"last_exact": n}) for n in (0, last))
        more = {name: value for name, value in more.items() if name != "window"}
        exact = icecore.attention(query, key, value, causal=causal, return_lse=True, return_info=True, **more)
        rest, end = slice(0, max(300 - last, 0)), slice(max(300 - last, 0), 300)
        for i in range(2):
            assert_same_bits(out[i][:, :, rest], plain[i][:, :, rest])
            np.testing.assert_allclose(out[i][:, :, end], exact[i][:, :, end], atol=1e-5)
        np.testing.assert_array_equal(out[2].near_keys[:, :, end], exact[2].near_keys[:, :, end])
        np.testing.assert_array_equal(out[2].captured_mass[:, :, end], 1)
        for name in ("near_keys", "captured_mass", "summaries"):
            assert_same_bits(getattr(out[2], name)[:, :, rest], getattr(plain[2], name)[:, :, rest])
    with pytest.raises(ValueError, match="last_exact must be at least 0, got -1"):
        icecore.attention(query, key, value, k=10, last_exact=-1)
    with pytest.raises(TypeError, match="last_exact must be an integer, got float"):
        icecore.attention(query, key, value, k=10, last_exact=1.5)


@each_setting
def test_info_says_what_was_summed(isa, options):
    query, key, value = clustered((1, 4, 300, 16), (1, 2, 300, 16), 16)
    result = near_far(query, key, value, **options)
    assert np.all((result.captured_mass >= 0) & (result.captured_mass <= 1))
    sealed = np.full(300, 300 - options["sinks"])
    if "causal" in options:  # all up to the block before the query's own
        sealed = np.maximum(np.maximum(np.arange(300) // 32 - 1, 0) * 32 - options["sinks"], 0)
    assert np.all(result.near_keys >= np.minimum(options["k"], sealed))
    assert np.all(result.near_keys <= sealed)
    assert np.all(result.captured_mass[..., sealed == 0] == 1)
