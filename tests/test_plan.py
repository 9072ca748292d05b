"""calibrate() and Plan: a plan meets its tolerance on queries it never saw, says what it holds, and refuses other calls."""

import json
from functools import partial

import numpy as np
import pytest
from helpers import assert_same_bits, decode, head_error, inputs, mean_row_error, near_far
from test_nn_llama import random_tokens
from test_nn_near_far_cache import random_weights

import icecore
from icecore import HeadPlan, LayerPlan, Plan, nn
from icecore._cost_model import NearFarAlways, use

NEAR_FAR = HeadPlan("near_far", 128, 16, (0.02, 0.3), (0.01, 0.2))
WINDOW, EXACT = HeadPlan("window", 64, 1, (0.1, 0.1), (1.0, 1.0)), HeadPlan("exact", None, 1, (0.1, 0.1), (1.0, 1.0))


def layer_plan(*heads, causal=True, tolerance=0.05):
    return LayerPlan(causal, tolerance, heads, 0.01, 1.0, 2.0, 16)


def skewed(length=2000):
    """Two query heads on each of two key heads, d = 16: queries large where keys are small."""
    query, key, value = inputs((4, length, 16), (2, length, 16), 16)
    skew = np.exp2(np.linspace(-2, 2, 16, dtype=np.float32))
    return query * skew, key / skew, value


@pytest.fixture(scope="module")
def calibrated(capture):
    """Layers 3 and 7 by the real capture's first 1500 tokens, and by all of them."""
    early = [a[:, :1500] for a in capture]
    return icecore.calibrate([(3, *early), (7, *capture)], tolerance=0.03, windows=(128, 256))


# ---- Calibration ----


def test_the_tolerance_is_met_and_costs_less_than_exact(calibrated, capture):
    assert list(calibrated) == [3, 7]
    assert calibrated.error <= 0.03
    assert calibrated[7].seconds < calibrated[7].exact_seconds
    exact = icecore.attention(*capture, causal=True)
    out = icecore.attention(*capture, causal=True, plan=calibrated[7])
    assert mean_row_error(out, exact) < 2 * 0.03  # the mean of relative errors; some of this layer's share is the other's


def test_a_tighter_tolerance_costs_more(calibrated, capture):
    tight = icecore.calibrate([(7, *capture)], tolerance=0.003, windows=(128, 256))
    assert tight.error <= 0.003
    assert tight[7].seconds > calibrated[7].seconds


def test_nothing_but_exact_attention_meets_a_tolerance_of_nothing(capture):
    plan = icecore.calibrate([(7, *capture)], tolerance=1e-6, windows=(256,), cell_sizes=(16,))
    assert plan.error == 0
    assert {head.path for head in plan[7].heads} == {"exact"}


def test_layers_share_the_error_by_their_squares(calibrated):
    errors = [calibrated[layer].error for layer in calibrated]
    assert calibrated.error == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    layers = {number: LayerPlan(True, 0.05, (NEAR_FAR,), error, 1.0, 2.0, 16) for number, error in enumerate((0.03, 0.04))}
    assert Plan(0.05, 100, layers).error == pytest.approx(np.sqrt((0.03**2 + 0.04**2) / 2))


def test_heads_are_blind_to_the_far_only_where_asked(capture):
    """Of this capture the last 256 keys and the sinks are most."""
    options = {"tolerance": 0.1, "windows": (256,), "cell_sizes": (16,)}
    paths = [icecore.calibrate([(0, *capture)], **options, window_alone=alone)[0].heads[0].path for alone in (False, True)]
    assert paths == ["near_far", "window"]


def test_where_there_is_nothing_to_exploit_the_path_is_exact():
    query, key, value = inputs((1, 1024, 64), (1, 1024, 64), 64)
    plan = icecore.calibrate([(0, 3 * query, key, value)], tolerance=0.001, causal=False)
    assert plan[0].heads[0].path == "exact"
    assert_same_bits(icecore.attention(query, key, value, plan=plan[0]), icecore.attention(query, key, value))


def test_each_head_has_its_threshold(calibrated):
    """Of those that are tried; the looser, the larger the error that is its tolerance."""
    for layer in calibrated.layers.values():
        assert layer.dim == 64
        for head in layer.heads:
            assert len(head.thresholds) == len(head.tolerances) == 3
            if head.path == "near_far":
                assert set(head.thresholds) <= {4.0**-step for step in range(1, 10)}
                assert max(head.tolerances) < 0.9


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_captures_of_other_dtypes(capture, dtype):
    short = [a[:, :1024].astype(dtype) for a in capture]
    widened = [a.astype(np.float32) for a in short]
    options = {"tolerance": 0.05, "windows": (128,), "cell_sizes": (16,)}
    assert icecore.calibrate([(0, *short)], **options) == icecore.calibrate([(0, *widened)], **options)


def test_a_model_is_captured_layer_by_layer_and_runs_by_the_plan():
    weights, tokens = random_weights(), random_tokens(200)
    captures = nn.capture_layers(partial(nn.forward, weights, tokens))
    plan = icecore.calibrate(captures, tolerance=0.05, windows=(32,))
    assert list(plan) == list(range(weights.config.layers))
    exact = nn.forward(weights, tokens)
    assert mean_row_error(nn.forward(weights, tokens, attention=plan.attention), exact) < 0.2
    cache = nn.NearFarCache(plan=plan)
    nn.forward(weights, tokens[:150], attention=plan.attention, cache=cache)
    assert mean_row_error(nn.forward(weights, tokens[150:], cache=cache), exact[150:]) < 0.2


def test_a_cache_of_a_model_asks_the_plan_for_each_layer():
    weights = random_weights()
    cache = nn.NearFarCache(plan=Plan(0.1, 9, {0: layer_plan(NEAR_FAR, NEAR_FAR)}))
    with pytest.raises(ValueError, match="plan is for 4 query heads on 2 key heads, d=16"):
        nn.forward(weights, random_tokens(9), cache=cache)


@pytest.mark.parametrize(
    ("captures", "options", "message"),
    [
        ([], {}, "captures holds no layer"),
        ([(0, *skewed(8)), (0, *skewed(8))], {}, "captures holds layer 0 twice"),
        ([(-1, *skewed(8))], {}, "layer must be at least 0, got -1"),
        ([(0, *(a[0] for a in skewed(8)))], {}, r"query has shape \(8, 16\); expected \(heads, length, dim\)"),
        ([(0, *skewed(8))], {"tolerance": 1.5}, "tolerance must be above 0 and below 1, got 1.5"),
        ([(0, *skewed(8))], {"windows": (0,)}, "windows must be at least 1, got 0"),
        ([(0, *skewed(8))], {"windows": ()}, r"windows is \(\); expected at least one integer"),
        ([(0, *skewed(8))], {"cell_sizes": []}, r"cell_sizes is \[\]; expected at least one integer"),
    ],
)
def test_calibrations_that_cannot_be(captures, options, message):
    with pytest.raises(ValueError, match=message):
        icecore.calibrate(captures, **{"tolerance": 0.1, **options})


def test_numbers_to_try_are_sequences():
    with pytest.raises(TypeError, match="windows must be a sequence of integers, got 256"):
        icecore.calibrate([(0, *skewed(8))], tolerance=0.1, windows=256)


# ---- Calls by a plan ----


def test_a_call_does_what_the_plan_says():
    """Runs of key heads with equal settings: each as the core computes it alone, measuring from the plan's thresholds on."""
    query, key, value = skewed()
    query, key, value = (np.concatenate([a, a[:1].repeat(len(a) // 2, axis=0)]) for a in (query, key, value))
    tight = HeadPlan("near_far", 256, 32, (0.01, 0.1), (0.002, 0.05))
    plan = layer_plan(NEAR_FAR, HeadPlan("near_far", 128, 32, (0.02, 0.3), (0.01, 0.2)), tight)
    with use(NearFarAlways()):
        out, lse, info = icecore.attention(query, key, value, causal=True, plan=plan, return_lse=True, return_info=True, seed=5)
    assert info.path == "near_far"
    for i, head in enumerate(plan.heads):
        own = slice(2 * i, 2 * i + 2)
        expected = near_far(
            query[own], key[i : i + 1], value[i : i + 1], head_tolerance=head.tolerances, threshold=head.thresholds,
            causal=True, block=head.window, sinks=16, cell_size=head.cell_size, seed=5, rounding=True, prices=(0.5, 0.4),
        )
        for actual, wanted in zip((out, lse, info.near_keys, info.captured_mass), expected, strict=True):
            assert_same_bits(actual[own], wanted[0])


@pytest.mark.parametrize("batch", [(), (2,)])
def test_paths_may_differ_within_a_layer(batch):
    query, key, value = (np.broadcast_to(a, (*batch, *a.shape)) for a in skewed(600))
    out, info = icecore.attention(query, key, value, causal=True, plan=layer_plan(WINDOW, EXACT), return_info=True)
    assert info.path == "exact"
    assert info.near_keys.shape == query.shape[:-1]
    sliding = icecore.attention(query, key, value, causal=True, window=64, sinks=16)
    assert_same_bits(out[..., :2, :, :], sliding[..., :2, :, :])
    assert_same_bits(out[..., 2:, :, :], icecore.attention(query, key, value, causal=True)[..., 2:, :, :])


def test_the_last_queries_are_exact_whatever_a_head_is_blind_to():
    query, key, value = skewed(600)
    out, lse, info = icecore.attention(query, key, value, causal=True, plan=layer_plan(WINDOW, EXACT), last_exact=30,
                                       return_lse=True, return_info=True)
    whole, whole_lse = icecore.attention(query, key, value, causal=True, return_lse=True)
    sliding = icecore.attention(query, key, value, causal=True, window=64, sinks=16)
    for heads, rows, wanted in ((slice(0, 2), slice(0, -30), sliding), (slice(2, 4), slice(None), whole)):
        assert_same_bits(out[heads, rows], wanted[heads, rows])
    np.testing.assert_allclose(out[:2, -30:], whole[:2, -30:], atol=1e-5)
    np.testing.assert_allclose(lse[:, -30:], whole_lse[:, -30:], atol=1e-5)
    np.testing.assert_array_equal(info.near_keys[:, -30:], np.broadcast_to(np.arange(571, 601), (4, 30)))
    np.testing.assert_array_equal(info.near_keys[0, 100:-30], 80)


def test_masks_of_heads_reach_their_heads():
    query, key, value = skewed(600)
    mask = np.random.default_rng(0).random((4, 1, 600)) < 0.7
    plan = layer_plan(WINDOW, EXACT)
    out = icecore.attention(query, key, value, causal=True, plan=plan, attn_mask=mask)
    exact = icecore.attention(query, key, value, causal=True, attn_mask=mask)
    assert_same_bits(out[2:], exact[2:])
    double = icecore.attention(*(a.astype(np.float64) for a in (query, key, value)), causal=True, plan=plan, attn_mask=mask)
    np.testing.assert_allclose(out, double, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (inputs((2, 9, 16), (1, 9, 16), 3), {}, "plan is for 4 query heads on 2 key heads, d=16; the call has 2 on 1, d=16"),
        (inputs((8, 9, 16), (2, 9, 16), 3), {}, "the call has 8 on 2, d=16"),
        (inputs((4, 9, 8), (2, 9, 8), 3), {}, "the call has 4 on 2, d=8"),
        (skewed(9), {"causal": False}, "plan was calibrated with causal=True; the call has causal=False"),
        (skewed(9), {"k": 3}, "plan replaces k, tolerance, window, sinks and metric; got k=3"),
        (skewed(9), {"tolerance": 0.1, "window": 4}, "got tolerance=0.1, window=4"),
    ],
)
def test_a_plan_refuses_other_calls(arrays, options, message):
    with pytest.raises(ValueError, match=message):
        icecore.attention(*arrays, **{"causal": True, "plan": layer_plan(NEAR_FAR, NEAR_FAR), **options})


def test_a_whole_plan_is_not_of_a_layer():
    with pytest.raises(TypeError, match=r"plan must be a LayerPlan, plan\[layer\] of what calibrate returns, got Plan"):
        icecore.attention(*skewed(9), causal=True, plan=Plan(0.1, 9, {}))
    with pytest.raises(KeyError, match=r"plan has no layer 2; it has 0, 5"):
        Plan(0.1, 9, {0: None, 5: None})[2]


# ---- Caches ----


def test_a_cache_by_a_plan_keeps_its_tolerances():
    """As attention by it does: each with what it measures itself, from the plan's thresholds on."""
    query, key, value = skewed(1500)
    plan = layer_plan(NEAR_FAR, HeadPlan("near_far", 128, 16, (0.1, 0.05), (0.05, 0.05)), tolerance=0.005)
    cache = icecore.KVCache(2, 16, plan=plan)
    assert repr(cache) == "<icecore.KVCache: 0 tokens, 2 heads, 16-d float32, plan, tolerance=0.005>"
    exact, tolerances = decode(icecore.attention(query, key, value, causal=True)), np.array([0.02, 0.3, 0.1, 0.05])
    with use(NearFarAlways()):
        whole = icecore.attention(query, key, value, causal=True, plan=plan)
    outs = []
    for first in range(0, 1500, 100):
        rows = slice(first, first + 100)
        cache.append(key[:, rows], value[:, rows])
        outs.append(cache.attend(query[:, rows]))
    for out in (whole, np.concatenate(outs, axis=1)):
        errors = head_error(out[:, 500:], exact[:, 500:])
        assert (errors < 1.5 * tolerances).all()
        assert (errors > 0).all()


def test_a_cache_opens_by_the_plan_before_it_has_measured_anything():
    query, key, value = skewed(1500)
    near = {}
    for thresholds in ((1e-6, 2.0), (2.0, 1e-6)):
        head = HeadPlan("near_far", 128, 16, (0.8, 0.8), thresholds)  # loose ones look for hardly any single key
        cache = icecore.KVCache(2, 16, plan=layer_plan(head, head))
        cache.append(key, value, query)
        near[thresholds[0]] = cache.attend(query[:, -1:], return_info=True)[1].near_keys[:, 0]
    assert (near[1e-6][::2] > near[2.0][::2]).all()
    assert (near[1e-6][1::2] < near[2.0][1::2]).all()


@pytest.mark.parametrize("opener", [icecore.KVCache.load, icecore.KVCache.view])
def test_a_cache_is_saved_with_its_plan(tmp_path, opener):
    query, key, value = skewed(700)
    cache = icecore.KVCache(2, 16, plan=layer_plan(NEAR_FAR, HeadPlan("near_far", 128, 32, (0.02, 0.3), (0.1, 0.1))))
    cache.append(key[:, :600], value[:, :600])
    cache.attend(query[:, 599:600])
    cache.save(tmp_path / "cache")
    twin = opener(tmp_path / "cache")
    assert twin.plan == cache.plan
    for each in (cache, twin):  # until the next window is sealed, and measured
        each.append(key[:, 600:630], value[:, 600:630])
    assert_same_bits(twin.attend(query[:, 600:630]), cache.attend(query[:, 600:630]))


def test_a_models_cache_is_saved_with_its_plan(tmp_path):
    weights, tokens = random_weights(), random_tokens(200)
    plan = icecore.calibrate(nn.capture_layers(partial(nn.forward, weights, tokens)), tolerance=0.05, windows=(32,))
    cache = nn.NearFarCache(plan=plan)
    nn.forward(weights, tokens[:150], attention=plan.attention, cache=cache)
    cache.save(tmp_path / "cache")
    twin = nn.NearFarCache.view(tmp_path / "cache")
    assert_same_bits(*(nn.forward(weights, tokens[150:160], attention=plan.attention, cache=each) for each in (cache, twin)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bits"])
def test_a_cache_takes_other_dtypes_by_a_plan(dtype):
    arrays = inputs((4, 300, 16), (2, 300, 16), 16, dtype)
    tight = HeadPlan("near_far", 32, 16, (1e-6, 1e-6), (1e-9, 1e-9))
    cache = icecore.KVCache(2, 16, plan=layer_plan(tight, tight))
    cache.append(*arrays[1:])
    out, exact = cache.attend(arrays[0]), icecore.attention(*arrays, causal=True)
    assert out.dtype == exact.dtype
    assert mean_row_error(out, decode(exact)) < 0.01


def test_in_a_cache_exact_heads_open_everything():
    query, key, value = skewed(1000)
    cache = icecore.KVCache(2, 16, plan=layer_plan(EXACT, WINDOW))
    cache.append(key, value)
    out = cache.attend(query[:, -1:])
    np.testing.assert_allclose(out[:2], icecore.attention(query, key, value, causal=True)[:2, -1:], atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "dim", "options", "message"),
    [
        (3, 16, {}, "plan is for 4 query heads on 2 key heads, d=16; the call has 4 on 3, d=16"),
        (2, 8, {}, "the call has 4 on 2, d=8"),
        (2, 16, {"tolerance": 0.1}, "got tolerance=0.1"),
        (2, 16, {"window": 8}, "got window=8"),
    ],
)
def test_a_cache_refuses_a_plan_that_does_not_fit(heads, dim, options, message):
    with pytest.raises(ValueError, match=message):
        icecore.KVCache(heads, dim, plan=layer_plan(NEAR_FAR, NEAR_FAR), **options)


def test_a_cache_refuses_queries_of_other_heads():
    cache = icecore.KVCache(2, 16, plan=layer_plan(NEAR_FAR, NEAR_FAR))
    query, key, value = skewed(9)
    cache.append(key, value)
    with pytest.raises(ValueError, match="queries has 2 heads; expected the plan's 4"):
        cache.attend(query[:2])


# ---- Files and maps ----


def test_a_file_gives_the_same_plan(calibrated, tmp_path):
    calibrated.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == calibrated


def broken(content, *keys, value=None):
    """`content` with what lies at `keys` replaced, or left out."""
    content = json.loads(json.dumps(content))
    at = content
    for key in keys[:-1]:
        at = at[key]
    if value is None:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    return content


HEAD = ("layers", "3", "heads", 0)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("icecore plan",), None, "it is not a plan of icecore"),
        (("icecore plan",), 1, "its format is 1; expected 2"),
        (("tolerance",), None, "it has no 'tolerance'"),
        (("tolerance",), 3, "tolerance must be above 0 and below 1, got 3"),
        (("length",), "long", "length must be an integer"),
        (("layers", "3", "heads"), [], "heads must be at least one"),
        (("layers", "3", "error"), None, "missing 1 required positional argument: 'error'"),
        ((*HEAD, "path"), "scenic", "path must be 'near_far', 'window' or 'exact', got 'scenic'"),
        ((*HEAD, "window"), 0, "window must be at least 1, got 0"),
        ((*HEAD, "tolerances"), [0.1, 7], "tolerance must be above 0 and below 1, got 7"),
        ((*HEAD, "thresholds"), [0.1] * 2, "thresholds must be as many as tolerances"),
        ((*HEAD, "thresholds"), [0.1, 0.1, 0], "thresholds must be .* finite and above 0"),
        ((*HEAD, "metric"), [0] * 64, "unexpected keyword argument 'metric'"),
        (("layers", "3", "causal"), "no", "causal must be a bool, got 'no'"),
        (("layers", "3", "dim"), 0, "dim must be at least 1, got 0"),
        ((*HEAD, "colour"), "blue", "unexpected keyword argument 'colour'"),
    ],
)
def test_files_that_hold_no_plan(calibrated, tmp_path, keys, value, message):
    file = tmp_path / "plan.json"
    calibrated.save(file)
    file.write_text(json.dumps(broken(json.loads(file.read_text()), *keys, value=value)))
    with pytest.raises(ValueError, match="plan.json holds no plan that can be used: .*" + message):
        Plan.load(file)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 10000])
def test_files_of_something_else(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="holds no plan that can be used"):
        Plan.load(tmp_path / "plan.json")


def test_the_map_shows_every_head():
    plan = Plan(0.02, 8192, {4: layer_plan(NEAR_FAR, EXACT), 11: layer_plan(WINDOW, WINDOW)})
    lines = str(plan).splitlines()
    expected = "plan for 2 layers, 8192 tokens: tolerance 0.02, error 0.0100 on held-out queries, 2.0 times as fast as exact"
    assert lines[0].startswith(expected)
    assert lines[-2] == "    4  0.010  37 (128, 16)  == (-, -)"
    assert lines[-1] == "   11  0.010  || (64, -)  || (64, -)"


def test_the_map_is_drawn(calibrated, tmp_path):
    pytest.importorskip("matplotlib")
    calibrated.plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
