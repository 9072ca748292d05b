"""bench/bench_frontier.py on a small random model: what it says of exact attention, and the comparison at equal time."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from evaluated_models import decoder, image_encoder

from icecore import nn
from icecore.evaluation import methods, perplexity

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("bench_frontier")


def table(printed):
    """Rows of cells, without the columns' names."""
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in printed.splitlines() if line.startswith("|")][2:]


def test_settings_are_ones_that_evaluate_takes_and_no_method_is_missing(script):
    named = [methods.parse(setting).name for settings in script.GRID.values() for setting in settings]
    assert set(named) == set(methods.DEFAULTS) - {"exact", "plan"}
    images = [methods.parse(setting).name for settings in script.IMAGE_GRID.values() for setting in settings]
    assert set(images) == set(named) - {"window", "minference", "xattention"}  # which are causal
    long = [methods.parse(setting).name for settings in script.LONG_GRID.values() for setting in settings]
    assert set(long) < set(named)
    assert set(script.NEAR_FAR) <= set(script.GRID) & set(script.IMAGE_GRID) & set(script.LONG_GRID)


def test_a_setting_that_takes_all_keys_is_exact_and_others_are_not(script, capsys):
    model = decoder()
    grid = {"near/far by k": ["near_far:k=700"], "window": ["window:window=2"]}
    points = script.measure(script.Text(model.weights, perplexity.leading_tokens(model, "manual", 700)), grid)
    exact, window = table(capsys.readouterr().out)
    assert exact[1] == "k=700" and exact[3:] == ["0.0000", "1.0000", "0.00000"]
    assert float(window[3]) > 0.01 and points["window"][0][1] > 0


def test_pictures_too(script, capsys):
    model = image_encoder()
    pixels = np.random.default_rng(0).standard_normal((128, 128, 3), np.float32)
    points = script.measure(script.Picture(model.weights, pixels), {"top_k": ["top_k:k=257", "top_k:k=16"]})
    every, some = table(capsys.readouterr().out)
    assert every[3:] == ["0.0000", "0.0000"]
    assert float(some[3]) > 0.01 and points["top_k"][1][1] > 0.001


def test_continued_heads_too(script, capsys):
    points = script.measure(script.Heads(600), {"near/far by k": ["near_far:k=600"], "window": ["window:window=2"]})
    exact, window = table(capsys.readouterr().out)
    assert exact[1] == "k=600" and exact[3:] == ["0.0000"]
    assert float(window[3]) > 0.01 and points["window"][0][1] == pytest.approx(float(window[3]), abs=1e-4)


def test_scores_are_those_of_the_models_own_functions(script):
    model = decoder()
    tokens = perplexity.leading_tokens(model, "manual", 301)
    attentions = methods.EXACT.causal, methods.parse("window:window=2").causal
    exact, own = (nn.forward(model.weights, tokens, attention=attention) for attention in attentions)
    ratio, divergence = script.Text(model.weights, tokens).judge(own)
    losses = [nn.score(model.weights, hidden, tokens, 150)[0] for hidden in (own, exact)]
    assert ratio == pytest.approx(nn.perplexity(losses[0]) / nn.perplexity(losses[1]), rel=1e-5)
    assert divergence == pytest.approx(nn.divergence(model.weights, own[149:-1], exact[149:-1]), rel=1e-3)


def test_at_equal_time(script, capsys):
    points = [(0.4, 0.01), (0.1, 0.04), (0.2, 0.05)]  # the last is slower than the second and worse
    assert script.frontier(points) == [(0.1, 0.04), (0.4, 0.01)]
    assert script.in_time(points, 0.2) == pytest.approx(0.02)
    assert script.in_time(points, 3.0) == pytest.approx(0.01)
    assert np.isnan(script.in_time(points, 0.09))
    found = {"near/far by tolerance": [(0.09, 0.03), (0.3, 0.012)], "near/far by k": [(0.5, 0.02)], "window": points}
    grid = {"near/far by tolerance": ["near_far:tolerance=0.1", "near_far:tolerance=0.05"], "near/far by k": ["near_far:k=8"]}
    script.compare(found, grid)
    rows = table(capsys.readouterr().out)
    assert rows[2] == ["window", "", "0.01333", "0.01000"]
    assert rows[3] == ["the least", "near/far by tolerance", "near/far by tolerance", "window"]


def test_the_picture_is_drawn(script, tmp_path):
    pytest.importorskip("matplotlib")
    script.draw({"near/far by k": [(0.5, 0.02)], "window": [(0.4, 0.01), (0.1, 0.04)]}, "divergence", tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 0
