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


#: The most arguments of a function; helpers that are inlined always may have more (csrc/kernels/kernels.h).
MAX_ARGUMENTS = 8
#: The head of a function, declared or defined, or of a pointer to one, and its arguments.
FUNCTION = re.compile(
    r"^ *((?:[a-z_]\w*[ *]+)+(?:\w+|\(\*\w+\)))\(((?:[^()]|\([^()]*\))*)\)\s*[;{]", re.MULTILINE | re.IGNORECASE,
)


def long_signatures(text):
    """Functions of more than MAX_ARGUMENTS arguments."""
    text = WORDS.sub(" ", text)
    return [
        head.split()[-1].strip("*()") for head, arguments in FUNCTION.findall(text)
        if "ALWAYS_INLINE" not in head and len(re.sub(r"\([^()]*\)", "", arguments).split(",")) > MAX_ARGUMENTS
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_take_at_most_eight_arguments(path):
    assert long_signatures(path.read_text()) == []


@pytest.mark.parametrize(("text", "names"), [
    ("static int f(int a, int b, int c, int d, int e, int f, int g, int h, int i) {", ["f"]),
    ("typedef struct {\n    void (*f)(int a, int b, int c, int d, int e, int f, int g, int h, int i);\n} s;", ["f"]),
    ("void f(int a, int b, int c, int d, int e, int f, int g, /* h, */ int (*i)(int, int));", []),
    ("static ALWAYS_INLINE int f(int a, int b, int c, int d, int e, int f, int g, int h, int i) {", []),
])
def test_the_reader_counts_arguments(text, names):
    assert long_signatures(text) == names
