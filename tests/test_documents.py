"""What documents name exists: files and functions of CONTRIBUTING, words of the glossary, files of the rooms' READMEs."""

import re
from pathlib import Path

import pytest
from model_files import load_decoder, random_tokens

import icecore
from icecore import nn

ROOT = Path(__file__).parents[1]
CORE = {path: path.read_text() for path in sorted(ROOT.glob("csrc/*/*.[ch]"))}


def section(document, title):
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", (ROOT / document).read_text(), re.S | re.M)[1]


def rows(document, title):
    """Lines of a section that name something."""
    return [line for line in section(document, title).splitlines() if "`" in line or line.startswith("    ")]


@pytest.mark.parametrize("row", rows("CONTRIBUTING.md", "Where a promise is kept"))
def test_a_promise_has_its_file_and_its_test(row):
    names = re.findall(r"`([^`]+)`", row)
    assert len(names) == 2 and all((ROOT / name).is_file() for name in names)


@pytest.mark.parametrize("step", rows("CONTRIBUTING.md", "A query's way"))
def test_the_way_of_a_query_is_there(step):
    name, path = step.split()[0], step.split()[-1]
    definition = rf"\b{name.split('.')[-1]}\("
    assert re.search(definition, (ROOT / path).read_text()), f"{path} has no {name}"


@pytest.mark.parametrize("word", re.findall(r"`([^`]+)` \|$", section("docs/near_far.md", "Words, and where each lives"), re.M))
def test_a_word_of_the_glossary_is_in_the_code(word):
    name = re.split(r"[.\->]+", word)[-1]
    assert (ROOT / "csrc" / word).is_file() or any(re.search(rf"\b{name}\b", text) for text in CORE.values())


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_the_attention_of_the_models_page_runs_for_every_family(tmp_path, family):
    text = (ROOT / "docs/models.md").read_text()
    names = {"icecore": icecore}
    exec(re.search(r"^def attention\(.*?(?=^\S)", text, re.S | re.M)[0], names)
    weights = load_decoder(tmp_path, family)
    tokens = random_tokens(40)
    hidden, exact = nn.forward(weights, tokens, attention=names["attention"]), nn.forward(weights, tokens)
    assert abs(hidden - exact).max() < 1e-4  # so few keys are attended to exactly


@pytest.mark.parametrize("room", sorted({path.parent.name for path in ROOT.glob("csrc/*/README.md")} - {"simd"}))
def test_a_room_lists_its_files(room):
    lines = (ROOT / "csrc" / room / "README.md").read_text().splitlines()
    names = re.findall(r"`([^`]+)`", " ".join(line.split("|")[1] for line in lines if line.startswith("| `")))
    assert {Path(name).stem for name in names} == {path.stem for path in (ROOT / "csrc" / room).glob("*.[ch]")}
