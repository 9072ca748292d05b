"""The examples run, on small random models."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers_models import small_model  # noqa: E402

FOLDER = Path(__file__).parent.parent / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_long_document_is_read_once_and_asked_twice(tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    words = [f"w{i}" for i in range(99)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(["?", *words])}, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    model = small_model("llama")
    model.config.max_position_embeddings = 4096
    model.save_pretrained(tmp_path)
    document = tmp_path / "document.txt"
    document.write_text(" ".join(np.random.default_rng(0).choice(words, 2500)))

    answers = []
    for begin in ("2500 tokens read in", "2500 tokens opened in"):
        example("long_document").main([str(tmp_path), str(document), "w1 w2", "--tokens", "5"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(begin) and lines[-1].startswith("5 tokens in") and "'fallbacks': {}" in lines[-1]
        answers.append(lines[1])
    assert answers[0] == answers[1]


def test_a_large_image_has_the_same_features(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    small_model("vit").save_pretrained(tmp_path)
    rows = np.arange(300)
    waves = 127 * (1 + np.sin(rows[:, None] / 20) * np.cos(rows / 30))
    image.fromarray(waves.astype(np.uint8)).save(tmp_path / "picture.png")
    example("large_image").main([str(tmp_path), str(tmp_path / "picture.png"), "--size", "280"])
    sdpa, icecore, cosines = capsys.readouterr().out.splitlines()
    assert sdpa.startswith("sdpa: 4901 tokens") and icecore.startswith("icecore: 4901 tokens")
    assert "'near_far': 2" in cosines
    median = float(cosines.removeprefix("cosine of features, median and least: ").split(",")[0])
    assert median > 0.99
