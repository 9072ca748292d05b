"""The command calibrate: a plan in a file, its map on the screen, and one clear line for everything that can go wrong."""

import argparse

import pytest
from evaluated_models import decoder, image_encoder

import icecore
from icecore import nn
from icecore.commands import calibrate
from icecore.evaluation import methods, models

STOPPED = 2  # exit code of a usage error


def parse(*arguments):
    parser = argparse.ArgumentParser(prog="calibrate")
    calibrate.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def tiny(monkeypatch):
    """The command gets the small decoder for any model."""
    monkeypatch.setattr(models, "load", lambda name: decoder())


def test_a_decoders_plan(tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file, figure = tmp_path / "plan.json", tmp_path / "plan.png"
    arguments = ("--tolerance", "0.1", "--length", "900", "--output", str(file), "--plot", str(figure))
    assert calibrate.run(parse("any", *arguments)) == 0
    plan = icecore.Plan.load(file)
    assert (plan.length, plan.tolerance, len(plan)) == (900, 0.1, decoder().weights.config.layers)
    assert all(layer.causal for layer in plan.layers.values())
    assert capsys.readouterr().out == f"{plan}\n"
    assert figure.read_bytes().startswith(b"\x89PNG")
    method = methods.parse(f"plan:file={file}")
    tokens = decoder().tokenizer.encode("any text will do " * 10)
    assert nn.forward(decoder().weights, tokens, attention=method.causal, cache=method.cache()).shape[0] == len(tokens)


def test_an_image_encoders_plan(monkeypatch, tmp_path):
    pytest.importorskip("skimage")
    monkeypatch.setattr(models, "load", lambda name: image_encoder())
    file = tmp_path / "plan.json"
    assert calibrate.run(parse("any", "--tolerance", "0.1", "--length", "400", "--output", str(file))) == 0
    plan = icecore.Plan.load(file)
    assert (plan.length, len(plan)) == (401, 2)
    assert not any(layer.causal for layer in plan.layers.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tolerance", "1"], "--tolerance must be above 0 and below 1, got 1.0"),
        (["--length", "0"], "--length must be at least 1, got 0"),
        (["--length", "4001"], "--length must be at most 4000, the model's context, got 4001"),
        (["--threads", "0"], "--threads must be from 1 to 4096, got 0"),
        (["--threads", "5000"], "--threads must be from 1 to 4096, got 5000"),
        (["--output", "."], "--output: . is a folder; expected a file"),
        (["--output", "no/such/folder/file"], "--output: no folder"),
        (["--length", "900", "--input", "bible"], "text must be one of manual, source, verse, prose, got 'bible'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_give_a_usage_line(tiny, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        calibrate.run(parse("any", "--tolerance", "0.1", "--output", str(tmp_path / "plan.json"), *arguments))
    error = capsys.readouterr().err
    assert stopped.value.code == STOPPED
    assert error.startswith("usage:") and message in error
