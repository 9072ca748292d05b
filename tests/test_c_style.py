"""What the formatter does not see of the C files' style."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("csrc", "tests") for path in (ROOT / folder).rglob("*.[ch]"))
#: Comments, strings and characters.
WORDS = re.compile(r"""/\*.*?\*/|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", re.DOTALL)


def nested_conditionals(text):
    """Lines on which a conditional expression begins inside another."""
    text = WORDS.sub(lambda word: "\n" * word[0].count("\n"), text)
    lines, begun, depth = [], [], 0  # begun: the depth of brackets of each conditional that has not ended
    for place, character in enumerate(text):
        if character in "([":
            depth += 1
        elif character in ")],":
            depth -= character != ","
            while begun and begun[-1] >= depth + (character != ","):
                begun.pop()
        elif character in "{};":
            begun, depth = [], 0
        elif character == "?":
            if begun:
                lines.append(text.count("\n", 0, place) + 1)
            begun.append(depth)
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_conditional_expression_stands_in_another(path):
    assert nested_conditionals(path.read_text()) == []


@pytest.mark.parametrize(("text", "lines"), [
    ("x = a ? b : c ? d : e;", [1]),
    ("x =\n a ? f(b ? c : d) : e;", [2]),
    ("f(a ? b : c, d ? e : g);\nx = (a ? b : c) + (d ? e : g);", []),
    ('s = "?"; /* a ? b ? c */ x = a ? b : c; y = d ? e : g;', []),
])
def test_the_reader_finds_what_is_nested(text, lines):
    assert nested_conditionals(text) == lines
